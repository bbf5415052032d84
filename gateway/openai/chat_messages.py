"""The messages of a chat request, as clients write them and as chat templates expect them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema

from quire.errors import InvalidRequestError
from quire.gateway.openai.fields import check_extra

# Known fields of a message that are not implemented, and their values that ask for nothing: clients send back what they
# received, with its empty fields.
_NOT_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
}


def _parse_content(value: object) -> str | list[dict[str, str]] | None:
    """A message's content: a text, or text parts. One part alone is a text."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string or a list of text parts")
    parts = [{"type": "text", "text": _parse_part(part, index)} for index, part in enumerate(value)]
    return parts if len(parts) > 1 else parts[0]["text"]


def _parse_part(part: object, index: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
    if not isinstance(text, str):
        named = f"is of type {kind!r}" if isinstance(kind, str) and kind != "text" else "is not a text part"
        raise ValueError(f"part {index} {named}; the model takes text only")
    return text


def _parse_arguments(value: object) -> dict[str, Any]:
    """A call's arguments, which OpenAI's clients write as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be a JSON object as text: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object as text")
    return value


_PART_SCHEMA = {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}
_CONTENT_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}, {"type": "null"}]
}

Content = Annotated[str | list[dict[str, str]] | None, PlainValidator(_parse_content), WithJsonSchema(_CONTENT_SCHEMA)]
Arguments = Annotated[dict[str, Any], PlainValidator(_parse_arguments), WithJsonSchema({"type": "string"})]


class FunctionCall(BaseModel):
    """What is called, and with what."""

    model_config = ConfigDict(strict=True)

    name: str
    arguments: Arguments


class ToolCall(BaseModel):
    """A call that the assistant made."""

    model_config = ConfigDict(strict=True)

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    # Of an assistant.
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    # Of a tool.
    tool_call_id: str | None = None

    def to_template(self, field: str) -> dict[str, Any]:
        """As chat templates expect it; `field` is the message's place. Raises InvalidRequestError."""
        check_extra(self.model_extra or {}, _NOT_IMPLEMENTED, prefix=f"{field}.")
        message: dict[str, Any] = {"role": self.role, "content": self._content(field)}
        if self.name is not None:
            message["name"] = self.name
        if self.role == "assistant":
            reasoning = self.reasoning if self.reasoning_content is None else self.reasoning_content
            if reasoning is not None:
                message["reasoning_content"] = reasoning
            if self.tool_calls:
                message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        elif self.tool_calls:
            raise InvalidRequestError(f"{field}.tool_calls is for the assistant only", field=f"{field}.tool_calls")
        if self.role == "tool":
            if self.tool_call_id is None:
                message_ = f"{field}.tool_call_id is missing: a tool's message answers a call"
                raise InvalidRequestError(message_, field=f"{field}.tool_call_id")
            message["tool_call_id"] = self.tool_call_id
        return message

    def _content(self, field: str) -> str | list[dict[str, str]] | None:
        if self.content is None and self.role == "assistant" and (self.tool_calls or self.refusal or self._thought):
            return self.refusal
        if self.content is None:
            raise InvalidRequestError(f"{field}.content is missing", field=f"{field}.content")
        return self.content

    @property
    def _thought(self) -> str | None:
        return self.reasoning_content or self.reasoning
