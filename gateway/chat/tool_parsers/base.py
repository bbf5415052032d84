"""What all tool parsers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from msgspec import Struct

from quire.gateway.chat.deltas import ToolCallDelta


class ToolText(Struct, frozen=True):
    """What is new in a turn: text, and calls after it."""

    content: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()


class ToolParser(ABC):
    """Takes one turn's text in pieces, gives what stands outside of calls as content and the calls as deltas.

    The deltas of a text, joined, do not depend on how it was cut. What may be the beginning of a marker is held back.
    Text that looks like a call and is none comes out as content, as long as the call's name and the first sign of its
    arguments have not come; from there on, arguments are what the model writes, be it valid JSON or not.
    White space beside a call belongs to the format and is dropped.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        """`new_id` names a call."""
        self._new_id = new_id
        # What has come and is not understood yet.
        self._pending = ""
        self._num_calls = 0
        # What the next ToolText will hold, and those before it.
        self._content = ""
        self._calls: dict[int, ToolCallDelta] = {}
        self._taken: list[ToolText] = []
        # White space at the end of the content so far.
        self._spaces = ""
        # Whether a call is what came last.
        self._is_after_call = False

    def push(self, text: str) -> list[ToolText]:
        """What is certain now that `text` has come, in its order; mostly one, or none."""
        self._pending += text
        while self._pending and self._step():
            pass
        return self._take()

    def finish(self) -> list[ToolText]:
        """What was held back, when no more text comes."""
        self._end()
        if not self._is_after_call:
            self._content += self._spaces
        self._spaces = ""
        return self._take()

    @abstractmethod
    def _step(self) -> bool:
        """Takes some of the pending text; False if it needs more of it first."""

    @abstractmethod
    def _end(self) -> None:
        """Gives what is pending, now that no more comes."""

    def add_content(self, text: str) -> None:
        """Text outside of calls."""
        if self._is_after_call:
            text = text.lstrip()
            if not text:
                return
            self._is_after_call = False
            self._close()
        text = self._spaces + text
        kept = text.rstrip()
        self._content += kept
        self._spaces = text[len(kept) :]

    def start_call(self, name: str) -> None:
        """A call whose arguments follow."""
        self._spaces = ""
        self._is_after_call = True
        self._calls[self._num_calls] = ToolCallDelta(self._num_calls, "", self._new_id(), name)
        self._num_calls += 1

    def add_arguments(self, text: str) -> None:
        """What follows in the arguments of the call that was started last."""
        index = self._num_calls - 1
        call = self._calls.get(index, ToolCallDelta(index))
        self._calls[index] = ToolCallDelta(index, call.arguments + text, call.id, call.name)

    def _close(self) -> None:
        """What comes now stands after what has come."""
        if self._content or self._calls:
            self._taken.append(ToolText(self._content, list(self._calls.values())))
            self._content, self._calls = "", {}

    def _take(self) -> list[ToolText]:
        self._close()
        taken, self._taken = self._taken, []
        return taken


def held_length(text: str, marker: str) -> int:
    """Length of the longest end of the text that begins the marker, and is not all of it."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
