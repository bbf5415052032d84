"""The fields by which OpenAI-shape requests ask for structured output: OpenAI's own, vLLM's, and vLLM's older ones."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire.errors import InvalidRequestError
from quire.structured_outputs import StructuredOutputs

# A field of the request, what it asks for, and what the client calls the constraint by which errors name it.
_Given = tuple[str, dict[str, Any], str]


class JsonSchemaFormat(BaseModel):
    """OpenAI's `json_schema`. A schema is always enforced, whatever `strict` says; without one, any JSON matches."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    description: str | None = None
    # `schema` is a method of pydantic's.
    json_schema: dict[str, Any] | bool = Field(True, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, which requires it")
        return self


class StructuredFields(BaseModel):
    """At most one of these asks for something."""

    response_format: ResponseFormat | None = None
    # vLLM's: an object with one of json, json_object, regex, choice, grammar; disable_any_whitespace beside it.
    structured_outputs: dict[str, Any] | None = None
    # The older names of the same.
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def _structured_outputs(self) -> StructuredOutputs | None:
        """Raises InvalidRequestError."""
        given = self._given()
        if len(given) > 1:
            message = f"{given[0][0]} and {given[1][0]} cannot be combined: each says what the output must match"
            raise InvalidRequestError(message, field=given[1][0])
        return StructuredOutputs.from_json(given[0][1]) if given else None

    def _structured_names(self) -> dict[str, str]:
        """What the client calls the constraint, by the name that it has in SamplingParams."""
        return {f"structured_outputs.{kind}": name for _, asked, name in self._given() for kind in asked if name}

    def _given(self) -> list[_Given]:
        given: list[_Given] = []
        format_ = self.response_format
        if format_ is not None and format_.json_schema is not None:
            asked = {"json": format_.json_schema.json_schema}
            given.append(("response_format", asked, "response_format.json_schema.schema"))
        elif format_ is not None and format_.type == "json_object":
            given.append(("response_format", {"json_object": True}, "response_format"))
        if self.structured_outputs is not None:
            given.append(("structured_outputs", self.structured_outputs, ""))
        for kind in ("json", "regex", "choice", "grammar"):
            if (value := getattr(self, f"guided_{kind}")) is not None:
                given.append((f"guided_{kind}", {kind: value}, f"guided_{kind}"))
        return given
