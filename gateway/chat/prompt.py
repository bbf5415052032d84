"""What a client asks for in a chat, before the model's template makes a prompt of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    # A JSON Schema of the arguments.
    parameters: Mapping[str, Any] = field(default_factory=dict)
    # Whether arguments must follow the schema.
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model calls: as it likes, never, at least once, or the function `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages to be rendered with the model's chat template.

    `messages` are as templates expect them: `role`, `content`, and perhaps `name`, `tool_calls` (whose arguments are
    objects, not JSON text), `tool_call_id`, `reasoning_content`.
    """

    messages: Sequence[Mapping[str, Any]]
    # Whether the template opens the assistant's turn.
    add_generation_prompt: bool = True
    # Whether the answer continues the last message instead.
    continue_final_message: bool = False
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    # Further variables of the template.
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
