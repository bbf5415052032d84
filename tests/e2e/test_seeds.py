"""The same seed gives the same text, whatever else the server computes."""

from __future__ import annotations

import random

import pytest
from support.servers import inspect_scheduler

from quire import LLM, SamplingParams
from quire.internal.v1 import scheduler_pb2

PROMPTS = ["The capital of France is", "Once upon a time", "Count from one to ten:", "A list of fruits:"]


def _params(seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_p=0.95, top_k=50, seed=seed, max_tokens=48, ignore_eos=True)


def _others(draw: random.Random) -> list[tuple[list[int], SamplingParams]]:
    """31 requests of varied length and sampling."""
    others = []
    for i in range(31):
        prompt = [draw.randrange(2048) for _ in range(draw.randrange(1, 200))]
        params = SamplingParams(
            temperature=draw.choice([0, 0.5, 1.3]),
            top_p=draw.choice([None, 0.5, 0.9]),
            min_p=draw.choice([None, 0.1]),
            repetition_penalty=draw.choice([None, 1.2]),
            logprobs=draw.choice([None, 3]),
            max_tokens=draw.randrange(1, 60),
            seed=i,
            ignore_eos=True,
        )
        others.append((prompt, params))
    return others


@pytest.fixture(scope="module", params=[8, pytest.param(64, marks=pytest.mark.slow)])
def llm(request):
    """With few places most of 32 requests arrive while others run."""
    with LLM(dtype="float32", kv_cache_memory="64MiB", max_num_seqs=request.param) as made:
        yield made


def test_alone_and_among_others(llm):
    draw = random.Random(3)
    alone = [llm.generate(prompt, _params(i))[0].outputs[0] for i, prompt in enumerate(PROMPTS)]
    for i, prompt in enumerate(PROMPTS):
        requests = [*_others(draw)]
        requests.insert(draw.randrange(32), (prompt, _params(i)))
        outputs = llm.generate([request for request, _ in requests], [params for _, params in requests])
        position = next(k for k, (request, _) in enumerate(requests) if request == prompt)
        assert outputs[position].outputs[0].token_ids == alone[i].token_ids
        assert outputs[position].outputs[0].text == alone[i].text
    assert len({tuple(output.token_ids) for output in alone}) == len(PROMPTS)


def test_continuations_differ_and_repeat(llm):
    """The n continuations of a seeded request differ from each other and are the same the next time."""
    params = SamplingParams(temperature=1.2, seed=11, n=4, max_tokens=24, ignore_eos=True)
    first, second = (llm.generate("Once upon a time", params)[0].outputs for _ in range(2))
    assert [output.token_ids for output in first] == [output.token_ids for output in second]
    assert len({tuple(output.token_ids) for output in first}) == 4


def test_two_executors_share_a_pool(llm):
    """One executor computes a prefix; the other hits it and continues correctly."""
    shared = "You are a helpful assistant. Answer every question in one short sentence. " * 12
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    question = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    prompts = [shared + text for text in ("What is the capital of France?", "What is the capital of Italy?")]
    (truth,) = llm.generate(prompts[1], question)
    assert truth.num_cached_tokens == 0, "the truth is computed whole"
    with LLM(dtype="float32", kv_cache_memory="64MiB", num_executors=2) as pair:
        # One executor computes the prefix; then two requests run at once, so each executor has one of them.
        pair.generate(prompts[0], SamplingParams(temperature=0, max_tokens=1))
        busy, hit = pair.generate([shared, prompts[1]], [params, question])
        assert len(busy.outputs[0].token_ids) == 200
        assert hit.outputs[0].token_ids == truth.outputs[0].token_ids
        assert hit.num_cached_tokens >= 16 * (len(pair.generate(shared, question)[0].prompt_token_ids) // 16 - 1)
        with inspect_scheduler(pair.scheduler_address) as scheduler:
            records = scheduler.ListStepRecords(scheduler_pb2.ListStepRecordsRequest(), timeout=10).records
        by_executor = {i: [record for record in records if record.executor == i] for i in (0, 1)}
        assert all(by_executor.values()), "both executors computed steps"
        # The long prompt was computed by one of them only.
        prefilled = [sum(record.num_prefill_tokens for record in of) for of in by_executor.values()]
        assert min(prefilled) < 64 < max(prefilled)
