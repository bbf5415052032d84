"""The tools of a chat request."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from quire.gateway.chat.prompt import Tool, ToolChoice


class FunctionDefinition(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(BaseModel):
    """One of `tools`; there are functions only."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: FunctionDefinition

    def to_tool(self) -> Tool:
        """As chats have it."""
        function = self.function
        return Tool(function.name, function.description or "", function.parameters or {}, function.strict is True)


class _FunctionName(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


class NamedToolChoice(BaseModel):
    """The function that must be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: _FunctionName


ToolChoiceOption = Literal["none", "auto", "required"] | NamedToolChoice


def to_tool_choice(option: ToolChoiceOption | None) -> ToolChoice:
    """As chats have it."""
    if isinstance(option, NamedToolChoice):
        return ToolChoice("named", option.function.name)
    return ToolChoice(option or "auto")
