"""The response object and its items, as msgspec encodes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from quire.gateway.openai.responses.items import ItemStatus
from quire.gateway.openai.token_logprobs import TokenLogprobFrame

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class ReasoningPart(Struct, tag_field="type", tag="reasoning_text"):
    """Thoughts."""

    text: str


class TextPart(Struct, tag_field="type", tag="output_text"):
    """Words."""

    text: str
    annotations: Sequence[Any] = ()
    logprobs: Sequence[TokenLogprobFrame] = ()


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    """What the model thought, in its own words; a summary is never made."""

    id: str
    status: ItemStatus
    content: Sequence[ReasoningPart]
    summary: Sequence[Any] = ()
    encrypted_content: None = None


class MessageItem(Struct, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    status: ItemStatus
    content: Sequence[TextPart]
    role: str = "assistant"


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    """A call; `arguments` is JSON."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = ReasoningItem | MessageItem | FunctionCallItem


class InputTokensDetails(Struct):
    """Where the input's KV came from. Nothing is charged for keeping it."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """What the output's tokens were for."""

    reasoning_tokens: int


class ResponseUsage(Struct):
    """`usage`."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct):
    """Why a response is incomplete."""

    reason: str = "max_output_tokens"


class ResponseError(Struct):
    """Why a response failed."""

    code: str
    message: str


class ResponseObject(Struct, kw_only=True):
    """A response: what came of a request, and what was asked for."""

    id: str
    object: str = "response"
    created_at: int
    status: ResponseStatus
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: Sequence[OutputItem] = ()
    usage: ResponseUsage | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, str]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | None
    # One tier, nothing kept, nothing in the background.
    background: bool = False
    previous_response_id: None = None
    service_tier: str = "default"
    store: bool = False
