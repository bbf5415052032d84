"""What request models share: values of several kinds, fields that may only ask for nothing, the client's own words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from quire.errors import InvalidRequestError


@dataclass(frozen=True, init=False)
class Only:
    """Marks a field that is known but not implemented: null and the values given here ask for nothing."""

    neutral: tuple[object, ...]
    reason: str

    def __init__(self, *neutral: object, reason: str = "is not supported by this server") -> None:
        """`reason` is what the error says of the field."""
        object.__setattr__(self, "neutral", neutral)
        object.__setattr__(self, "reason", reason)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic's way to ask a marker for its validator."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Pydantic's way to ask a marker for its JSON schema."""
        return {"enum": [None, *self.neutral]}

    def _check(self, value: object) -> object:
        # 1 == True, so types count too.
        if value is not None and not any(type(value) is type(one) and value == one for one in self.neutral):
            raise ValueError(self.reason)
        return value


def tag_of(default: str | None = None) -> Callable[[object], str | None]:
    """A function that tells the members of a tagged union apart: `<str>`, `<list>`, or an object's `<type>`.

    `default` is the type of an object without one. The brackets keep tags out of the names of fields in errors.
    """

    def tag(value: object) -> str | None:
        if isinstance(value, dict):
            kind = value.get("type", default)
            return f"<{kind}>" if isinstance(kind, str) else None
        return f"<{type(value).__name__}>" if isinstance(value, (str, list)) else None

    return tag


@contextlib.contextmanager
def renamed_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Makes errors inside the block name a field as the client does.

    `names`: by a regular expression that a field, or what it lies in, matches; the first that matches counts.
    """
    try:
        yield
    except InvalidRequestError as error:
        ours = error.field or ""
        found = ((re.match(rf"(?:{pattern})(?=$|[.\[])", ours), name) for pattern, name in names.items())
        theirs = next((match.expand(name) + ours[match.end() :] for match, name in found if match), None)
        if theirs is None:
            raise
        raise type(error)(error.message.replace(ours, theirs), field=theirs) from None
