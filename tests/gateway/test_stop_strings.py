from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quire.gateway.stop_strings import StopStrings


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    watcher = StopStrings(stops)
    text = ""
    for piece in pieces:
        emitted, stop = watcher.push(piece)
        text += emitted
        if stop is not None:
            return text, stop
    return text + watcher.flush(), None


def truth(stops: list[str], text: str) -> tuple[str, str | None]:
    """Character by character: the first complete stop string ends the text, the longest if several do."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


small = st.text("ab", max_size=4)


@given(st.lists(small.filter(bool), max_size=3), st.lists(small, max_size=8))
def test_the_result_does_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    assert run(stops, pieces) == truth(stops, "".join(pieces))


def test_a_stop_over_three_pieces_is_cut_off() -> None:
    assert run(["END"], ["one E", "N", "D two"]) == ("one ", "END")


def test_what_may_begin_a_stop_is_held_back_and_released() -> None:
    watcher = StopStrings(["END"])
    assert watcher.push("xE") == ("x", None)
    assert watcher.push("N") == ("", None)
    assert watcher.push("E") == ("EN", None)
    assert watcher.flush() == "E"


def test_without_stops_text_passes_at_once() -> None:
    assert StopStrings([]).push("abc") == ("abc", None)
