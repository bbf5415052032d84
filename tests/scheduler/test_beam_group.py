"""Beams in the scheduler: what they share, how they run beside others, and that nothing changes their result."""

from __future__ import annotations

import pytest
from support.scheduling import Bench

from quire.errors import InvalidRequestError
from quire.scheduler.sequence import SequenceStatus

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def _check(bench: Bench) -> None:
    bench.drain()
    bench.check_idle()
    for entry in bench.submitted.values():
        assert entry.finished == set(range(entry.request.params.n))
        for index in entry.finished:
            assert entry.outputs[index] == entry.truth(index)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("stop", [(), (7,), (1, 2, 3, 4, 5)])
def test_a_search_finds_what_the_search_alone_finds(width, stop):
    bench = Bench()
    bench.submit_beams(PROMPT, width, n=width, max_tokens=9, stop=stop)
    _check(bench)


def test_outputs_come_at_the_end_with_their_logprobs():
    bench = Bench()
    entry = bench.submit_beams(PROMPT, 3, n=2, max_tokens=5)
    for _ in range(5):
        assert not any(entry.outputs.values())
        bench.step()
    _check(bench)
    logprobs = [sequence.cumulative_logprob for sequence in entry.sequences[:2]]
    assert logprobs[0] >= logprobs[1]
    assert [sequence.status for sequence in entry.sequences] == [
        SequenceStatus.LENGTH_CAPPED,
        SequenceStatus.LENGTH_CAPPED,
        SequenceStatus.ABORTED,
    ]


def test_full_blocks_are_shared_and_only_the_last_is_copied():
    bench = Bench(block_size=4, prefix_caching=False)
    entry = bench.submit_beams(PROMPT, 4, max_tokens=6)
    bench.step()
    plan = bench.plan()
    # Ten tokens: the third block is half full; the last of four writers keeps it.
    assert sum(len(chunk.allocation.copies) for chunk in plan.chunks) == 3
    assert len({sequence.blocks[0].id for sequence in entry.sequences}) == 1
    assert len({sequence.blocks[2].id for sequence in entry.sequences}) == 4
    bench.compute()
    bench.deliver()
    _check(bench)


def test_a_beam_waits_for_its_result_while_others_run_ahead():
    bench = Bench()
    bench.submit_beams(PROMPT, 2, max_tokens=4)
    other = bench.submit(PROMPT[:5], max_tokens=6)
    first, second = bench.plan(), bench.plan()
    assert [sequence.request.request_id for sequence in first.sequences] == ["request-0", "request-1"]
    assert second.sequences == other.sequences
    for _ in range(2):
        bench.compute()
        bench.deliver()
    _check(bench)


def test_beams_are_preempted_together_and_share_again():
    """An earlier request takes the blocks of a search half way."""
    bench = Bench(num_blocks=16, block_size=2, prefix_caching=False, max_model_len=32)
    bench.submit([8, 8], max_tokens=24)
    entry = bench.submit_beams(PROMPT, 2, n=2, max_tokens=4)
    for _ in range(200):
        if bench.step() is None:
            break
        statuses = {sequence.status for sequence in entry.sequences}
        assert len(statuses) == 1 or statuses >= {SequenceStatus.LENGTH_CAPPED}, "together"
    _check(bench)


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("budget", [4, 9, 64])
def test_preemption_does_not_change_what_is_found(prefix_caching, budget):
    bench = Bench(
        num_blocks=24, block_size=2, max_num_batched_tokens=budget, prefix_caching=prefix_caching, max_model_len=40
    )
    for length in (4, 7, 10):
        bench.submit_beams(PROMPT[:length], 3, n=2, max_tokens=8)
        bench.submit(PROMPT[:length], max_tokens=16)
    _check(bench)
    assert bench.scheduler.num_preemptions > 0


def test_a_preempted_search_keeps_its_choices():
    bench = Bench(block_size=4)
    entry = bench.submit_beams(PROMPT, 3, n=3, max_tokens=6)
    for _ in range(3):
        bench.step()
    known = sorted(list(sequence.token_ids) for sequence in entry.sequences)
    bench.scheduler._preempt_least_favoured()
    bench.scheduler.check_integrity(deep=True)
    assert not any(sequence.blocks for sequence in entry.sequences)
    assert sorted(list(sequence.token_ids) for sequence in entry.sequences) == known
    _check(bench)


def test_two_searches_never_wait_for_each_others_slots():
    bench = Bench(max_num_seqs=4)
    for _ in range(3):
        bench.submit_beams(PROMPT, 3, max_tokens=5)
    _check(bench)


def test_an_aborted_search_leaves_nothing():
    for steps in (0, 1, 3):
        bench = Bench()
        entry = bench.submit_beams(PROMPT, 3, n=2, max_tokens=8)
        for _ in range(steps):
            bench.step()
        bench.plan()
        bench.scheduler.abort(entry.request.key, [1])
        bench.drain()
        bench.check_idle()
        assert not entry.finished


def test_a_search_that_might_not_fit_is_refused():
    bench = Bench(num_blocks=8, block_size=4, max_num_seqs=4, max_model_len=32)
    with pytest.raises(InvalidRequestError, match="best_of") as refused:
        bench.submit_beams(PROMPT, 5)
    assert refused.value.field == "best_of"
    # Ten tokens and seven that are computed: two blocks in common, and three for each beam.
    with pytest.raises(InvalidRequestError, match="11 KV blocks of 8") as refused:
        bench.submit_beams(PROMPT, 3, max_tokens=8)
    assert refused.value.field == "max_tokens"
    bench.submit_beams(PROMPT, 3, max_tokens=6)
    _check(bench)
