"""Whether tools can be called as asked, and how they are shown to chat templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt, Tool

# OpenAI's, both of them.
MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# What a function without `parameters` takes.
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def check_tools(prompt: ChatPrompt) -> None:
    """Raises InvalidRequestError, naming the field as OpenAI's chats have it."""
    if len(prompt.tools) > MAX_TOOLS:
        raise InvalidRequestError(f"there are {len(prompt.tools)} tools; at most {MAX_TOOLS} are taken", field="tools")
    names: set[str] = set()
    for index, tool in enumerate(prompt.tools):
        _check_tool(tool, f"tools[{index}].function")
        if tool.name in names:
            field = f"tools[{index}].function.name"
            raise InvalidRequestError(f"{field}: there is another function {tool.name!r}", field=field)
        names.add(tool.name)
    choice = prompt.tool_choice
    if choice.mode in ("required", "named") and not prompt.tools:
        raise InvalidRequestError("tool_choice asks for a call, but there are no tools", field="tool_choice")
    if choice.mode == "named" and choice.name not in names:
        raise InvalidRequestError(f"tool_choice names {choice.name!r}, which is not in tools", field="tool_choice")


def _check_tool(tool: Tool, field: str) -> None:
    if not _NAME.fullmatch(tool.name):
        message = f"{field}.name must be 1 to 64 letters, digits, underscores and dashes, not {tool.name[:80]!r}"
        raise InvalidRequestError(message, field=f"{field}.name")
    kind = tool.parameters.get("type", "object")
    if kind != "object":
        message = f'{field}.parameters must be a JSON Schema of an object; its type is {kind!r}, not "object"'
        raise InvalidRequestError(message, field=f"{field}.parameters")
    if not isinstance(tool.parameters.get("properties", {}), Mapping):
        message = f"{field}.parameters.properties must be an object"
        raise InvalidRequestError(message, field=f"{field}.parameters")


def callable_tools(prompt: ChatPrompt) -> list[Tool]:
    """Those that the model may call, and is shown."""
    return [] if prompt.tool_choice.mode == "none" else list(prompt.tools)


def to_template(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates expect it."""
    description = {"description": tool.description} if tool.description else {}
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": tool.name, **description, "parameters": dict(parameters)}}
