"""Finds where a JSON object ends in a text that arrives in pieces."""

from __future__ import annotations

import re

# Outside of strings: what changes the depth or opens a string, or what no JSON has there.
_STRICT = re.compile(r'["{}\[\]]|[^\s0-9,:.+\-eEtrufalsn]')
# The same once the text is known to be meant as JSON: only a marker (`<…`) ends it early.
_LENIENT = re.compile(r'["{}\[\]<]')
_IN_STRING = re.compile(r'["\\]')


class ObjectScanner:
    """Follows strings and brackets, no more: whether the text is valid JSON is for whoever reads it to say.

    A piece is looked at once, so the cost of a text does not depend on how it is cut.
    """

    def __init__(self) -> None:
        # How many brackets are open; an object's members are at depth 1.
        self.depth = 0
        # Whether something stands where no JSON object has it.
        self.broken = False
        self._in_string = False
        self._escaped = False

    def scan(self, text: str, until_depth: int, *, strict: bool = False) -> int | None:
        """Where in `text` the bracket that closes to `until_depth` ends, or where it breaks; None if neither comes."""
        position = 0
        while position < len(text):
            if self._in_string:
                position = self._scan_string(text, position)
                continue
            found = (_STRICT if strict else _LENIENT).search(text, position)
            if self.depth == 0 and text[position : found.start() if found else None].strip():
                self.broken = True
                return position
            if found is None:
                return None
            position = found.end()
            if not self._take(found[0]):
                self.broken = True
                return found.start()
            if found[0] in "}]" and self.depth == until_depth:
                return position
        return None

    def _take(self, sign: str) -> bool:
        """Whether the sign may stand here, outside of a string."""
        if self.depth == 0:
            self.depth = 1
            return sign == "{"
        if sign in "{[":
            self.depth += 1
        elif sign in "}]":
            self.depth -= 1
        self._in_string = sign == '"'
        return sign in '"{}[]'

    def _scan_string(self, text: str, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        found = _IN_STRING.search(text, position)
        if found is None:
            return len(text)
        if found[0] == '"':
            self._in_string = False
        else:
            self._escaped = True
        return found.end()
