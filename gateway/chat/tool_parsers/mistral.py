"""Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}, …], and in newer models [TOOL_CALLS]name[ARGS]{…} for each call
(where some have [CALL_ID]… before [ARGS], and some have no [ARGS]).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

from quire.gateway.chat.json_scanner import ObjectScanner
from quire.gateway.chat.tool_parsers.base import ToolParser, held_length
from quire.gateway.chat.tool_parsers.json_call import JsonCall

CALLS, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"

_NAME = r"[A-Za-z0-9_.\-]{1,128}"
_HEAD = re.compile(rf"\s*({_NAME})\s*(?:{re.escape(CALL_ID)}\w*)?\s*(?:{re.escape(ARGUMENTS)})?\s*(?=\{{)")


def _beginnings(text: str) -> str:
    """A pattern of all that `text` begins with, nothing and all of it included."""
    return "(?:" + "|".join(re.escape(text[:length]) for length in range(len(text), -1, -1)) + ")"


# What may still become a head.
_HEAD_BEGINNING = re.compile(
    rf"\s*(?:{_NAME}\s*(?:{_beginnings(CALL_ID)}|(?:{re.escape(CALL_ID)}\w*\s*)?{_beginnings(ARGUMENTS)}\s*))?"
)


class _State(Enum):
    CONTENT = auto()
    # After [TOOL_CALLS].
    HEAD = auto()
    # Inside a call of the list.
    CALL = auto()
    # Behind a call of the list.
    SEPARATOR = auto()
    # Inside the arguments of a call that is not in a list.
    ARGUMENTS = auto()


class MistralParser(ToolParser):
    """See the module."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(new_id)
        self._state = _State.CONTENT
        self._scanner = ObjectScanner()
        self._call = JsonCall(self, marker="")

    def _step(self) -> bool:
        read = {
            _State.CONTENT: self._read_content,
            _State.HEAD: self._read_head,
            _State.CALL: self._read_call,
            _State.SEPARATOR: self._read_separator,
            _State.ARGUMENTS: self._read_arguments,
        }
        return read[self._state]()

    def _read_content(self) -> bool:
        before, marker, after = self._pending.partition(CALLS)
        if marker:
            self.add_content(before)
            self._pending = after
            self._state = _State.HEAD
            return True
        kept = len(before) - held_length(before, CALLS)
        self.add_content(before[:kept])
        self._pending = before[kept:]
        return False

    def _read_head(self) -> bool:
        text = self._pending.lstrip()
        if text.startswith("["):
            self._begin_call(CALLS + self._pending[: -len(text)] + "[")
            self._pending = text[1:]
            return True
        head = _HEAD.match(self._pending)
        if head is not None:
            self.start_call(head[1])
            self._pending = self._pending[head.end() :]
            self._scanner = ObjectScanner()
            self._state = _State.ARGUMENTS
            return True
        if _HEAD_BEGINNING.fullmatch(self._pending):
            return False
        self.add_content(CALLS)
        self._state = _State.CONTENT
        return True

    def _begin_call(self, marker: str) -> None:
        self._call = JsonCall(self, marker=marker)
        self._state = _State.CALL

    def _read_call(self) -> bool:
        rest = self._call.push(self._pending)
        self._pending = rest or ""
        if rest is None:
            return False
        self._state = _State.SEPARATOR if self._call.is_call else _State.CONTENT
        return True

    def _read_separator(self) -> bool:
        self._pending = self._pending.lstrip()
        if not self._pending:
            return False
        sign = self._pending[0]
        if sign in ",]":
            self._pending = self._pending[1:]
        if sign == ",":
            self._begin_call(sign)
        else:
            self._state = _State.CONTENT
        return True

    def _read_arguments(self) -> bool:
        end = self._scanner.scan(self._pending, until_depth=0)
        self.add_arguments(self._pending if end is None else self._pending[:end])
        self._pending = "" if end is None else self._pending[end:]
        if end is None:
            return False
        self._state = _State.CONTENT
        return True

    def _end(self) -> None:
        if self._state is _State.CALL:
            self._call.finish()
        elif self._state is _State.HEAD:
            self.add_content(CALLS + self._pending)
        elif self._state is _State.CONTENT:
            self.add_content(self._pending)
        self._pending = ""
