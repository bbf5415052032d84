"""Reads one call written as a JSON object: {"name": …, "arguments": {…}}."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from quire.gateway.chat.json_scanner import ObjectScanner
from quire.gateway.chat.tool_parsers.base import ToolParser
from quire.sampling_params import is_encodable

# Longest beginning of a call whose arguments are streamed; a longer one is read when the call is complete.
_MAX_HEADER = 512
# Llama calls them parameters.
_HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class JsonCall:
    """One such object. Usually the name comes first, and the arguments are given on as they come; a call with its
    members in another order is given as a whole once it is complete.
    """

    def __init__(self, parser: ToolParser, *, marker: str) -> None:
        """`marker` is what stood before it, and becomes content with it if it is no call."""
        self._parser = parser
        self._marker = marker
        self._scanner = ObjectScanner()
        # All of it, until the call has begun.
        self._raw = ""
        self._in_arguments = False
        # Whether it has become a call.
        self.is_call = False

    def push(self, text: str) -> str | None:
        """What follows the object; None as long as it is not complete."""
        if not self.is_call:
            return self._begin(text)
        if self._in_arguments:
            end = self._scanner.scan(text, until_depth=1)
            self._parser.add_arguments(text if end is None else text[:end])
            if end is None:
                return None
            self._in_arguments = False
            text = text[end:]
            if self._scanner.broken:
                return text
        end = self._scanner.scan(text, until_depth=0)
        return None if end is None else text[end:]

    def finish(self) -> None:
        """No more text comes: an object that has not become a call is content."""
        if not self.is_call:
            self._parser.add_content(self._marker + self._raw)

    def _begin(self, text: str) -> str | None:
        before = len(self._raw)
        self._raw += text
        header = _HEADER.match(self._raw[:_MAX_HEADER])
        if header is not None:
            self.is_call = self._in_arguments = True
            self._parser.start_call(header[1])
            # The members of the object are at depth 1; the arguments open depth 2.
            self._scanner = ObjectScanner()
            self._scanner.depth = 1
            return self.push(self._raw[header.end() :])
        end = self._scanner.scan(text, until_depth=0, strict=True)
        if end is None:
            return None
        self._raw = self._raw[: before + end]
        call = None if self._scanner.broken else _read(self._raw)
        if call is None:
            self.finish()
        else:
            self.is_call = True
            self._parser.start_call(call[0])
            self._parser.add_arguments(call[1])
        return text[end:]


def _read(text: str) -> tuple[str, str] | None:
    """Name and arguments of a complete call; None if it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = call.get("name")
    if not isinstance(name, str) or not name or not is_encodable(name):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        # Some models write the arguments' JSON as a string.
        return (name, arguments) if _is_object(arguments) and is_encodable(arguments) else None
    if arguments is None or isinstance(arguments, Mapping):
        written = json.dumps(arguments or {}, ensure_ascii=False)
        # Half of a surrogate pair, which JSON can escape and UTF-8 cannot hold.
        return name, written if is_encodable(written) else json.dumps(arguments)
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
