"""/v1/chat/completions: what a request may hold, and how choices are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from quire.errors import InvalidRequestError
from quire.gateway.chat.deltas import ChatDelta, ChatFinishReason, ToolCallDelta, merge_chat_deltas
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.openai.chat_messages import ChatMessage
from quire.gateway.openai.chat_tools import NamedToolChoice, ToolChoiceOption, ToolDefinition, to_tool_choice
from quire.gateway.openai.frames import finite
from quire.gateway.openai.protocol import OpenAIRequest
from quire.gateway.openai.tokens import TokenView
from quire.outputs import TokenLogprobs
from quire.sampling_params import SamplingParams

# Variables of a template that other fields set, or nobody may.
_RESERVED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"})


class ChatCompletionRequest(OpenAIRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoiceOption | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    # Extensions, named as in vLLM.
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None

    @property
    def has_named_choice(self) -> bool:
        """Whether the client named the function to call."""
        return isinstance(self.tool_choice, NamedToolChoice)

    def prompt(self) -> ChatPrompt:
        """The chat, for the model's chat template. Raises InvalidRequestError."""
        messages = [message.to_template(f"messages[{index}]") for index, message in enumerate(self.messages)]
        if self.tool_choice not in (None, "none") and not self.tools:
            raise InvalidRequestError("tool_choice is only allowed where there are tools", field="tool_choice")
        continues = self.continue_final_message is True
        if continues and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt cannot both be true"
            raise InvalidRequestError(message, field="continue_final_message")
        return ChatPrompt(
            messages,
            add_generation_prompt=self.add_generation_prompt is not False and not continues,
            continue_final_message=continues,
            tools=[tool.to_tool() for tool in self.tools or ()],
            tool_choice=to_tool_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            template_kwargs=self._template_kwargs(),
        )

    def _template_kwargs(self) -> dict[str, Any]:
        own = self.chat_template_kwargs or {}
        if reserved := sorted(_RESERVED_VARIABLES & own.keys()):
            field = f"chat_template_kwargs.{reserved[0]}"
            raise InvalidRequestError(f"{field} is not the template's to take", field=field)
        given: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            # Templates know the one or the other.
            given["reasoning_effort"] = self.reasoning_effort
            given["enable_thinking"] = self.reasoning_effort != "none"
        if self.chat_template is not None:
            given["chat_template"] = self.chat_template
        if self.documents is not None:
            given["documents"] = self.documents
        return given | own

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


class FunctionFrame(Struct):
    """What a call says: the name on its first chunk, and JSON text."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallFrame(Struct):
    """A call; in a stream, what is new in it."""

    function: FunctionFrame
    # Of a stream.
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatMessageFrame(Struct):
    """The assistant's message."""

    role: str
    # None if there is something else.
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallFrame] | UnsetType = UNSET
    # The same under two names: older and newer clients of vLLM.
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


class ChatDeltaFrame(Struct):
    """What is new in the assistant's message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallFrame] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


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

    def __init__(self, tokens: TokenView, request: ChatCompletionRequest) -> None:
        self._tokens = tokens
        self._shows_reasoning = request.include_reasoning is not False
        # As OpenAI does: the client that named the function knows that the turn ends with a call.
        self._reason_of_calls: ChatFinishReason = "stop" if request.has_named_choice else "tool_calls"
        self._opened: set[int] = set()

    def chunk(self, delta: ChatDelta, index: int) -> ChatChoice | None:
        """See Shape; a choice's first chunk carries the role."""
        reasoning = self._reasoning(delta)
        opens = index not in self._opened
        says = delta.content or reasoning or delta.tool_calls or delta.finish_reason
        if not (opens or says or delta.logprobs or (self._tokens.with_ids and delta.token_ids)):
            return None
        self._opened.add(index)
        frame = ChatDeltaFrame(
            role="assistant" if opens else UNSET,
            content=delta.content if opens else delta.content or UNSET,
            tool_calls=[_new_in_call(call) for call in delta.tool_calls] or UNSET,
            reasoning_content=reasoning,
            reasoning=reasoning,
        )
        return self._choice(delta, index, delta=frame)

    def whole(self, deltas: Sequence[ChatDelta], index: int) -> ChatChoice:
        """See Shape."""
        turn = merge_chat_deltas(deltas)
        reasoning = self._reasoning(turn)
        frame = ChatMessageFrame(
            "assistant",
            turn.content or (None if turn.tool_calls or turn.reasoning_content else ""),
            tool_calls=[_whole_call(call) for call in turn.tool_calls] or UNSET,
            reasoning_content=reasoning,
            reasoning=reasoning,
        )
        return self._choice(turn, index, message=frame)

    def _reasoning(self, delta: ChatDelta) -> str | UnsetType:
        return delta.reasoning_content or UNSET if self._shows_reasoning else UNSET

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
            finish_reason=self._reason_of_calls if source.finish_reason == "tool_calls" else source.finish_reason,
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


def _new_in_call(call: ToolCallDelta) -> ToolCallFrame:
    if call.name is None:
        return ToolCallFrame(FunctionFrame(call.arguments), call.index)
    return ToolCallFrame(FunctionFrame(call.arguments, call.name), call.index, call.id or "", "function")


def _whole_call(call: ToolCallDelta) -> ToolCallFrame:
    return ToolCallFrame(FunctionFrame(call.arguments, call.name or ""), UNSET, call.id or "", "function")
