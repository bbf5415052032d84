"""Requests and their sequences, and the states a sequence goes through."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from quire.internal.v1 import executor_pb2
from quire.kv_journal import HASH_BYTES
from quire.scheduler.block_pool import Block, CachedPrefix
from quire.scheduler.swap_tier import HostCopy
from quire.scheduler.tenants import TenantAccount
from quire.v1 import generate_pb2

if TYPE_CHECKING:
    from quire.scheduler.beam_group import BeamGroup


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # not yet computed, or waiting for its siblings' prompt
    RUNNING = "running"  # holds blocks and a slot
    PREEMPTED = "preempted"  # lost its blocks; waits to be recomputed
    STOPPED = "stopped"  # end-of-sequence or stop token
    LENGTH_CAPPED = "length_capped"  # max_tokens or the context is used up
    POOLED = "pooled"  # gave its embedding
    ABORTED = "aborted"


_ENDS: Final = frozenset(
    {SequenceStatus.STOPPED, SequenceStatus.LENGTH_CAPPED, SequenceStatus.POOLED, SequenceStatus.ABORTED}
)

# A preempted sequence can still stop: the token that stops it may have been in flight.
TRANSITIONS: Final[dict[SequenceStatus, frozenset[SequenceStatus]]] = {
    SequenceStatus.WAITING: frozenset({SequenceStatus.RUNNING, SequenceStatus.ABORTED}),
    SequenceStatus.RUNNING: frozenset({SequenceStatus.PREEMPTED}) | _ENDS,
    SequenceStatus.PREEMPTED: frozenset({SequenceStatus.RUNNING}) | _ENDS,
    SequenceStatus.STOPPED: frozenset(),
    SequenceStatus.LENGTH_CAPPED: frozenset(),
    SequenceStatus.POOLED: frozenset(),
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
    # Enters every prefix hash: a digest (`extra_key_digest`), or empty.
    extra_key: bytes = b""
    tenant: TenantAccount = field(default_factory=TenantAccount)
    constraints: executor_pb2.Constraints = field(default_factory=executor_pb2.Constraints)
    # Lower is scheduled first.
    priority: int = 0
    # If set, nothing is sampled.
    pooling: generate_pb2.PoolingType.ValueType = generate_pb2.POOLING_TYPE_UNSPECIFIED
    sequences: list[Sequence] = field(default_factory=list)
    # Sequences that will share the first one's prompt blocks once these are planned.
    unforked: list[Sequence] = field(default_factory=list)
    # Prompt tokens that were in the prefix cache when the request first ran; None before that.
    num_cached_tokens: int | None = None
    start_reported: bool = False
    # CLOCK_MONOTONIC nanoseconds: its submission, and the planning of its first step; 0 before.
    submitted_ns: int = 0
    first_planned_ns: int = 0
    # W3C trace context of the gateway's span; empty: it is not traced.
    trace_parent: str = ""
    # Leading tokens of the prompt whose logprobs are known; the first has none.
    num_scored_tokens: int = 1
    # Its reader lags: none of its sequences runs or queues.
    is_paused: bool = False
    # Steps of it that were lost while it got nowhere (`lost_steps.py`), and how far it was.
    num_lost_steps: int = 0
    progress_at_loss: int = -1
    num_tokens_at_loss: int = -1
    # Tokens that end a sequence. The sampler cannot choose one before min_tokens, so only the token itself counts.
    ending_token_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.extra_key) not in (0, HASH_BYTES):
            raise ValueError(f"an extra key has {HASH_BYTES} bytes or none, not {len(self.extra_key)}")
        end_of_sequence = frozenset() if self.params.ignore_eos else self.eos_token_ids
        self.ending_token_ids = end_of_sequence.union(self.params.stop_token_ids)

    @property
    def is_pooling(self) -> bool:
        """Whether it wants an embedding and no tokens."""
        return self.pooling != generate_pb2.POOLING_TYPE_UNSPECIFIED

    @property
    def is_finished(self) -> bool:
        return all(sequence.is_finished for sequence in self.sequences)

    @property
    def num_known_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self.sequences)


def arrival_order(priority: int, arrival: int) -> int:
    """(priority, arrival) as one number, since sequences are compared in every step; arrivals are below 2**64."""
    return (priority << 64) + arrival


class Sequence:
    """One continuation of a request's prompt.

    `num_computed_tokens` counts the tokens whose KV is written or planned, and chases `num_tokens`, which counts
    the known tokens and those that steps in flight will sample.
    """

    __slots__ = (
        "beams",
        "block_hashes",
        "blocks",
        "cumulative_logprob",
        "decode_end",
        "ending_token_ids",
        "host_hits",
        "index",
        "is_finished",
        "known_prefix",
        "lane",
        "last_step",
        "max_num_tokens",
        "num_computed_tokens",
        "num_hashed_blocks",
        "num_paid_tokens",
        "num_prefetched_blocks",
        "num_prompt_tokens",
        "num_sent_blocks",
        "num_tokens",
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
        # By priority and arrival (`arrival_order`); ties do not exist. The least favoured is the last.
        self.order = order
        # Of beam search: the beams of the request, and the sum of the output's logprobs.
        self.beams: BeamGroup | None = None
        self.cumulative_logprob = 0.0
        self.status = SequenceStatus.WAITING
        self.is_finished = False
        self.token_ids = array("I", prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.token_ids.extend(output_token_ids)
        self.max_num_tokens = min(self.num_prompt_tokens + request.params.max_tokens, max_model_len)
        if request.is_pooling:
            # One that is never sampled, so that the whole prompt is computed.
            self.max_num_tokens = self.num_prompt_tokens + 1
        self.ending_token_ids = request.ending_token_ids
        self.num_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        # Leading tokens of the prompt that its tenant was charged for; of a resubmission all.
        self.num_paid_tokens = self.num_prompt_tokens if request.attempt else 0
        # While `num_computed_tokens` is below this, the next step is a plain decode: one token, which is sampled
        # from, written into a block that the sequence has and that nobody else uses.
        self.decode_end = 0
        self.blocks: list[Block] = []
        # Of a sequence that is about to be planned: what follows these blocks in the swap tier.
        self.host_hits: list[HostCopy] = []
        # Leading blocks of its prompt that were brought in from there while it waited.
        self.num_prefetched_blocks = 0
        # The leading blocks that can be found by others, and the prefix that they make.
        self.num_hashed_blocks = 0
        self.known_prefix: CachedPrefix | None = None
        # Chained hashes of the leading blocks' content, as far as they were needed. They outlive the blocks, so that a
        # sequence that has to wait or to come back is not hashed again.
        self.block_hashes: list[bytes] = []
        # Where it runs: the executor, the place in its table, the leading blocks it was told of.
        self.lane = 0
        self.slot: int | None = None
        self.num_sent_blocks = 0
        # The latest step of its lane that names its blocks.
        self.last_step = 0

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def width(self) -> int:
        """Slots it takes: a beam starts and is preempted with all others."""
        return 1 if self.beams is None else len(self.beams.sequences)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether there are tokens of the prompt whose logprobs are asked for and not known."""
        request = self.request
        return request.params.HasField("prompt_logprobs") and request.num_scored_tokens < self.num_prompt_tokens

    @property
    def max_prefix_hit(self) -> int:
        """Leading tokens that need not be computed if their KV is there: never the last one, to sample from."""
        if self.request.pooling == generate_pb2.POOLING_TYPE_MEAN:
            return 0
        if self.wants_prompt_logprobs:
            return self.request.num_scored_tokens - 1
        return len(self.token_ids) - 1

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that may be computed now; the last token a sequence can have is sampled but never computed."""
        if self.num_tokens >= self.max_num_tokens:
            return 0
        return self.num_tokens - self.num_computed_tokens

    def move_to(self, status: SequenceStatus) -> None:
        """The only place where a status changes. Raises ValueError for a move that the table does not allow."""
        if status not in TRANSITIONS[self.status]:
            raise ValueError(f"{self} cannot become {status.value}")
        self.status = status
        self.is_finished = status in _ENDS

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id}/{self.index}, {self.status.value}, "
            f"{self.num_computed_tokens}/{self.num_tokens} tokens, {len(self.blocks)} blocks)"
        )
