"""The picture of a server: figures, the KV pool, its sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from quire.top.blocks import BlockStates, Kind
from quire.top.figures import age, latencies, rate, share
from quire.top.window import Window
from quire.v1 import monitor_pb2

# Rows of the map of the KV pool.
_MAP_ROWS: Final = 6
# Lines that are not sequences: heading, figures, map, legend, the table's heading and what is left out of it.
_OTHER_LINES: Final = 10 + _MAP_ROWS


class View:
    """What is known of a server, and how it looks."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._window = Window()
        self._blocks = BlockStates()
        self._state: monitor_pb2.ServerState | None = None
        # Why nothing comes, if nothing does.
        self.trouble = ""

    def add(self, state: monitor_pb2.ServerState) -> None:
        """The next state of a stream."""
        self._window.add(state)
        if state.HasField("blocks"):
            self._blocks.update(state.blocks)
        self._state, self.trouble = state, ""

    def render(self, width: int, height: int) -> RenderableType:
        """All of it, in so many columns and lines."""
        state = self._state
        if state is None:
            return Text(f"{self._address}: {self.trouble or 'connecting…'}", style="yellow")
        parts: list[RenderableType] = [self._heading(state), self._figures(state)]
        parts += [self._map(width), self._legend(), _sequences(state, max(1, height - _OTHER_LINES))]
        return Group(*parts)

    def line(self) -> str:
        """The figures in one line, for a log."""
        state, window = self._state, self._window
        if state is None or self.trouble:
            return self.trouble or "connecting…"
        loads = state.loads
        return (
            f"running {loads.num_requests_running}  waiting {loads.num_requests_waiting}  "
            f"prompt {rate(window.rate(_prompt_tokens))}  output {rate(window.rate(_output_tokens))}  "
            f"TTFT {latencies(window.quantiles(_ttft, 0.5, 0.95))}  "
            f"ITL {latencies(window.quantiles(_itl, 0.5, 0.95))}  KV {loads.kv_cache_usage:.1%}"
        )

    def _heading(self, state: monitor_pb2.ServerState) -> Text:
        loads = state.loads
        uptime = age((loads.time_ns - state.scheduler_start_ns) / 1e9)
        heading = Text.assemble((loads.model, "bold"), f"  {self._address}  up {uptime}", no_wrap=True)
        lost = loads.num_executors - loads.num_live_executors
        heading.append(f"  {loads.num_live_executors}/{loads.num_executors} executors", style="red" if lost else "")
        if self.trouble:
            heading.append(f"  {self.trouble}", style="bold red")
        return heading

    def _figures(self, state: monitor_pb2.ServerState) -> Table:
        loads, window = state.loads, self._window
        grid = Table.grid(padding=(0, 2))
        grid.add_row("Requests", f"{loads.num_requests_running} running", f"{loads.num_requests_waiting} waiting")
        grid.add_row(
            "Tokens", f"prompt {rate(window.rate(_prompt_tokens))}", f"output {rate(window.rate(_output_tokens))}"
        )
        grid.add_row("TTFT", *_columns(latencies(window.quantiles(_ttft, 0.5, 0.95))))
        grid.add_row("ITL", *_columns(latencies(window.quantiles(_itl, 0.5, 0.95))))
        found = share(window.share(lambda s: s.prefix_cache_hits, lambda s: s.prefix_cache_queries))
        grid.add_row("KV cache", f"{loads.kv_cache_usage:.1%} held", f"prefix hits {found}")
        grid.add_row(
            "Steps", rate(window.rate(lambda s: s.num_steps)), f"{state.num_preemptions} preemptions since the start"
        )
        return grid

    def _map(self, width: int) -> Text:
        text = Text(no_wrap=False)
        for kind in self._blocks.cells(width * _MAP_ROWS):
            text.append(kind.character, style=kind.colour)
        return text

    def _legend(self) -> Text:
        counts = self._blocks.counts()
        text = Text()
        for kind in Kind:
            text.append(kind.character, style=kind.colour)
            text.append(f" {kind.label} {counts[kind]}  ")
        text.append(f"of {len(self._blocks.states)}", style="bright_black")
        return text


def _columns(text: str) -> list[str]:
    return text.split("  ")


def _sequences(state: monitor_pb2.ServerState, most: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, expand=False, header_style="bold")
    table.add_column("REQUEST", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("SEQ", justify="right", no_wrap=True)
    table.add_column("STATUS", no_wrap=True)
    for heading in ("TOKENS", "PROMPT", "CACHED", "BLOCKS", "AGE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _rows(state, most):
        table.add_row(*row)
    shown = min(most, len(state.sequences))
    left = state.loads.num_requests_running + state.loads.num_requests_waiting - shown
    return Group(table, Text(f"and {left} more", style="bright_black")) if left > 0 else table


def _rows(state: monitor_pb2.ServerState, most: int) -> Iterator[tuple[str, ...]]:
    for sequence in state.sequences[:most]:
        yield (
            sequence.request_id,
            str(sequence.sequence_index),
            sequence.status,
            str(sequence.num_tokens),
            str(sequence.num_prompt_tokens),
            str(sequence.num_cached_tokens),
            str(len(sequence.block_ids) // 4),
            age(sequence.age_s),
        )


def _prompt_tokens(state: monitor_pb2.ServerState) -> int:
    return state.num_prompt_tokens


def _output_tokens(state: monitor_pb2.ServerState) -> int:
    return state.num_generation_tokens


def _ttft(state: monitor_pb2.ServerState) -> monitor_pb2.Histogram:
    return state.time_to_first_token


def _itl(state: monitor_pb2.ServerState) -> monitor_pb2.Histogram:
    return state.inter_token_latency
