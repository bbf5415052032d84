"""An assistant's turn as blocks in their order: thought, text, calls. For APIs whose answers are lists of such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from quire.gateway.chat.deltas import ChatDelta, ChatFinishReason, ToolCallDelta
from quire.outputs import TokenLogprobs

BlockKind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """A stretch of one kind. A call's text is the JSON of its arguments."""

    index: int
    kind: BlockKind
    # Only of a call.
    call_id: str = ""
    name: str = ""
    num_tokens: int = 0
    # Only of text, if asked for.
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    # It came to its end: it was neither cut nor left.
    complete: bool = False
    _pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All so far."""
        return "".join(self._pieces)

    def append(self, piece: str) -> None:
        """Adds to the text."""
        self._pieces.append(piece)


@dataclass(frozen=True, slots=True)
class BlockStarted:
    """A block begins; it is empty."""

    block: Block


@dataclass(frozen=True, slots=True)
class BlockGrew:
    """A block's text went on."""

    block: Block
    text: str
    logprobs: Sequence[TokenLogprobs] = ()


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """A block is closed."""

    block: Block


BlockEvent = BlockStarted | BlockGrew | BlockEnded


class TurnBlocks:
    """Takes the deltas of one choice and cuts them into blocks, of which one at a time is open.

    A delta's tokens count for the last block that it adds to. Tokens that say nothing (the mark of a thought's start,
    half a character) count for the block that the next ones add to, and at the end of the turn for none.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.finish_reason: ChatFinishReason | None = None
        # The stop string or stop token of the request that ended it.
        self.stop_reason: str | int | None = None
        self._open: Block | None = None
        self._open_call: int | None = None
        self._silent_tokens = 0
        self._silent_logprobs: list[TokenLogprobs] = []

    @property
    def reasoning_tokens(self) -> int:
        return sum(block.num_tokens for block in self.blocks if block.kind == "reasoning")

    def add(self, delta: ChatDelta) -> list[BlockEvent]:
        """What a delta does to the blocks."""
        events: list[BlockEvent] = []
        self._silent_tokens += len(delta.token_ids)
        self._silent_logprobs += delta.logprobs or ()
        if delta.reasoning_content:
            self._grow(self._continue("reasoning", events), delta.reasoning_content, events)
        if delta.content:
            self._grow(self._continue("text", events), delta.content, events)
        for call in delta.tool_calls:
            self._grow(self._continue_call(call, events), call.arguments, events)
        if delta.reasoning_content or delta.content or delta.tool_calls:
            assert self._open is not None, "a delta that says something opens a block"
            self._open.num_tokens += self._silent_tokens
            self._silent_tokens = 0
            self._silent_logprobs = []
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
            self._close(events, complete=delta.finish_reason in ("stop", "tool_calls"))
        return events

    def _continue(self, kind: BlockKind, events: list[BlockEvent]) -> Block:
        if self._open is None or self._open.kind != kind:
            self._start(Block(len(self.blocks), kind), events)
        assert self._open is not None, "just opened"
        return self._open

    def _continue_call(self, call: ToolCallDelta, events: list[BlockEvent]) -> Block:
        if self._open is None or self._open.kind != "call" or self._open_call != call.index:
            self._start(Block(len(self.blocks), "call", call.id or "", call.name or ""), events)
            self._open_call = call.index
        assert self._open is not None, "just opened"
        return self._open

    def _start(self, block: Block, events: list[BlockEvent]) -> None:
        self._close(events, complete=True)
        self._open = block
        self.blocks.append(block)
        events.append(BlockStarted(block))

    def _grow(self, block: Block, text: str, events: list[BlockEvent]) -> None:
        if not text:
            return
        block.append(text)
        logprobs = self._silent_logprobs if block.kind == "text" else []
        block.logprobs += logprobs
        events.append(BlockGrew(block, text, logprobs))

    def _close(self, events: list[BlockEvent], *, complete: bool) -> None:
        if self._open is not None:
            self._open.complete = complete
            events.append(BlockEnded(self._open))
            self._open = None
