"""Requests that want more than sampled tokens: what is computed for them, and that it reaches them once."""

from __future__ import annotations

import pytest
from support.fake_executor import true_embedding, true_prompt_logprobs
from support.scheduling import EPOCH, Bench

from quire.errors import ContextLengthError, InvalidRequestError, QuireError
from quire.internal.v1 import executor_pb2
from quire.scheduler.outputs import OutputRouter, StepEvents
from quire.v1 import generate_pb2

PROMPT = list(range(10))
LAST, MEAN = generate_pb2.POOLING_TYPE_LAST, generate_pb2.POOLING_TYPE_MEAN


def _num_planned(bench: Bench) -> int:
    return sum(sum(plan.query_lengths) for plan in bench.plans)


@pytest.mark.parametrize("budget", [1, 3, 64])
def test_logprobs_of_a_prompt_do_without_the_prefix_cache(budget):
    bench = Bench(block_size=4, max_num_batched_tokens=budget)
    bench.submit(PROMPT, max_tokens=1)
    bench.drain()
    bench.plans.clear()
    entry = bench.submit(PROMPT, max_tokens=1, prompt_logprobs=2)
    bench.drain()
    assert entry.prompt_logprobs == true_prompt_logprobs(PROMPT)
    assert _num_planned(bench) == len(PROMPT)
    assert entry.request.num_cached_tokens == 0
    bench.check_idle()


def test_a_prompts_logprobs_are_computed_once_for_all_continuations():
    bench = Bench(block_size=4)
    entry = bench.submit(PROMPT, max_tokens=3, n=3, prompt_logprobs=0)
    bench.drain()
    assert entry.prompt_logprobs == true_prompt_logprobs(PROMPT)
    assert entry.outputs == {index: entry.truth(index) for index in range(3)}
    assert _num_planned(bench) == len(PROMPT) + 2 + 3 * 2


def test_a_preempted_prompt_hits_what_is_known_of_it():
    """The latest arrival loses its blocks in the middle of its prompt; what it told is not computed again."""
    bench = Bench(num_blocks=8, block_size=2, max_num_batched_tokens=5, max_model_len=16)
    first = bench.submit([1, 2, 3], max_tokens=12)
    bench.step()
    second = bench.submit(PROMPT[:9], max_tokens=2, prompt_logprobs=0)
    bench.drain()
    assert bench.scheduler.num_preemptions > 0
    assert second.prompt_logprobs == true_prompt_logprobs(PROMPT[:9])
    assert (first.outputs[0], second.outputs[0]) == (first.truth(0), second.truth(0))
    bench.check_idle()


def test_known_logprobs_are_not_asked_for_again():
    """A sequence that is preempted after its prompt is known uses the prefix cache like any other."""
    bench = Bench(num_blocks=10, block_size=2, max_model_len=20)
    first = bench.submit(PROMPT[:5], max_tokens=14)
    second = bench.submit(PROMPT[5:10], max_tokens=14, prompt_logprobs=0)
    bench.drain()
    assert bench.scheduler.num_preemptions > 0
    introductions = [
        new.sampling_params.HasField("prompt_logprobs")
        for message in bench.messages
        for new in message.new_sequences
        if new.prompt_token_ids[0] == PROMPT[5]
    ]
    assert introductions[0] and not any(introductions[1:]) and len(introductions) > 1
    assert second.prompt_logprobs == true_prompt_logprobs(PROMPT[5:10])
    assert (first.outputs[0], second.outputs[0]) == (first.truth(0), second.truth(0))


@pytest.mark.parametrize("pooling", [LAST, MEAN])
@pytest.mark.parametrize("budget", [3, 64])
def test_an_embedding_ends_its_request(pooling, budget):
    bench = Bench(max_num_batched_tokens=budget, block_size=4)
    entries = [bench.submit(PROMPT[: 4 + i], pooling=pooling) for i in range(4)]
    other = bench.submit(PROMPT, max_tokens=6)
    bench.drain()
    for entry in entries:
        assert entry.embedding == true_embedding(entry.prompt, pooling)
        assert entry.outputs == {0: []}
    assert other.outputs[0] == other.truth(0)
    bench.check_idle()


@pytest.mark.parametrize(("pooling", "num_computed"), [(LAST, 2), (MEAN, 10)])
def test_only_the_last_tokens_state_can_follow_a_hit(pooling, num_computed):
    bench = Bench(block_size=4)
    bench.submit(PROMPT, max_tokens=1)
    bench.drain()
    entry = bench.submit(PROMPT, pooling=pooling)
    plan = bench.step()
    assert list(plan.query_lengths) == [num_computed]
    assert entry.embedding == true_embedding(PROMPT, pooling)
    assert entry.request.num_cached_tokens == len(PROMPT) - num_computed


def test_an_aborted_embedding_is_dropped():
    bench = Bench()
    entry = bench.submit(PROMPT, pooling=LAST)
    bench.plan()
    bench.scheduler.abort(entry.request.key)
    bench.drain()
    assert entry.embedding is None
    bench.check_idle()


def test_a_prompt_to_be_pooled_may_fill_the_context():
    bench = Bench(max_model_len=10)
    entry = bench.submit(PROMPT, pooling=MEAN)
    bench.drain()
    assert entry.embedding == true_embedding(PROMPT, MEAN)
    with pytest.raises(ContextLengthError, match="11 tokens; 10 fit"):
        bench.submit([*PROMPT, 1], pooling=MEAN)


def test_a_pooling_request_has_one_sequence():
    with pytest.raises(InvalidRequestError, match="one sequence"):
        Bench().submit(PROMPT, n=2, pooling=LAST)


def test_a_pooling_of_the_future_is_refused():
    with pytest.raises(InvalidRequestError, match="pooling has no value 9"):
        Bench().submit(PROMPT, pooling=9)


def test_a_result_without_its_embedding_is_refused():
    bench = Bench()
    bench.submit(PROMPT, pooling=LAST)
    plan = bench.plan()
    with pytest.raises(QuireError, match=r"embeddings of slots \[\] where those of \[0\] were due"):
        bench.scheduler.update_from_output(plan, executor_pb2.StepResult(epoch=EPOCH, step=plan.step))


def test_logprobs_of_a_slot_that_was_not_computed_are_refused():
    bench = Bench()
    bench.submit(PROMPT, pooling=LAST)
    plan = bench.plan()
    result = executor_pb2.StepResult(epoch=EPOCH, step=plan.step)
    result.prompt_logprobs.add(slot=5, start=1)
    with pytest.raises(QuireError, match="slot 5, which it did not compute"):
        bench.scheduler.update_from_output(plan, result)


async def test_gateways_are_told():
    bench = Bench()
    request = bench.submit(PROMPT, max_tokens=2, prompt_logprobs=0).request
    router = OutputRouter()
    outputs = router.open("gateway")
    entry = executor_pb2.PromptLogprobs(slot=3, start=4, positions=[generate_pb2.TokenLogprobs(logprob=-0.5)])
    router.publish(StepEvents(1, prompt_logprobs=[(request, entry)], embeddings=[(request, b"abcd")]))
    message = await outputs.next_message()
    assert message is not None
    (told,) = message.prompt_logprobs
    assert (told.request_key, told.start, told.positions[0].logprob) == (0, 4, -0.5)
    (embedding,) = message.embeddings
    assert (embedding.request_key, embedding.values) == (0, b"abcd")
