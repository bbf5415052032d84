"""Finds stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one sequence's text. What may be the beginning of a stop string is held back.

    The stop string that is complete first ends the text, so that the result does not depend on where one piece
    ends and the next begins; of several complete at the same character, the longest.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include` leaves the stop string in the text."""
        self._stops = stops
        self._include = include
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """The text that can be emitted, and the stop string if one is found; the text then ends before or with it."""
        if not self._stops:
            return piece, None
        text = self._held + piece
        found = self._first_match(text)
        if found is not None:
            start, stop = found
            self._held = ""
            return text[: start + len(stop) if self._include else start], stop
        keep = len(text) - self._num_held(text)
        self._held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        matches = [(text.find(stop), stop) for stop in self._stops]
        by_end = [(start + len(stop), start, stop) for start, stop in matches if start >= 0]
        if not by_end:
            return None
        _, start, stop = min(by_end)
        return start, stop

    def _num_held(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if stop.startswith(text[-length:]):
                    longest = length
                    break
        return longest
