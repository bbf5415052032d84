"""The progress bar of a load; repainted twice a second, since it shares the machine with what is measured."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from quire.bench.timeline import Timeline


class LoadProgress:
    """Counts requests and tokens; a context manager. Shows nothing where standard error is no terminal."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tokens]} tokens, {task.fields[failed]} failed"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=2,
            disable=not enabled or not console.is_terminal,
        )
        self._bar = self._progress.add_task("Requests", total=total, tokens=0, failed=0)
        self._tokens = self._failed = 0

    def on_done(self, timeline: Timeline) -> None:
        """Counts a request that has ended."""
        self._tokens += timeline.output_len
        self._failed += not timeline.succeeded
        self._progress.update(self._bar, advance=1, tokens=self._tokens, failed=self._failed)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
