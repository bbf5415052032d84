"""Llama 3: {"name": …, "parameters": {…}} as the whole turn, perhaps after <|python_tag|>; several with ; between."""

from __future__ import annotations

from collections.abc import Callable

from quire.gateway.chat.tool_parsers.base import ToolParser
from quire.gateway.chat.tool_parsers.json_call import JsonCall

PYTHON_TAG = "<|python_tag|>"
_SEPARATOR = ";"


class Llama3JsonParser(ToolParser):
    """See the module. A turn that begins with anything else has no calls."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(new_id)
        self._call: JsonCall | None = None
        # Whether a call may begin here.
        self._expects_call = True

    def _step(self) -> bool:
        if self._call is not None:
            return self._read_call(self._call)
        if self._expects_call:
            return self._look_for_call()
        self.add_content(self._pending)
        self._pending = ""
        return False

    def _look_for_call(self) -> bool:
        """A call at the beginning of the turn, or after another."""
        text = self._pending.lstrip()
        mark = _SEPARATOR if self._num_calls else PYTHON_TAG
        if not text or (text != mark and mark.startswith(text)):
            return False
        after = text.removeprefix(mark).lstrip()
        if not after:
            return False
        if after.startswith("{"):
            self._call = JsonCall(self, marker=self._pending[: -len(after)])
            self._pending = after
        else:
            self._expects_call = False
        return True

    def _read_call(self, call: JsonCall) -> bool:
        rest = call.push(self._pending)
        self._pending = rest or ""
        if rest is None:
            return False
        self._call = None
        self._expects_call = call.is_call
        return True

    def _end(self) -> None:
        if self._call is not None:
            self._call.finish()
        else:
            self.add_content(self._pending)
        self._pending = ""
