"""Requests and their sequences, and the states a sequence goes through."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from quire.scheduler.block_pool import Block, CachedPrefix
from quire.v1 import generate_pb2


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # not yet computed, or waiting for its siblings' prompt
    RUNNING = "running"  # holds blocks and a slot
    PREEMPTED = "preempted"  # lost its blocks; waits to be recomputed
    STOPPED = "stopped"  # end-of-sequence or stop token
    LENGTH_CAPPED = "length_capped"  # max_tokens or the context is used up
    ABORTED = "aborted"


_ENDS: Final = frozenset({SequenceStatus.STOPPED, SequenceStatus.LENGTH_CAPPED, SequenceStatus.ABORTED})

# A preempted sequence can still stop: the token that stops it may have been in flight.
TRANSITIONS: Final[dict[SequenceStatus, frozenset[SequenceStatus]]] = {
    SequenceStatus.WAITING: frozenset({SequenceStatus.RUNNING, SequenceStatus.ABORTED}),
    SequenceStatus.RUNNING: frozenset({SequenceStatus.PREEMPTED}) | _ENDS,
    SequenceStatus.PREEMPTED: frozenset({SequenceStatus.RUNNING}) | _ENDS,
    SequenceStatus.STOPPED: frozenset(),
    SequenceStatus.LENGTH_CAPPED: frozenset(),
    SequenceStatus.ABORTED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Names a request for as long as it runs."""

    gateway_id: str
    number: int


@dataclass(slots=True, eq=False)
class Request:
    """What a gateway submitted: one prompt and its n sequences."""

    key: RequestKey
    request_id: str
    attempt: int
    params: generate_pb2.SamplingParams
    eos_token_ids: frozenset[int]
    # Enters every prefix hash.
    extra_key: bytes = b""
    sequences: list[Sequence] = field(default_factory=list)
    # Sequences that will share the first one's prompt blocks once these are planned.
    unforked: list[Sequence] = field(default_factory=list)
    # Prompt tokens that were in the prefix cache when the request first ran; None before that.
    num_cached_tokens: int | None = None
    start_reported: bool = False

    @property
    def is_finished(self) -> bool:
        return all(sequence.is_finished for sequence in self.sequences)


class Sequence:
    """One continuation of a request's prompt.

    `num_computed_tokens` counts the tokens whose KV is written or planned, and chases `num_tokens`, which counts
    the known tokens and those that steps in flight will sample.
    """

    __slots__ = (
        "blocks",
        "index",
        "known_prefix",
        "lane",
        "last_step",
        "max_num_tokens",
        "num_computed_tokens",
        "num_hashed_blocks",
        "num_placeholders",
        "num_prompt_tokens",
        "num_sent_blocks",
        "num_steps_in_flight",
        "order",
        "request",
        "slot",
        "status",
        "token_ids",
    )

    def __init__(
        self,
        request: Request,
        index: int,
        prompt_token_ids: Iterable[int],
        output_token_ids: Iterable[int],
        max_model_len: int,
        order: int,
    ) -> None:
        self.request = request
        self.index = index
        # Arrival order; ties between a request's sequences do not exist. The least favoured is the last.
        self.order = order
        self.status = SequenceStatus.WAITING
        self.token_ids = array("I", prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.token_ids.extend(output_token_ids)
        self.max_num_tokens = min(self.num_prompt_tokens + request.params.max_tokens, max_model_len)
        # Tokens that steps in flight will sample.
        self.num_placeholders = 0
        self.num_computed_tokens = 0
        self.blocks: list[Block] = []
        # The leading blocks whose content is hashed, and the prefix that they make.
        self.num_hashed_blocks = 0
        self.known_prefix: CachedPrefix | None = None
        # Where it runs: the executor, the place in its table, the leading blocks it was told of.
        self.lane = 0
        self.slot: int | None = None
        self.num_sent_blocks = 0
        self.num_steps_in_flight = 0
        self.last_step = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_placeholders

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that may be computed now; the last token a sequence can have is sampled but never computed."""
        if self.num_tokens >= self.max_num_tokens:
            return 0
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether the next step computes more than the newest token."""
        return self.num_computed_tokens < self.num_tokens - 1

    @property
    def is_finished(self) -> bool:
        return self.status in _ENDS

    def move_to(self, status: SequenceStatus) -> None:
        """The only place where a status changes. Raises ValueError for a move that the table does not allow."""
        if status not in TRANSITIONS[self.status]:
            raise ValueError(f"{self} cannot become {status.value}")
        self.status = status

    def stop_status(self) -> SequenceStatus | None:
        """The end that the newest output token brings, if it brings one."""
        params, newest = self.request.params, self.token_ids[-1]
        # The sampler cannot choose a stop token before min_tokens, so only the token itself counts here.
        if newest in params.stop_token_ids or (not params.ignore_eos and newest in self.request.eos_token_ids):
            return SequenceStatus.STOPPED
        return SequenceStatus.LENGTH_CAPPED if len(self.token_ids) >= self.max_num_tokens else None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id}/{self.index}, {self.status.value}, "
            f"{self.num_computed_tokens}/{self.num_tokens} tokens, {len(self.blocks)} blocks)"
        )
