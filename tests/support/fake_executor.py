"""An executor without a model: it speaks the protocol of steps and keeps its KV in a dictionary.

What it stores for a token is a digest of every token before it, as real KV depends on the whole context. Reading
a context through the block table therefore notices every wrong, stale or missing block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from quire.columns import pack_u32, unpack_u32
from quire.internal.v1 import executor_pb2
from quire.scheduler.beam_search import Beam, BeamSearch, Candidate, Hypothesis
from quire.v1 import generate_pb2

VOCAB_SIZE = 50


def digests(token_ids: list[int]) -> list[bytes]:
    """For each token, the digest of it and all tokens before it."""
    chain, parent = [], b""
    for token_id in token_ids:
        parent = hashlib.blake2b(parent + token_id.to_bytes(4, "little"), digest_size=8).digest()
        chain.append(parent)
    return chain


def next_token(digest: bytes, sequence_index: int) -> int:
    """What the fake model samples after a context."""
    drawn = hashlib.blake2b(digest + bytes([sequence_index]), digest_size=4).digest()
    return int.from_bytes(drawn, "little") % VOCAB_SIZE


def true_output(prompt: list[int], sequence_index: int, max_tokens: int, stop: frozenset[int]) -> list[int]:
    """The tokens that a sequence must get, whatever else is computed."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(digests(tokens)[-1], sequence_index))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


def true_prompt_logprobs(prompt: list[int]) -> list[float]:
    """Of all tokens but the first."""
    return [score(digest, token_id) for digest, token_id in zip(digests(prompt), prompt[1:], strict=False)]


def score(digest: bytes, token_id: int) -> float:
    """The fake model's logprob of a token after a context."""
    return -float(int.from_bytes(digest[:2], "little") + token_id)


def true_embedding(prompt: list[int], pooling: int) -> bytes:
    """What stands for the state of the last token, or for the mean of all."""
    chain = digests(prompt)
    return chain[-1] if pooling == generate_pb2.POOLING_TYPE_LAST else b"".join(chain)


def likeliest(digest: bytes, count: int) -> list[Candidate]:
    """What the fake model finds likeliest after a context; logprobs that float32 holds, some of them equal."""
    drawn = hashlib.blake2b(digest, digest_size=VOCAB_SIZE).digest()
    return sorted(((token_id, -byte / 16) for token_id, byte in enumerate(drawn)), key=lambda pair: -pair[1])[:count]


def true_hypotheses(prompt: list[int], search: BeamSearch) -> list[Hypothesis]:
    """What a beam search must find: the search alone, without a scheduler."""
    beams: Sequence[Beam] = [Beam((), 0.0)]
    while beams:
        candidates = [likeliest(digests([*prompt, *beam.token_ids])[-1], search.num_candidates) for beam in beams]
        continuations = search.advance(beams, candidates)
        beams = [Beam((*beams[c.parent].token_ids, c.token_id), c.logprob) for c in continuations]
    return search.hypotheses


@dataclass
class _Sequence:
    index: int
    token_ids: list[int]
    blocks: list[int]
    num_logprobs: int
    num_prompt_tokens: int
    pooling: int
    scores_prompt: bool
    # Digests of the tokens computed so far, if it is pooled over all.
    pooled: list[bytes] = field(default_factory=list)


class FakeKvMemory:
    """What executors on one pool share."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[tuple[int, int], bytes] = {}
        # The same of the swap tier.
        self.host_slots: dict[tuple[int, int], bytes] = {}

    def copy_block(self, source: int, destination: int) -> None:
        self._copy(self.slots, source, self.slots, destination)

    def move(self, plan: executor_pb2.StepPlan) -> None:
        """Swaps out, then in."""
        outs = zip(unpack_u32(plan.swap_out_sources), unpack_u32(plan.swap_out_destinations), strict=True)
        for source, destination in outs:
            self._copy(self.slots, source, self.host_slots, destination)
        ins = zip(unpack_u32(plan.swap_in_sources), unpack_u32(plan.swap_in_destinations), strict=True)
        for source, destination in ins:
            self._copy(self.host_slots, source, self.slots, destination)

    def _copy(
        self, of: dict[tuple[int, int], bytes], source: int, to: dict[tuple[int, int], bytes], destination: int
    ) -> None:
        for offset in range(self.block_size):
            to.pop((destination, offset), None)
            if (source, offset) in of:
                to[destination, offset] = of[source, offset]


class FakeExecutor:
    """Computes steps in order."""

    def __init__(self, memory: FakeKvMemory) -> None:
        self.memory = memory
        self.sequences: dict[int, _Sequence] = {}

    def execute(self, plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
        """Moves, copies, stores, reads, samples. Raises AssertionError where the block tables are wrong."""
        self.memory.move(plan)
        copies = zip(unpack_u32(plan.copy_sources), unpack_u32(plan.copy_destinations), strict=True)
        for source, destination in copies:
            self.memory.copy_block(source, destination)
        for slot in unpack_u32(plan.finished_slots):
            self.sequences.pop(slot, None)
        for new in plan.new_sequences:
            token_ids = unpack_u32(new.prompt_token_ids) + unpack_u32(new.output_token_ids)
            self.sequences[new.slot] = _Sequence(
                new.sequence_index,
                token_ids,
                [],
                new.sampling_params.logprobs,
                len(new.prompt_token_ids) // 4,
                new.pooling,
                new.sampling_params.HasField("prompt_logprobs"),
            )
        for slot, token_id in zip(unpack_u32(plan.chosen_slots), unpack_u32(plan.chosen_token_ids), strict=True):
            self.sequences[slot].token_ids[-1] = token_id
        slots = unpack_u32(plan.slots)
        self._update_block_tables(plan, slots)
        rows = list(
            zip(slots, unpack_u32(plan.computed_tokens), unpack_u32(plan.query_lengths), plan.samples, strict=True)
        )
        for slot, computed, length, _ in rows:
            self._store(self.sequences[slot], computed, computed + length)
        sampled = [
            (slot, self._sample(self.sequences[slot], computed + length, bool(samples)))
            for slot, computed, length, samples in rows
        ]
        drawn = [(slot, token_id) for slot, token_id in sampled if token_id is not None]
        result = executor_pb2.StepResult(
            epoch=plan.epoch,
            step=plan.step,
            slots=pack_u32(slot for slot, _ in drawn),
            token_ids=pack_u32(token_id for _, token_id in drawn),
            logprobs=[
                executor_pb2.SampledLogprobs(row=row, logprobs=self._logprobs(self.sequences[slot]))
                for row, (slot, _) in enumerate(drawn)
                if self.sequences[slot].num_logprobs
            ],
        )
        for slot, computed, length, _ in rows:
            self._read(slot, computed, computed + length, result)
        return result

    @staticmethod
    def _logprobs(sequence: _Sequence) -> generate_pb2.TokenLogprobs:
        """Of the place of the token that was sampled last."""
        found = likeliest(digests(sequence.token_ids[:-1])[-1], sequence.num_logprobs)
        return generate_pb2.TokenLogprobs(
            top_token_ids=[token_id for token_id, _ in found], top_logprobs=[logprob for _, logprob in found]
        )

    def _read(self, slot: int, start: int, end: int, result: executor_pb2.StepResult) -> None:
        sequence = self.sequences[slot]
        prompt, chain = sequence.token_ids[: sequence.num_prompt_tokens], digests(sequence.token_ids[:end])
        if sequence.scores_prompt and start < min(end, len(prompt) - 1):
            scores = [score(chain[at], prompt[at + 1]) for at in range(start, min(end, len(prompt) - 1))]
            positions = [generate_pb2.TokenLogprobs(logprob=logprob) for logprob in scores]
            result.prompt_logprobs.add(slot=slot, start=start + 1, positions=positions)
        if sequence.pooling:
            assert sequence.pooling == generate_pb2.POOLING_TYPE_LAST or len(sequence.pooled) == start
            sequence.pooled += chain[start:end]
            if end == len(prompt):
                is_last = sequence.pooling == generate_pb2.POOLING_TYPE_LAST
                values = sequence.pooled[-1] if is_last else b"".join(sequence.pooled)
                result.embeddings.add(slot=slot, values=values)

    def _update_block_tables(self, plan: executor_pb2.StepPlan, slots: list[int]) -> None:
        (update,) = plan.block_tables
        ids = iter(unpack_u32(update.block_ids))
        for slot, kept, appended in zip(slots, unpack_u32(update.kept), unpack_u32(update.appended), strict=True):
            blocks = self.sequences[slot].blocks
            assert kept <= len(blocks), f"slot {slot} keeps {kept} blocks of {len(blocks)}"
            blocks[kept:] = [next(ids) for _ in range(appended)]
        assert next(ids, None) is None, "block ids are left over"

    def _store(self, sequence: _Sequence, start: int, end: int) -> None:
        assert end <= len(sequence.token_ids), "a token is computed that nobody knows"
        chain = digests(sequence.token_ids[:end])
        for position in range(start, end):
            self.memory.slots[self._slot(sequence, position)] = chain[position]

    def _sample(self, sequence: _Sequence, end: int, samples: bool) -> int | None:
        chain = digests(sequence.token_ids[:end])
        for position, expected in enumerate(chain):
            found = self.memory.slots.get(self._slot(sequence, position))
            assert found == expected, f"the KV of position {position} is not this sequence's"
        if not samples:
            return None
        assert end == len(sequence.token_ids), "sampled before the last token"
        token_id = next_token(chain[-1], sequence.index)
        sequence.token_ids.append(token_id)
        return token_id

    def _slot(self, sequence: _Sequence, position: int) -> tuple[int, int]:
        size = self.memory.block_size
        return sequence.blocks[position // size], position % size
