"""What a whole output must match: `StructuredOutputs`, with vLLM's names and meanings."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from quire.errors import InvalidRequestError
from quire.v1 import generate_pb2

_CONSTRAINTS: Final = ("json", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """Exactly one constraint. Raises InvalidRequestError, with `field`, for none, several, or a wrong type.

    json: a JSON Schema, as text or as an object. json_object: any JSON object.
    regex: a regular expression (Rust's syntax). choice: one of these texts.
    grammar: in llguidance's variant of Lark, or in GBNF.
    disable_any_whitespace: JSON is written without white space between its tokens; otherwise there may be a space, or
        a line end with an indentation of up to 32 characters.

    Whether a schema, an expression or a grammar can be enforced is found by the gateway.
    """

    json: str | Mapping[str, Any] | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        # Not so of `json`: false is a schema, one that nothing matches.
        none = {"json_object": (None, False)}
        given = [name for name in _CONSTRAINTS if getattr(self, name) not in none.get(name, (None,))]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise InvalidRequestError(
                f"structured_outputs takes exactly one of {', '.join(_CONSTRAINTS)}, not {found}",
                field="structured_outputs",
            )
        self._check_types()

    @property
    def json_text(self) -> str | None:
        """`json` as text."""
        if self.json is None or isinstance(self.json, str):
            return self.json
        return json_module.dumps(self.json)

    def to_proto(self) -> generate_pb2.StructuredOutputs:
        """The message."""
        message = generate_pb2.StructuredOutputs(disable_any_whitespace=self.disable_any_whitespace)
        if self.json is not None:
            message.json = self.json_text or ""
        elif self.json_object:
            message.json_object = True
        elif self.regex is not None:
            message.regex = self.regex
        elif self.choice is not None:
            message.choice.texts.extend(self.choice)
        elif self.grammar is not None:
            message.grammar = self.grammar
        return message

    @classmethod
    def from_proto(cls, message: generate_pb2.StructuredOutputs) -> Self:
        """The inverse of `to_proto`. Raises InvalidRequestError."""
        kind = message.WhichOneof("constraint")
        given: dict[str, Any] = {}
        if kind == "choice":
            given["choice"] = tuple(message.choice.texts)
        elif kind is not None:
            given[kind] = getattr(message, kind)
        return cls(**given, disable_any_whitespace=message.disable_any_whitespace)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """From a request's `structured_outputs` object. Raises InvalidRequestError for unknown keys too."""
        if not isinstance(value, Mapping):
            raise InvalidRequestError("structured_outputs must be an object", field="structured_outputs")
        known = {field.name for field in fields(cls)}
        for name in value:
            if name not in known:
                raise InvalidRequestError(
                    f"Unrecognized request argument: structured_outputs.{name}", field=f"structured_outputs.{name}"
                )
        return cls(**{name: entry for name, entry in value.items() if entry is not None})

    def _check_types(self) -> None:
        wanted: dict[str, type | tuple[type, ...]] = {
            "json": (str, Mapping, bool),
            "json_object": bool,
            "regex": str,
            "choice": Sequence,
            "grammar": str,
            "disable_any_whitespace": bool,
        }
        for name, kinds in wanted.items():
            value = getattr(self, name)
            wrong = not isinstance(value, kinds) or (name == "choice" and isinstance(value, str))
            if value is not None and wrong:
                field = f"structured_outputs.{name}"
                raise InvalidRequestError(f"{field} has the wrong type: {type(value).__name__}", field=field)
        if self.choice is not None and (not self.choice or not all(isinstance(text, str) for text in self.choice)):
            field = "structured_outputs.choice"
            raise InvalidRequestError(f"{field} must be a list of at least one string", field=field)
