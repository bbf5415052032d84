"""A scheduler in miniature for tests of the executor: hands out blocks and builds StepPlans by hand."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quire.columns import pack_u32, unpack_u32
from quire.config import ExecutorSettings
from quire.executor.model import Model, load_model
from quire.executor.model_runner import ModelRunner
from quire.handover import Handover
from quire.internal.v1 import executor_pb2
from quire.kv_layout import KvPoolLayout
from quire.kv_pool import KvPool
from quire.v1 import generate_pb2

EPOCH = 7


def load(folder: Path, **settings: Any) -> Model:
    """A model with the settings of the command line."""
    values = {"model": str(folder), "device": "cpu", "listen": "127.0.0.1:0", **settings}
    return load_model(ExecutorSettings.load(values))


def pool_layout(model: Model, *, num_blocks: int = 256, block_size: int = 16, epoch: int = EPOCH) -> KvPoolLayout:
    return KvPoolLayout(block_size, num_blocks, 1, epoch, model.fingerprint, (model.cache_group,))


def attach_request(layout: KvPoolLayout, address: Path) -> executor_pb2.AttachKvPoolRequest:
    """What has an executor attach a pool that is handed over at a socket."""
    return executor_pb2.AttachKvPoolRequest(
        epoch=layout.epoch,
        num_blocks=layout.num_blocks,
        block_size=layout.block_size,
        handover_socket=str(address),
    )


@contextlib.contextmanager
def on_offer(pool: KvPool, address: Path) -> Iterator[executor_pb2.AttachKvPoolRequest]:
    """The same for whoever attaches it within the block, once, without an event loop."""
    with contextlib.closing(Handover(address, [pool.fd])) as handover:

        def hand_over() -> None:
            if select.select([handover], [], [], 30)[0]:
                handover.serve_one()

        thread = threading.Thread(target=hand_over)
        thread.start()
        try:
            yield attach_request(pool.layout, address)
        finally:
            thread.join()


def greedy(**fields: Any) -> generate_pb2.SamplingParams:
    """Parameters as the gateway sends them, temperature 0 unless given."""
    return generate_pb2.SamplingParams(**{"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, **fields})


@dataclass
class Planned:
    """What the driver knows of a sequence."""

    slot: int
    prompt: list[int]
    output: list[int]
    params: generate_pb2.SamplingParams
    sequence_index: int = 0
    eos_token_ids: tuple[int, ...] = ()
    pooling: generate_pb2.PoolingType.ValueType = generate_pb2.POOLING_TYPE_UNSPECIFIED
    constraints: executor_pb2.Constraints | None = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    sent_blocks: int = 0
    sent: bool = False
    # Tokens sampled in steps whose results were not looked at yet.
    in_flight: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output) + self.in_flight

    def message(self) -> executor_pb2.NewSequence:
        return executor_pb2.NewSequence(
            slot=self.slot,
            sequence_index=self.sequence_index,
            prompt_token_ids=pack_u32(self.prompt),
            output_token_ids=pack_u32(self.output),
            sampling_params=self.params,
            eos_token_ids=pack_u32(self.eos_token_ids),
            pooling=self.pooling,
            constraints=self.constraints,
        )


class StepPlanner:
    """Builds plans, each block used once."""

    def __init__(self, block_size: int = 16, epoch: int = EPOCH) -> None:
        self.block_size = block_size
        self.epoch = epoch
        self.step = 0
        self.sequences: dict[int, Planned] = {}
        self._next_block = 0
        self._finished: list[int] = []

    def add(
        self,
        prompt: Iterable[int],
        params: generate_pb2.SamplingParams | None = None,
        *,
        slot: int | None = None,
        output: Iterable[int] = (),
        **fields: Any,
    ) -> int:
        """Announces a sequence with the next plan that computes some of it; returns its slot."""
        slot = len(self.sequences) if slot is None else slot
        self.sequences[slot] = Planned(slot, list(prompt), list(output), params or greedy(), **fields)
        return slot

    def finish(self, slot: int) -> None:
        del self.sequences[slot]
        self._finished.append(slot)

    def reserve(self, slot: int, num_tokens: int) -> list[int]:
        """Gives a sequence blocks for that many tokens in all; returns its block table."""
        blocks = self.sequences[slot].blocks
        while len(blocks) * self.block_size < num_tokens:
            blocks.append(self._next_block)
            self._next_block += 1
        return blocks

    def share(self, source: int, target: int, num_blocks: int) -> None:
        """The target's first blocks are the source's, and count as computed: a prefix hit."""
        self.sequences[target].blocks = self.sequences[source].blocks[:num_blocks]
        self.sequences[target].computed = num_blocks * self.block_size

    def plan(self, rows: Mapping[int, int], copies: Mapping[int, int] | None = None) -> executor_pb2.StepPlan:
        """Computes `rows[slot]` tokens of each slot, and samples where that reaches the last one."""
        self.step += 1
        members = [self.sequences[slot] for slot in rows]
        new = [planned.message() for planned in members if not planned.sent]
        samples, kept, appended, block_ids = [], [], [], []
        for planned, count in zip(members, rows.values(), strict=True):
            planned.sent = True
            end = planned.computed + count
            self.reserve(planned.slot, end)
            kept.append(planned.sent_blocks)
            appended.append(len(planned.blocks) - planned.sent_blocks)
            block_ids += planned.blocks[planned.sent_blocks :]
            planned.sent_blocks = len(planned.blocks)
            samples.append(end == planned.num_tokens and not planned.pooling)
        plan = executor_pb2.StepPlan(
            epoch=self.epoch,
            step=self.step,
            copy_sources=pack_u32(copies or {}),
            copy_destinations=pack_u32((copies or {}).values()),
            finished_slots=pack_u32(self._finished),
            new_sequences=new,
            slots=pack_u32(rows),
            computed_tokens=pack_u32(planned.computed for planned in members),
            query_lengths=pack_u32(rows.values()),
            samples=bytes(samples),
            block_tables=[
                executor_pb2.BlockTableUpdate(
                    cache_group=0, kept=pack_u32(kept), appended=pack_u32(appended), block_ids=pack_u32(block_ids)
                )
            ],
        )
        self._finished = []
        for planned, count, sampled in zip(members, rows.values(), samples, strict=True):
            planned.computed += count
            planned.in_flight += sampled
        return plan

    def accept(self, result: executor_pb2.StepResult) -> dict[int, int]:
        """Takes the sampled tokens in; returns them by slot."""
        sampled = dict(zip(unpack_u32(result.slots), unpack_u32(result.token_ids), strict=True))
        for slot, token in sampled.items():
            if slot in self.sequences:
                self.sequences[slot].output.append(token)
                self.sequences[slot].in_flight -= 1
        return sampled


class StepDriver(StepPlanner):
    """A planner with a model runner behind it."""

    def __init__(self, model: Model, folder: Path, *, num_blocks: int = 256, block_size: int = 16) -> None:
        super().__init__(block_size)
        self.runner = ModelRunner(model)
        self._layout = pool_layout(model, num_blocks=num_blocks, block_size=block_size)
        self.attach(folder)

    def attach(self, folder: Path) -> None:
        """Gives the runner a new pool."""
        with KvPool.create_memfd(self._layout) as pool, on_offer(pool, folder / "kv-pool.sock") as request:
            self.runner.attach(request)

    def run(self, rows: Mapping[int, int], copies: Mapping[int, int] | None = None) -> executor_pb2.StepResult:
        """Plans and executes a step."""
        result = self.runner.execute(self.plan(rows, copies))
        self.accept(result)
        return result

    def generate(self, slot: int, count: int, chunk: int = 10_000) -> list[int]:
        """Computes a sequence in chunks until `count` tokens were sampled in all."""
        planned = self.sequences[slot]
        while len(planned.output) < count:
            self.run({slot: min(chunk, planned.num_tokens - planned.computed)})
        return planned.output


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random bytes as token ids."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, length)]


def log_distribution(result: executor_pb2.StepResult, row: int, vocab_size: int) -> NDArray[np.float64]:
    """The log-softmax of a row that asked for `vocab_size` logprobs."""
    entry = next(entry for entry in result.logprobs if entry.row == row)
    values = np.full(vocab_size, np.nan)
    values[list(entry.logprobs.top_token_ids)] = entry.logprobs.top_logprobs
    assert not np.isnan(values).any()
    return values
