"""/v1/chat/completions: what a request may hold, and how choices are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType
from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema

from quire.errors import InvalidRequestError
from quire.gateway.chat.deltas import ChatDelta, ChatFinishReason, merge_chat_deltas
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.openai.frames import finite
from quire.gateway.openai.protocol import OpenAIRequest, check_extra
from quire.gateway.openai.tokens import TokenView
from quire.outputs import TokenLogprobs
from quire.sampling_params import SamplingParams

# The same for a chat message: clients send back what they received, with its empty fields.
_NOT_IMPLEMENTED_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


def _parse_content(value: object) -> str:
    """A message's content: a text, or text parts, which are joined by line ends as vLLM does."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string or a list of text parts")
    texts: list[str] = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"part {index} is not a text part; the model takes text only")
        texts.append(part["text"])
    return "\n".join(texts)


_CONTENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}},
        },
    ]
}

Content = Annotated[str, PlainValidator(_parse_content), WithJsonSchema(_CONTENT_SCHEMA)]


class ChatMessage(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None

    def to_template(self) -> dict[str, str]:
        """As chat templates expect it; the models' word for a developer's message is system."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        return message if self.name is None else {**message, "name": self.name}


class ChatCompletionRequest(OpenAIRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def prompt(self) -> ChatPrompt:
        """The messages, for the model's chat template. Raises InvalidRequestError."""
        for index, message in enumerate(self.messages):
            check_extra(message.model_extra or {}, _NOT_IMPLEMENTED_IN_MESSAGE, prefix=f"messages[{index}].")
        return ChatPrompt([message.to_template() for message in self.messages])

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs requires logprobs to be true", field="top_logprobs")
        return self._sampling_params((self.top_logprobs or 0) if self.logprobs else None)

    def _names(self) -> dict[str, str]:
        return {**super()._names(), "logprobs": "top_logprobs"}


class TopLogprob(Struct):
    """One token of a position's distribution."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobFrame(Struct):
    """One position of a chat's `logprobs`."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """`logprobs` of a chat."""

    content: list[TokenLogprobFrame]
    refusal: None = None


class ChatMessageFrame(Struct):
    """The assistant's message."""

    role: str
    content: str
    refusal: None = None


class ChatDeltaFrame(Struct):
    """What is new in the assistant's message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    """A choice of a chat; `delta` in a stream, `message` otherwise."""

    index: int
    delta: ChatDeltaFrame | UnsetType = UNSET
    message: ChatMessageFrame | UnsetType = UNSET
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: str | int | None
    # With return_token_ids.
    token_ids: Sequence[int] | UnsetType = UNSET


class ChatShape:
    """/v1/chat/completions."""

    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    service_tier: str | UnsetType = "default"

    def __init__(self, tokens: TokenView) -> None:
        self._tokens = tokens
        self._opened: set[int] = set()

    def chunk(self, delta: ChatDelta, index: int) -> ChatChoice | None:
        """See Shape; a choice's first chunk carries the role."""
        if not (delta.content or delta.finish_reason or delta.logprobs or self._tokens.with_ids):
            return None
        role = UNSET if index in self._opened else "assistant"
        self._opened.add(index)
        return self._choice(delta, index, delta=ChatDeltaFrame(role, delta.content))

    def whole(self, deltas: Sequence[ChatDelta], index: int) -> ChatChoice:
        """See Shape."""
        turn = merge_chat_deltas(deltas)
        return self._choice(turn, index, message=ChatMessageFrame("assistant", turn.content))

    def _choice(
        self,
        source: ChatDelta,
        index: int,
        *,
        delta: ChatDeltaFrame | UnsetType = UNSET,
        message: ChatMessageFrame | UnsetType = UNSET,
    ) -> ChatChoice:
        return ChatChoice(
            index=index,
            delta=delta,
            message=message,
            logprobs=self._logprobs(source.logprobs),
            finish_reason=source.finish_reason,
            stop_reason=source.stop_reason,
            token_ids=self._tokens.ids(source.token_ids),
        )

    def _logprobs(self, positions: Sequence[TokenLogprobs] | None) -> ChatLogprobs | None:
        if positions is None:
            return None
        return ChatLogprobs(
            [
                TokenLogprobFrame(
                    *self._entry(position.token_id, position.logprob),
                    [TopLogprob(*self._entry(token_id, logprob)) for token_id, logprob in position.top],
                )
                for position in positions
            ]
        )

    def _entry(self, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        return self._tokens.text_of(token_id), finite(logprob), list(self._tokens.bytes_of(token_id))
