"""Makes the response object of a request, and the items in it, from the turn that answers it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from quire.errors import QuireError
from quire.gateway.chat.blocks import Block, TurnBlocks
from quire.gateway.openai.responses.items import ItemStatus
from quire.gateway.openai.responses.objects import (
    FunctionCallItem,
    IncompleteDetails,
    InputTokensDetails,
    MessageItem,
    OutputItem,
    OutputTokensDetails,
    ReasoningItem,
    ReasoningPart,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    TextPart,
)
from quire.gateway.openai.responses.options import FunctionTool, NamedFunction, ReasoningConfig
from quire.gateway.openai.responses.request import ResponsesRequest
from quire.gateway.openai.token_logprobs import TokenLogprobFrame, logprob_frames
from quire.gateway.openai.tokens import TokenView
from quire.outputs import TokenLogprobs, Usage
from quire.sampling_params import LIBRARY_DEFAULTS, SamplingParams

_ID_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}


class ResponseAnswer:
    """Makes the response object of one request, as it stands at any time, and the items in it."""

    def __init__(
        self, request: ResponsesRequest, request_id: str, model: str, tokens: TokenView, defaults: SamplingParams
    ) -> None:
        """`defaults` are the model's."""
        self._request_id = request_id
        self._tokens = tokens
        # Before anything has come.
        self.running = ResponseObject(
            id=f"resp_{request_id}",
            created_at=int(time.time()),
            status="in_progress",
            model=model,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            metadata=request.metadata or {},
            parallel_tool_calls=request.parallel_tool_calls is not False,
            prompt_cache_key=request.prompt_cache_key,
            reasoning=_reasoning(request),
            safety_identifier=request.safety_identifier,
            temperature=_in_effect(request.temperature, defaults.temperature, LIBRARY_DEFAULTS.temperature),
            text=_text(request),
            tool_choice=_tool_choice(request),
            tools=[_tool(tool) for tool in request.tools or ()],
            top_logprobs=request.top_logprobs or 0,
            top_p=_in_effect(request.top_p, defaults.top_p, LIBRARY_DEFAULTS.top_p),
            truncation=request.truncation or "disabled",
            user=request.user,
        )

    def ended(self, turn: TurnBlocks, usage: Usage) -> ResponseObject:
        """With all items."""
        is_cut = turn.finish_reason == "length"
        return replace(
            self.running,
            status="incomplete" if is_cut else "completed",
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=IncompleteDetails() if is_cut else None,
            output=[self.item(block) for block in turn.blocks],
            usage=_usage(turn, usage),
        )

    def failed(self, turn: TurnBlocks, error: QuireError) -> ResponseObject:
        """With what there is."""
        return replace(
            self.running,
            status="failed",
            error=ResponseError("server_error", error.message),
            output=[self.item(block) for block in turn.blocks],
        )

    def item_id(self, block: Block) -> str:
        """Unique among all responses."""
        return f"{_ID_PREFIXES[block.kind]}_{self._request_id}_{block.index}"

    def new_item(self, block: Block) -> OutputItem:
        """A block before anything is in it."""
        return self._item(block, "in_progress", text=None)

    def item(self, block: Block) -> OutputItem:
        """A block as it stands, at its end."""
        return self._item(block, "completed" if block.complete else "incomplete", text=block.text)

    def _item(self, block: Block, status: ItemStatus, text: str | None) -> OutputItem:
        item_id = self.item_id(block)
        if block.kind == "call":
            return FunctionCallItem(item_id, status, block.call_id, block.name, text or "")
        if block.kind == "reasoning":
            return ReasoningItem(item_id, status, [] if text is None else [ReasoningPart(text)])
        return MessageItem(item_id, status, [] if text is None else [self.text_part(block)])

    def text_part(self, block: Block) -> TextPart:
        """A block of text as it stands."""
        return TextPart(block.text, logprobs=self.logprobs(block.logprobs))

    def logprobs(self, positions: Sequence[TokenLogprobs]) -> list[TokenLogprobFrame]:
        """Positions as the API writes them."""
        return logprob_frames(positions, self._tokens)


def _usage(turn: TurnBlocks, usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(turn.reasoning_tokens),
        usage.prompt_tokens + usage.completion_tokens,
    )


def _in_effect(*sources: float | None) -> float:
    """The first that is given; the library's always is."""
    return next(value for value in sources if value is not None)


def _reasoning(request: ResponsesRequest) -> dict[str, str | None]:
    asked = request.reasoning or ReasoningConfig()
    return {"effort": asked.effort, "summary": asked.summary or asked.generate_summary}


def _text(request: ResponsesRequest) -> dict[str, Any]:
    asked = None if request.text is None else request.text.format
    written = {"type": "text"} if asked is None else asked.model_dump(by_alias=True, exclude_none=True)
    return {"format": written, "verbosity": "medium"}


def _tool_choice(request: ResponsesRequest) -> str | dict[str, str]:
    choice = request.tool_choice
    return {"type": "function", "name": choice.name} if isinstance(choice, NamedFunction) else choice or "auto"


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict is True,
    }
