"""The blocks of a request's messages, and the chat that they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag

from quire.gateway.chat.transcript import Transcript
from quire.gateway.request_fields import Only, tag_of


class _Block(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", strict=True)

    # Prefixes are found in the cache without marks.
    cache_control: Any = None

    @abstractmethod
    def add_to(self, transcript: Transcript, role: str, field: str) -> None:
        """Adds itself to a chat; `field` is its own name. Raises InvalidRequestError."""


class TextBlock(_Block):
    """What somebody says."""

    type: Literal["text"]
    text: str
    citations: Annotated[Any, Only([])] = None

    def add_to(self, transcript: Transcript, role: str, field: str) -> None:
        """See _Block."""
        _say(transcript, role, self.text)


_TEXT_ONLY = Discriminator(
    tag_of(),
    custom_error_type="unsupported_block",
    custom_error_message="is not a text block; the model takes text only",
)
_NOT_CONTENT: dict[str, str] = {
    "custom_error_type": "content",
    "custom_error_message": "must be a string or a list of blocks",
}
Texts = Annotated[
    Annotated[str, Tag("<str>")]
    | Annotated[list[Annotated[Annotated[TextBlock, Tag("<text>")], _TEXT_ONLY]], Tag("<list>")],
    Discriminator(tag_of(), **_NOT_CONTENT),
]


class ThinkingBlock(_Block):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str
    # This server signs nothing.
    signature: str | None = None

    def add_to(self, transcript: Transcript, role: str, field: str) -> None:
        """See _Block."""
        transcript.think(self.thinking)


class ToolUseBlock(_Block):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: Any = None
    toolset_name: Annotated[Any, Only()] = None

    def add_to(self, transcript: Transcript, role: str, field: str) -> None:
        """See _Block."""
        transcript.call(self.id, self.name, self.input)


class ToolResultBlock(_Block):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None
    toolset_name: Annotated[Any, Only()] = None

    def add_to(self, transcript: Transcript, role: str, field: str) -> None:
        """See _Block; templates have no place for `is_error`, so the text says it."""
        text = joined(self.content or "")
        transcript.result(self.tool_use_id, f"Error: {text}" if self.is_error else text, field=f"{field}.tool_use_id")


_UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ToolResultBlock, Tag("<tool_result>")],
    Discriminator(
        tag_of(),
        custom_error_type="unsupported_block",
        custom_error_message="is no block of text or tool_result; the model takes text only",
    ),
]
_AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")],
    Discriminator(
        tag_of(),
        custom_error_type="unsupported_block",
        custom_error_message="is no block of text, thinking or tool_use",
    ),
]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | Sequence[_Block]

    def add_to(self, transcript: Transcript, field: str) -> None:
        """Adds itself to a chat; `field` is its own name. Raises InvalidRequestError."""
        if isinstance(self.content, str):
            _say(transcript, self.role, self.content)
        else:
            for index, block in enumerate(self.content):
                block.add_to(transcript, self.role, f"{field}.content[{index}]")


class UserMessage(_Message):
    """What the user says, and what calls gave."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("<str>")] | Annotated[list[_UserBlock], Tag("<list>")],
        Discriminator(tag_of(), **_NOT_CONTENT),
    ]


class AssistantMessage(_Message):
    """What the model said, thought and called."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("<str>")] | Annotated[list[_AssistantBlock], Tag("<list>")],
        Discriminator(tag_of(), **_NOT_CONTENT),
    ]


class SystemMessage(_Message):
    """What the developer says in between."""

    role: Literal["system"]
    content: Texts


def _role(value: object) -> str | None:
    return f"<{value.get('role')}>" if isinstance(value, dict) else None


Message = Annotated[
    Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[SystemMessage, Tag("<system>")],
    Discriminator(
        _role, custom_error_type="role", custom_error_message="must be an object whose role is user or assistant"
    ),
]


def to_messages(system: str | Sequence[TextBlock] | None, messages: Sequence[_Message]) -> list[dict[str, Any]]:
    """The chat, as templates expect it. Raises InvalidRequestError for blocks that do not fit together."""
    transcript = Transcript()
    if system:
        transcript.say("system", joined(system))
    for index, message in enumerate(messages):
        message.add_to(transcript, f"messages[{index}]")
    return transcript.messages


def joined(content: str | Sequence[TextBlock]) -> str:
    """Blocks are joined by line ends."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _say(transcript: Transcript, role: str, text: str) -> None:
    """The API makes one turn of several messages of the user's in a row, and so of several blocks."""
    if role == "assistant":
        transcript.answer(text)
    elif role == "user" and transcript.messages and transcript.messages[-1]["role"] == "user":
        transcript.messages[-1]["content"] += f"\n{text}"
    else:
        transcript.say(role, text)
