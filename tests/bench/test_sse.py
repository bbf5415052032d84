"""Server-sent events, in whatever pieces the network makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.bench.sse import EventReader


def _read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [data for piece in pieces for data in reader.feed(piece)]


@given(st.lists(st.binary(min_size=1).filter(lambda data: not set(data) & set(b"\r\n \t\v\f")), max_size=5), st.data())
def test_any_cut_gives_the_same_events(events, data):
    stream = b"".join(b"data: " + event + b"\n\n" for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert _read(*pieces) == events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data:1\n\n", [b"1"]),
        (b": keep-alive\n\ndata: 1\n\n", [b"1"]),
        (b"event: error\ndata: 1\n\n", [b"1"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
        (b"data: 1\n", []),
    ],
)
def test_forms_of_events(stream, events):
    assert _read(stream) == events
    assert _read(*(stream[i : i + 1] for i in range(len(stream)))) == events
