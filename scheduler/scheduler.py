"""Continuous batching over a paged KV cache.

There is no prefill phase and no decode phase. Every sequence has `num_computed_tokens`, which chases
`num_tokens`; each step spends a token budget over the sequences, running ones first. Chunked prefill, prefix hits,
preemption and forks are all cases of that one rule (Orca, OSDI 2022; PagedAttention, SOSP 2023).

Pure logic: no input, no output, no clock. `step_loop.py` drives it.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Iterable, Iterator

from quire.columns import unpack_u32
from quire.errors import DuplicateRequestError
from quire.internal.v1 import executor_pb2
from quire.scheduler.beam_group import BeamGroup, members, next_chunks, record_candidates
from quire.scheduler.fair_queue import FairQueue
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.lost_steps import BLAME, may_run_beside, requests_to_blame
from quire.scheduler.outputs import StepEvents
from quire.scheduler.readouts import embeddings, first_run, logprobs_of_live, new_prompt_logprobs
from quire.scheduler.request_checks import SchedulerLimits, check_request
from quire.scheduler.request_queue import ArrivalQueue, RequestQueue
from quire.scheduler.sequence import Request, RequestKey, Sequence, SequenceStatus, arrival_order
from quire.scheduler.step_counts import StepCounts
from quire.scheduler.step_plan import SlotChanges, StepPlan
from quire.scheduler.step_result import check_result
from quire.scheduler.tenants import TenantAccounts, meter_outputs, meter_prompt


class Scheduler:
    """Decides what each executor computes next. One lane per executor; all lanes share the pool."""

    def __init__(self, kv_cache: KvCache, limits: SchedulerLimits) -> None:
        self.kv_cache = kv_cache
        self.limits = limits
        self.tenants = TenantAccounts()
        self.waiting: RequestQueue = FairQueue(self.tenants) if limits.policy == "fair" else ArrivalQueue()
        self.num_running = 0
        self.requests: dict[RequestKey, Request] = {}
        self.num_preemptions = 0
        self.num_lost_lanes = 0
        self.counts = StepCounts()
        # Lanes whose executor takes steps. Only these are planned.
        self.live_lanes = set(range(len(kv_cache.lanes)))
        # Lanes with a running sequence that waits for blocks: whoever is admitted now would take them away.
        self._starved_lanes: set[int] = set()
        # Whether the pool had no room for the head of the queue.
        self._lacks_blocks = False
        # By the queue's rank; the last is the least favoured.
        self._running: list[list[Sequence]] = [[] for _ in kv_cache.lanes]
        self._free_slots = [list(range(limits.max_num_seqs))[::-1] for _ in kv_cache.lanes]
        self._changes = [SlotChanges() for _ in kv_cache.lanes]
        self._num_arrivals = 0

    # Steps

    def schedule(self, lane: int) -> StepPlan | None:
        """The next step of an executor, or None if there is nothing to compute.

        May be called while earlier steps of the lane are in flight: tokens that these will sample are counted, and
        the executor fills them in.
        """
        plan = self._begin_step(lane)
        preempted = self.num_preemptions

        # Running ones first. Most only need the next token in a block they have; these others may need blocks.
        held_back: list[Sequence] = []
        head_could_run = self.waiting.reorders and self._head_could_run(plan)
        for sequence in self._after_plain_decodes(plan):
            if head_could_run and self.waiting.goes_before(sequence):
                held_back.append(sequence)
                continue
            chunks = next_chunks(sequence, plan.budget)
            if chunks and self._make_room(sequence, chunks):
                for member, num_new in chunks:
                    self._add_chunk(plan, member, num_new)

        # Then waiting ones, while tokens, slots and blocks are left.
        while plan.budget and self.num_preemptions == preempted and (head := self._next_to_admit(lane)):
            num_cached = self.kv_cache.adopt_prefix(head, lane)
            num_new = min(head.num_uncomputed_tokens, plan.budget)
            if not self._fits(head, num_new):
                self.kv_cache.abandon(head)
                self._lacks_blocks = True
                break
            # If nobody else is in the step, nobody waits for it.
            if plan.sequences and self.kv_cache.prefetch(head):
                break
            self.waiting.remove(head)
            self._admit(head, lane, num_cached)
            self._add_chunk(plan, head, num_new)

        for sequence in held_back:
            self._add_what_is_left(plan, sequence)
        return self._end_step(plan)

    def update_from_output(self, plan: StepPlan, result: executor_pb2.StepResult) -> StepEvents:
        """Takes in a step's result: sampled tokens, ends, and the blocks that are free now.

        Raises QuireError for a result that does not fit the plan, of which nothing is taken in.
        """
        sampled = plan.sampled
        check_result(plan, sampled, result)
        token_ids = unpack_u32(result.token_ids)
        failed = self._end_failed(plan, result) if result.failures else []
        events = StepEvents(plan.step, first_run(plan), logprobs_of_live(sampled, result), failed=failed)
        if result.prompt_logprobs:
            events.prompt_logprobs = new_prompt_logprobs(plan, result)
        for sequence, embedding in embeddings(plan, result):
            self._finish(sequence, SequenceStatus.POOLED)
            events.started.append(sequence.request)
            events.embeddings.append((sequence.request, embedding))
        add_sequence, add_position = events.sequences.append, events.positions.append
        add_token = events.token_ids.append
        for sequence, token_id in zip(sampled, token_ids, strict=True):
            if sequence.is_finished or sequence.beams is not None:  # aborted, sampled past its stop, or not sampled
                continue
            known = sequence.token_ids
            add_sequence(sequence)
            add_position(len(known) - sequence.num_prompt_tokens)
            add_token(token_id)
            known.append(token_id)
            if token_id in sequence.ending_token_ids:
                self._finish(sequence, SequenceStatus.STOPPED)
                events.finished.append(sequence)
            elif len(known) == sequence.max_num_tokens:
                self._finish(sequence, SequenceStatus.LENGTH_CAPPED)
                events.finished.append(sequence)
        self.kv_cache.acknowledge(plan.lane, plan.step)
        for beams in record_candidates(plan, sampled, result):
            self._advance(beams, events)
        self.counts.add(plan, events)
        return events

    # Lanes

    def vacate_lane(self, lane: int) -> None:
        """Whoever serves the lane from now on knows nothing of it: its sequences queue up to be introduced again.

        Steps in flight are void. Tokens that they sampled come out the same again.
        """
        for sequence in self._running[lane].copy():
            if sequence.status is SequenceStatus.RUNNING:  # beams go together
                self._preempt(sequence)
        for request in self.requests.values():
            for sequence in request.sequences:
                if sequence.lane == lane and sequence.beams is None:
                    sequence.num_tokens = len(sequence.token_ids)
        self.kv_cache.lose_lane(lane)
        self._changes[lane] = SlotChanges()
        self._starved_lanes.discard(lane)

    def lose_lane(self, lane: int, failed: StepPlan | None = None) -> StepEvents:
        """The executor of the lane is dead. `failed` is the first step that it did not answer, if it owed any.

        Requests of that step which do not get ahead between several losses end: they may be what kills executors.
        """
        self.live_lanes.discard(lane)
        self.num_lost_lanes += 1
        self.vacate_lane(lane)
        events = StepEvents(self.kv_cache.lanes[lane].acknowledged_step)
        for request in requests_to_blame(failed) if failed else ():
            events.failed.append((request, BLAME))
            self.abort(request.key)
        return events

    def regain_lane(self, lane: int) -> None:
        """The lane has an executor again."""
        self.live_lanes.add(lane)

    # Requests

    def add_request(self, request: Request, prompt: Iterable[int], outputs: dict[int, list[int]]) -> None:
        """Queues a request. `outputs` has the tokens emitted so far by sequence index, all empty at first.

        Raises InvalidRequestError for what can never run, and DuplicateRequestError.
        """
        prompt_ids = array("I", prompt)
        if request.params.use_beam_search:
            # A search that comes again begins again: nothing of it was emitted.
            outputs = {index: [] for index in range(max(request.params.best_of, request.params.n))}
        if request.key in self.requests:
            raise DuplicateRequestError(f"request {request.key.number} is already running", field="request_key")
        check_request(request, len(prompt_ids), outputs, self.limits, self.kv_cache)
        for index, output in sorted(outputs.items()):
            order = arrival_order(request.priority, self._num_arrivals)
            sequence = Sequence(request, index, prompt_ids, output, self.limits.max_model_len, order)
            self._num_arrivals += 1
            request.sequences.append(sequence)
        self.requests[request.key] = request
        self.tenants.begin(request.tenant)
        if request.params.use_beam_search:
            self.waiting.push(BeamGroup.of(request.sequences).leader)
            return
        for sequence in request.sequences:
            if sequence.num_output_tokens:
                self.waiting.push(sequence)
            else:
                request.unforked.append(sequence)
        if request.unforked:
            self.waiting.push(request.unforked.pop(0))

    def abort(self, key: RequestKey, indices: Iterable[int] = ()) -> None:
        """Ends a request's sequences (all, if none is named); one that is unknown has ended already."""
        request = self.requests.get(key)
        if request is None:
            return
        # The sequences of a beam search are not its continuations: it ends as a whole.
        named = set() if request.params.use_beam_search else set(indices)
        for sequence in request.sequences:
            if not sequence.is_finished and (not named or sequence.index in named):
                self._finish(sequence, SequenceStatus.ABORTED)

    def abort_gateway(self, gateway_id: str) -> None:
        """Ends everything that a gateway submitted."""
        for key in [key for key in self.requests if key.gateway_id == gateway_id]:
            self.abort(key)

    def pause(self, key: RequestKey) -> None:
        """Computes nothing more of a request and takes its blocks, until `resume`; its output is unchanged.

        Not of a beam search, which gives nothing to read before its end.
        """
        request = self.requests.get(key)
        if request is None or request.is_paused or request.sequences[0].beams is not None:
            return
        request.is_paused = True
        for sequence in request.sequences:
            if sequence.status is SequenceStatus.RUNNING:
                self._leave(sequence)
                sequence.move_to(SequenceStatus.PREEMPTED)
            elif sequence in self.waiting:
                self.waiting.remove(sequence)

    def resume(self, key: RequestKey) -> None:
        """Queues what was paused, at the place that its arrival gave it."""
        request = self.requests.get(key)
        if request is None or not request.is_paused:
            return
        request.is_paused = False
        for sequence in request.sequences:
            if not sequence.is_finished and sequence not in request.unforked:
                self.waiting.push(sequence)

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def running(self) -> list[Sequence]:
        """All lanes' running sequences in order of arrival."""
        return sorted(itertools.chain.from_iterable(self._running), key=_arrival)

    def check_integrity(self, *, deep: bool = False) -> None:
        """Compares block counts, slots and queues with the sequences. Raises AssertionError."""
        live = [sequence for request in self.requests.values() for sequence in request.sequences]
        self.kv_cache.check_integrity(live, deep=deep)
        running = [sequence for sequence in live if sequence.status is SequenceStatus.RUNNING]
        assert sorted(running, key=_arrival) == self.running, "running is out of step"
        assert len(running) == self.num_running, f"{len(running)} sequences run, {self.num_running} counted"
        for lane, free in enumerate(self._free_slots):
            used = {sequence.slot for sequence in running if sequence.lane == lane}
            assert len(used) == len(self._running[lane]), f"lane {lane} runs {len(used)} sequences"
            assert len(used) + len(free) == self.limits.max_num_seqs, f"slots of lane {lane} leaked"
            assert not used & set(free), f"a slot of lane {lane} is used twice"
        queued = sum(sequence in self.waiting for sequence in live)
        assert queued == len(self.waiting), "the queue holds a finished sequence"

    # Parts of a step

    def _begin_step(self, lane: int) -> StepPlan:
        self._starved_lanes.discard(lane)
        if self.waiting.reorders:
            self._make_way()
            self._running[lane].sort(key=self.waiting.rank)
        progress = self.kv_cache.lanes[lane]
        progress.planned_step += 1
        budget = self.limits.max_num_batched_tokens
        return StepPlan(progress.planned_step, lane, budget, self._changes[lane])

    def _end_step(self, plan: StepPlan) -> StepPlan | None:
        if not plan.sequences:
            # Nothing was sent, so nothing can be acknowledged: the number is used again.
            self.kv_cache.lanes[plan.lane].planned_step -= 1
            return None
        self._changes[plan.lane] = SlotChanges()
        plan.seal()
        if self.kv_cache.swap is not None:
            plan.moves = self.kv_cache.swap.take_moves()
        if self.tenants.are_metered:
            meter_outputs(plan.sampled)
        for chunk in plan.chunks:
            if (sequence := plan.sequences[chunk.row]).request.unforked:
                self._fork_siblings(sequence)
        return plan

    def _after_plain_decodes(self, plan: StepPlan) -> Iterator[Sequence]:
        """Plans the plain decodes of a lane (see `Sequence.decode_end`) and yields its other sequences, in order.

        Every running sequence passes here in every step, hence no calls and as few names as possible.
        """
        step, add_sequence, add_computed = plan.step, plan.sequences.append, plan.computed_tokens.append
        budget = plan.budget
        # A copy: what is done for a sequence that is yielded may preempt later ones.
        for sequence in self._running[plan.lane].copy():
            computed = sequence.num_computed_tokens
            if computed < sequence.decode_end and budget:
                budget -= 1
                add_sequence(sequence)
                add_computed(computed)
                sequence.num_computed_tokens = computed + 1
                sequence.num_tokens = computed + 2
                sequence.last_step = step
            else:
                plan.budget = budget
                yield sequence
                budget = plan.budget
        plan.budget = budget

    def _fits(self, sequence: Sequence, num_new_tokens: int) -> bool:
        """Whether there are blocks for the next tokens, or for all of a sequence that lost its blocks.

        With fewer it would only lose them again.
        """
        if sequence.status is SequenceStatus.PREEMPTED:
            num_new_tokens = sequence.num_uncomputed_tokens
        num_needed = self.kv_cache.num_blocks_needed([(sequence, num_new_tokens)])
        return num_needed <= self.kv_cache.pool.num_available

    def _head_could_run(self, plan: StepPlan) -> bool:
        """Whether this step may admit the head of the queue, if running sequences leave it the tokens."""
        head = self._next_to_admit(plan.lane)
        return head is not None and self._fits(head, min(head.num_uncomputed_tokens, plan.budget))

    def _add_what_is_left(self, plan: StepPlan, sequence: Sequence) -> None:
        """Plans a chunk of a prompt that others went before, with the tokens and blocks that these left."""
        num_new = min(sequence.num_uncomputed_tokens, plan.budget)
        may_run = sequence.status is SequenceStatus.RUNNING and not self._starved_lanes
        if num_new and may_run and self._fits(sequence, num_new):
            self._add_chunk(plan, sequence, num_new)

    def _make_room(self, sequence: Sequence, chunks: list[tuple[Sequence, int]]) -> bool:
        """Preempts later arrivals until a running sequence (or all its beams) fits; False if it sits this step out.

        It sits out when an earlier one of its lane does and it needs a block too, when it was the last one and
        preempted itself, or when blocks that steps in flight still name will be enough: preempting for these would
        be waste, and nobody is admitted until they have come.
        """
        while sequence.status is SequenceStatus.RUNNING:
            num_needed = self.kv_cache.num_blocks_needed(chunks)
            available = self.kv_cache.pool.num_available
            if num_needed == 0 or (num_needed <= available and sequence.lane not in self._starved_lanes):
                return True
            retiring = self.kv_cache.num_retiring
            if sequence.lane in self._starved_lanes or (retiring and num_needed <= available + retiring):
                self._starved_lanes.add(sequence.lane)
                return False
            self._preempt_least_favoured()
        return False

    def _add_chunk(self, plan: StepPlan, sequence: Sequence, num_new_tokens: int) -> None:
        """Plans the next tokens of a sequence, whatever that takes."""
        if self.tenants.are_metered:
            meter_prompt(sequence, num_new_tokens)
        is_new = sequence.num_sent_blocks == 0
        allocation = self.kv_cache.allocate(sequence, num_new_tokens)
        chunk = plan.add_chunk(sequence, num_new_tokens, allocation, is_new=is_new)
        sequence.num_computed_tokens += num_new_tokens
        sequence.last_step = plan.step
        # What a beam goes on with is not known before the result is in.
        if chunk.samples and sequence.beams is None:
            sequence.num_tokens += 1
            room = len(sequence.blocks) * self.kv_cache.block_size
            # The last token a sequence can have is sampled but never computed.
            sequence.decode_end = min(room, sequence.max_num_tokens - 1)
        self.kv_cache.hash_full_blocks(sequence)

    def _end_failed(self, plan: StepPlan, result: executor_pb2.StepResult) -> list[tuple[Request, str]]:
        """Ends the requests of sequences that cannot go on; returns them, and why. Nothing of the step is theirs."""
        by_slot = dict(zip(plan.slots, plan.sequences, strict=True))
        failed = []
        for failure in result.failures:
            sequence = by_slot[failure.slot]
            if not sequence.is_finished:
                failed.append((sequence.request, failure.message))
                self.abort(sequence.request.key)
        return failed

    # Moves of a sequence

    def _next_to_admit(self, lane: int) -> Sequence | None:
        """The head of the queue, if this lane should take it: it is ready and the lane has its fair share free."""
        head = self.waiting.head()
        if head is None or self._starved_lanes:
            return None
        if self.num_running + head.width > self.limits.max_num_seqs:
            return None
        if head.last_step > self.kv_cache.lanes[head.lane].acknowledged_step:
            return None
        if not may_run_beside(head.request, self._running[lane]):
            return None
        share = -(-(self.num_running + len(self.waiting)) // len(self.live_lanes))
        return head if len(self._running[lane]) < share else None

    def _admit(self, sequence: Sequence, lane: int, num_cached_blocks: int) -> None:
        num_cached = num_cached_blocks * self.kv_cache.block_size
        # What a sequence finds after a preemption is mostly its own.
        if sequence.status is SequenceStatus.WAITING:
            self.kv_cache.count_hits(sequence)
        for member in members(sequence):
            self._start(member, lane)
        if sequence.request.num_cached_tokens is None:
            sequence.request.num_cached_tokens = min(num_cached, sequence.num_prompt_tokens)

    def _fork_siblings(self, parent: Sequence) -> None:
        """Once a prompt is planned, its request's other sequences share its blocks and run beside it.

        Those for which there is no slot queue up and find the prompt in the prefix cache later.
        """
        request = parent.request
        if parent.num_computed_tokens < parent.num_prompt_tokens:
            return
        for sibling in request.unforked:
            if self.num_running < self.limits.max_num_seqs:
                # The prompt's last token is computed again, to sample from it.
                self.kv_cache.fork(parent, sibling, parent.num_prompt_tokens - 1)
                self._start(sibling, parent.lane)
            else:
                self.waiting.push(sibling)
        request.unforked = []

    def _start(self, sequence: Sequence, lane: int) -> None:
        sequence.move_to(SequenceStatus.RUNNING)
        sequence.lane = lane
        sequence.slot = self._free_slots[lane].pop()
        self.num_running += 1
        sequence.request.tenant.num_running += 1
        bisect.insort(self._running[lane], sequence, key=self.waiting.rank)

    def _make_way(self) -> None:
        """Preempts those that the queue wants to make way for waiting ones."""
        num_slots = self.limits.max_num_seqs
        # Blocks that are about to come back may be enough.
        lacks_blocks = self._lacks_blocks and not self.kv_cache.num_retiring
        self._lacks_blocks = False
        for victim in self.waiting.displaced(self._running, num_slots, lacks_blocks=lacks_blocks):
            self._preempt(victim)
            self.num_preemptions += 1

    def _preempt_least_favoured(self) -> None:
        self._preempt(max((running[-1] for running in self._running if running), key=self.waiting.rank))
        self.num_preemptions += 1

    def _preempt(self, victim: Sequence) -> None:
        """Queues a running sequence, or all beams of a search, to be computed anew; its output is unchanged."""
        for member in members(victim):
            self._leave(member)
            member.move_to(SequenceStatus.PREEMPTED)
        if victim.beams is not None:
            victim.beams.lose_blocks()
            victim = victim.beams.leader
        self.waiting.push(victim)

    def _finish(self, sequence: Sequence, end: SequenceStatus) -> None:
        """Ends a sequence, whatever it was doing."""
        request = sequence.request
        if sequence.status is SequenceStatus.RUNNING:
            self._leave(sequence)
        elif sequence in request.unforked:
            request.unforked.remove(sequence)
        elif not request.is_paused and (sequence.beams is None or sequence is sequence.beams.leader):
            self.waiting.remove(sequence)
        sequence.move_to(end)
        # Whoever was to compute the prompt for the others is gone: the next of them does it.
        if request.unforked and all(other.is_finished or other in request.unforked for other in request.sequences):
            heir = request.unforked.pop(0)
            if not request.is_paused:
                self.waiting.push(heir)
        if request.is_finished:
            del self.requests[request.key]
            self.tenants.end(request.tenant)

    def _advance(self, beams: BeamGroup, events: StepEvents) -> None:
        """Goes on with the beams that the search chooses, or ends it."""
        going_on = beams.advance(self.kv_cache)
        if going_on is not None:
            chosen = self._changes[beams.leader.lane].chosen
            for sequence in going_on:
                assert sequence.slot is not None
                chosen[sequence.slot] = sequence.token_ids[-1]
            return
        for sequence, hypothesis in itertools.zip_longest(beams.sequences, beams.hypotheses):
            if hypothesis is None:
                self._finish(sequence, SequenceStatus.ABORTED)
                continue
            self._finish(sequence, SequenceStatus.STOPPED if hypothesis.is_ended else SequenceStatus.LENGTH_CAPPED)
            sequence.token_ids[sequence.num_prompt_tokens :] = array("I", hypothesis.token_ids)
            sequence.cumulative_logprob = hypothesis.logprob
            events.add_output(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Gives back a running sequence's slot and, once the steps in flight are done, its blocks.

        What they hold stays findable in the prefix cache.
        """
        assert sequence.slot is not None
        self._running[sequence.lane].remove(sequence)
        self.num_running -= 1
        sequence.request.tenant.num_running -= 1
        self._free_slots[sequence.lane].append(sequence.slot)
        self._changes[sequence.lane].finished.append(sequence.slot)
        self._changes[sequence.lane].chosen.pop(sequence.slot, None)
        sequence.slot = None
        self.kv_cache.hash_full_blocks(sequence)
        self.kv_cache.release(sequence)


def _arrival(sequence: Sequence) -> int:
    return sequence.order
