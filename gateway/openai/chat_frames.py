"""/v1/chat/completions: how choices are written."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from quire.gateway.chat.deltas import ChatDelta, ChatFinishReason, ToolCallDelta, merge_chat_deltas
from quire.gateway.openai.chat import ChatCompletionRequest
from quire.gateway.openai.token_logprobs import TokenLogprobFrame, logprob_frames
from quire.gateway.openai.tokens import TokenView
from quire.outputs import TokenLogprobs


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
        return ChatLogprobs(logprob_frames(positions, self._tokens))


def _new_in_call(call: ToolCallDelta) -> ToolCallFrame:
    if call.name is None:
        return ToolCallFrame(FunctionFrame(call.arguments), call.index)
    return ToolCallFrame(FunctionFrame(call.arguments, call.name), call.index, call.id or "", "function")


def _whole_call(call: ToolCallDelta) -> ToolCallFrame:
    return ToolCallFrame(FunctionFrame(call.arguments, call.name or ""), UNSET, call.id or "", "function")
