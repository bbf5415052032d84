"""What `quire top` shows, at 80 columns, with colours and without, and how it lives with a server that goes."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from rich.console import Console

from quire.columns import pack_u32
from quire.errors import InvalidRequestError, PermissionDeniedError, ServiceUnavailableError
from quire.top import watch as watch_module
from quire.top.blocks import BlockStates, Kind
from quire.top.command import top
from quire.top.figures import age, latencies, rate, seconds
from quire.top.view import View
from quire.top.watch import show, show_once
from quire.v1 import monitor_pb2


def state(second: int, num_blocks: int = 40, start: int = 1) -> monitor_pb2.ServerState:
    made = monitor_pb2.ServerState(
        loads=monitor_pb2.Loads(
            time_ns=(1000 + second) * 10**9,
            model="a-model",
            num_requests_running=30,
            num_requests_waiting=2,
            num_executors=2,
            num_live_executors=1,
            kv_cache_usage=0.5,
        ),
        num_prompt_tokens=100 * second,
        num_generation_tokens=2000 * second,
        scheduler_start_ns=start,
        time_to_first_token=monitor_pb2.Histogram(bounds=[0.1], counts=[second, 0], sum=1),
        inter_token_latency=monitor_pb2.Histogram(bounds=[0.01], counts=[second, 0], sum=1),
    )
    for index in range(30):
        made.sequences.add(request_id=f"cmpl-{'0' * 32}", sequence_index=index, status="running", block_ids=b"1234")
    made.blocks.is_complete = True
    made.blocks.states = bytes([0, 1, 2, 5] * (num_blocks // 4))
    return made


def text(view: View, width: int = 80, height: int = 24, **options: Any) -> str:
    console = Console(width=width, height=height, **options)
    with console.capture() as capture:
        console.print(view.render(width, height))
    return capture.get()


def test_a_picture_fits_the_terminal() -> None:
    view = View("there:1")
    view.add(state(0))
    view.add(state(10))
    lines = text(view).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    shown = "\n".join(lines)
    for expected in (
        "a-model",
        "1/2 executors",
        "30 running",
        "2 waiting",
        "prompt 100/s",
        "2,000/s",
        "50.0% held",
        "and 24 more",
    ):
        assert expected in shown, expected
    assert "TTFT" in shown
    assert "p50 50 ms" in shown
    assert "\x1b" not in shown, "no colours where there is no terminal"
    assert "·░▓█" * 10 in shown


def test_colours_say_the_same() -> None:
    view = View("there:1")
    view.add(state(0))
    shown = text(view, force_terminal=True, color_system="standard")
    for kind in Kind:
        assert kind.label in shown
    assert "\x1b[35m█" in shown


def test_a_pool_of_a_million_blocks_fits_too() -> None:
    view = View("there:1")
    view.add(state(0, num_blocks=1_000_000))
    lines = text(view).splitlines()
    assert len(lines) <= 24
    assert "of 1000000" in text(view)


def test_cells_show_what_most_of_their_blocks_are() -> None:
    blocks = BlockStates()
    blocks.update(monitor_pb2.BlockMap(is_complete=True, states=bytes([0, 0, 1, 1, 2, 9])))
    assert blocks.cells(100) == [Kind.FREE] * 2 + [Kind.CACHED] * 2 + [Kind.HELD, Kind.SHARED]
    assert blocks.cells(2) == [Kind.FREE, Kind.SHARED]
    blocks.update(monitor_pb2.BlockMap(block_ids=pack_u32([0, 5]), states=bytes([255, 0])))
    assert blocks.cells(100)[0] is Kind.SHARED
    assert blocks.counts() == {Kind.FREE: 2, Kind.CACHED: 2, Kind.HELD: 1, Kind.SHARED: 1}


def test_figures() -> None:
    assert [rate(None), rate(0.0), rate(3.14159), rate(12345.6)] == ["–", "0/s", "3.1/s", "12,346/s"]
    assert [seconds(0.0000123), seconds(0.0123), seconds(1.5), seconds(61)] == ["12 µs", "12.3 ms", "1.5 s", "61 s"]
    assert latencies([0.01, 0.02]) == "p50 10 ms  p95 20 ms"
    assert [age(5), age(65), age(3700), age(90000)] == ["5.0 s", "1m05s", "1h01m", "1d01h"]


class FakeClient:
    """Gives each of its streams: states, and the error that ends it."""

    def __init__(self, *streams: list[Any]) -> None:
        self._streams: Iterator[list[Any]] = iter(streams)

    def watch(self, **options: Any) -> Generator[monitor_pb2.ServerState, None, None]:
        for entry in next(self._streams):
            if isinstance(entry, BaseException):
                raise entry
            yield entry


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_RETRY_S", 0.0)


def test_lines_go_on_when_the_server_is_back(capsys: pytest.CaptureFixture[str]) -> None:
    gone = ServiceUnavailableError("nobody is there")
    client: Any = FakeClient(
        [gone], [state(1), state(2), gone], [state(3, start=2)], [state(4, start=2), KeyboardInterrupt()]
    )
    show(client, "there:1", 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert ["nobody is there" in line for line in lines] == [True, False, False, True, False, False]
    assert "output 2,000/s" in lines[2]
    assert "output –" in lines[4], "counters have begun again"
    assert "output 2,000/s" in lines[5]


def test_a_picture_lives_until_it_is_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    gone = ServiceUnavailableError("nobody is there")
    show(FakeClient([state(1), gone], [state(2), KeyboardInterrupt()]), "there:1", 1.0)  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "nobody is there" in shown
    assert shown.startswith("\x1b[?1049h")
    assert "\x1b[?1049l" in shown, "the terminal is as it was"


def test_what_cannot_get_better_ends_it() -> None:
    with pytest.raises(PermissionDeniedError):
        show(FakeClient([PermissionDeniedError("only operators")]), "there:1", 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("as_json", [False, True])
def test_one_state(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    show_once(FakeClient([state(1), state(2)]), "there:1", 1.0, as_json=as_json)  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    if as_json:
        assert json.loads(shown)["loads"]["num_requests_running"] == 30
    else:
        assert "2,000/s" in shown
        assert shown.count("cmpl-") == 30, "a file has no height"


@pytest.mark.parametrize(("options", "field"), [({"as_json": True}, "json"), ({"interval": 0.01}, "interval")])
def test_options_that_cannot_be(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        top(**options)
    assert caught.value.field == field
