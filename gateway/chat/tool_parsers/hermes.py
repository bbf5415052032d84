"""Hermes, Qwen and the bundled model: <tool_call>{"name": …, "arguments": {…}}</tool_call>, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from quire.gateway.chat.tool_parsers.base import ToolParser, held_length
from quire.gateway.chat.tool_parsers.json_call import JsonCall

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser(ToolParser):
    """See the module; a missing end marker is forgiven."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(new_id)
        self._call: JsonCall | None = None
        # Whether the end marker is what comes next.
        self._expects_end = False

    def _step(self) -> bool:
        if self._call is not None:
            return self._read_call(self._call)
        if self._expects_end:
            return self._read_end()
        before, marker, after = self._pending.partition(BEGIN)
        if marker:
            self.add_content(before)
            self._pending = after
            self._call = JsonCall(self, marker=BEGIN)
            return True
        kept = len(before) - held_length(before, BEGIN)
        self.add_content(before[:kept])
        self._pending = before[kept:]
        return False

    def _read_call(self, call: JsonCall) -> bool:
        rest = call.push(self._pending)
        self._pending = rest or ""
        if rest is None:
            return False
        self._call = None
        self._expects_end = call.is_call
        return True

    def _read_end(self) -> bool:
        self._pending = self._pending.lstrip()
        if len(self._pending) < len(END) and END.startswith(self._pending):
            return False
        self._expects_end = False
        self._pending = self._pending.removeprefix(END)
        return True

    def _end(self) -> None:
        if self._call is not None:
            self._call.finish()
        elif not self._expects_end:
            self.add_content(self._pending)
        self._pending = ""
