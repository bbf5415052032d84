"""Server-sent events, as far as OpenAI-compatible servers use them (https://html.spec.whatwg.org/#server-sent-events)."""

from __future__ import annotations


class EventReader:
    """Cuts a stream of bytes into the data of its events; an event may arrive in any number of pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that `piece` completes."""
        buffered = self._rest + piece
        if b"\r" in buffered:
            # A line may end in CR LF; half of one waits for its other half.
            kept = buffered[-1:] if buffered.endswith(b"\r") else b""
            buffered = buffered[: len(buffered) - len(kept)].replace(b"\r\n", b"\n") + kept
        *events, self._rest = buffered.split(b"\n\n")
        return [data for event in events if (data := _data(event)) is not None]


def _data(event: bytes) -> bytes | None:
    """An event's data; None if it has none (a comment that keeps the connection alive)."""
    if event.startswith(b"data:") and b"\n" not in event:  # all but a few
        return event[5:].strip()
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
