"""The items of a request's `input`, and the chat that they make."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from quire.errors import InvalidRequestError
from quire.gateway.chat.transcript import Transcript
from quire.gateway.request_fields import Only, tag_of

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputText(_Part):
    """What somebody says to the model."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Any = None


class OutputText(_Part):
    """What the model has said."""

    type: Literal["output_text"]
    text: str
    annotations: Any = None
    logprobs: Any = None
    # Which openai-python adds to what it has parsed.
    parsed: Any = None


class Refusal(_Part):
    """What the model has said instead."""

    type: Literal["refusal"]
    refusal: str


class ReasoningText(_Part):
    """What the model has thought, or a summary of it."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


_TEXT_ONLY = Discriminator(
    tag_of(),
    custom_error_type="unsupported_part",
    custom_error_message="is not a text part; the model takes text only",
)
_Content = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[Refusal, Tag("<refusal>")],
    _TEXT_ONLY,
]
_Texts = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[list[_Content], Tag("<list>")],
    Discriminator(tag_of(), custom_error_type="texts", custom_error_message="must be a string or a list of text parts"),
]


class _Item(BaseModel, ABC):
    # By name too, as openai-python's model_dump() writes them.
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    # As the answer had them; they say nothing to the model.
    id: str | None = None
    status: ItemStatus | None = None

    @abstractmethod
    def add_to(self, transcript: Transcript, field: str) -> None:
        """Adds itself to a chat; `field` is its own name. Raises InvalidRequestError."""


class InputMessage(_Item):
    """What one side said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: _Texts
    phase: Literal["commentary", "final_answer"] | None = None

    def add_to(self, transcript: Transcript, field: str) -> None:
        """See _Item; the models' word for a developer's message is system."""
        if self.role == "assistant":
            transcript.answer(_joined(self.content))
        else:
            transcript.say("system" if self.role == "developer" else self.role, _joined(self.content))


class InputFunctionCall(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    # JSON.
    arguments: str
    caller: Any = None
    namespace: Annotated[Any, Only()] = None
    async_: Annotated[Any, Only(False)] = Field(None, alias="async")
    # Which openai-python adds to what it has parsed.
    parsed_arguments: Any = None

    def add_to(self, transcript: Transcript, field: str) -> None:
        """See _Item; templates take arguments as an object."""
        name = f"{field}.arguments"
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            raise InvalidRequestError(f"{name} is not valid JSON", field=name) from None
        if not isinstance(arguments, dict):
            raise InvalidRequestError(f"{name} is not a JSON object", field=name)
        transcript.call(self.call_id, self.name, arguments)


class InputFunctionCallOutput(_Item):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: _Texts
    name: str | None = None
    caller: Any = None
    namespace: Annotated[Any, Only()] = None

    def add_to(self, transcript: Transcript, field: str) -> None:
        """See _Item."""
        transcript.result(self.call_id, _joined(self.output), field=f"{field}.call_id")


class InputReasoning(_Item):
    """What the model thought; its own words if they are there, else a summary of them."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: Annotated[
        Any, Only(reason="cannot be read by this server, which sends and takes reasoning in the clear, as content")
    ] = None

    def add_to(self, transcript: Transcript, field: str) -> None:
        """See _Item."""
        if text := "\n".join(part.text for part in self.content or self.summary or ()):
            transcript.think(text)


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[InputFunctionCall, Tag("<function_call>")]
    | Annotated[InputFunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[InputReasoning, Tag("<reasoning>")],
    Discriminator(
        tag_of(default="message"),
        custom_error_type="unsupported_item",
        custom_error_message="is no item of a type that this server takes: message, function_call, "
        "function_call_output or reasoning",
    ),
]
Input = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[list[Item], Tag("<list>")],
    Discriminator(tag_of(), custom_error_type="input", custom_error_message="must be a string or a list of items"),
]


def to_messages(instructions: str | None, given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The chat, as templates expect it. Raises InvalidRequestError for items that do not fit together."""
    transcript = Transcript()
    if instructions is not None:
        transcript.say("system", instructions)
    if isinstance(given, str):
        transcript.say("user", given)
    else:
        for index, item in enumerate(given):
            item.add_to(transcript, f"input[{index}]")
    return transcript.messages


def _joined(content: str | Sequence[InputText | OutputText | Refusal]) -> str:
    """Parts are joined by line ends, as vLLM does."""
    if isinstance(content, str):
        return content
    return "\n".join(part.refusal if isinstance(part, Refusal) else part.text for part in content)
