"""The offline LLM class, as a user of vLLM's would use it."""

from __future__ import annotations

import numpy as np
import pytest

from quire import LLM, SamplingParams
from quire.errors import ContextLengthError, InvalidRequestError, QuireError, StartupError

FRANCE = "The capital of France is"


@pytest.fixture(scope="module")
def llm():
    with LLM(kv_cache_memory="64MiB") as made:
        yield made


def _greedy(max_tokens: int = 6, **params) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **params)


def test_one_prompt_of_each_form(llm):
    (by_text,) = llm.generate(FRANCE, _greedy())
    assert by_text.prompt == FRANCE
    assert by_text.outputs[0].text.startswith(" Paris")
    assert by_text.finished
    ids = by_text.prompt_token_ids
    (by_ids,) = llm.generate(ids, _greedy())
    (by_dict,) = llm.generate({"prompt_token_ids": ids}, _greedy())
    assert by_ids.outputs[0].token_ids == by_dict.outputs[0].token_ids == by_text.outputs[0].token_ids
    assert by_ids.prompt is None
    assert by_ids.prompt_token_ids == ids


def test_prompts_in_the_forms_of_vllm(llm):
    ids = llm.generate(FRANCE, _greedy(1))[0].prompt_token_ids
    for prompts in ({"prompt": FRANCE}, np.array(ids), (token_id for token_id in ids), iter([FRANCE]), [np.array(ids)]):
        (output,) = llm.generate(prompts, _greedy(1))
        assert output.prompt_token_ids == ids
    assert len(llm.generate(np.array([ids, ids]), _greedy(1))) == 2


def test_many_prompts_keep_their_order(llm):
    countries = {"France": " Paris", "Italy": " Rome", "Spain": " Madrid", "Germany": " Berlin"}
    prompts = [f"The capital of {country} is" for country in countries]
    mixed = [*prompts, {"prompt_token_ids": llm.generate(FRANCE, _greedy(1))[0].prompt_token_ids}]
    outputs = llm.generate(mixed, _greedy(2))
    assert [output.outputs[0].text.split(".")[0] for output in outputs[:4]] == list(countries.values())
    assert outputs[4].outputs[0].text == outputs[0].outputs[0].text


def test_each_prompt_may_have_its_own_parameters(llm):
    outputs = llm.generate([FRANCE, FRANCE], [_greedy(2), _greedy(9)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 9]
    with pytest.raises(InvalidRequestError, match="2 prompts have 1 "):
        llm.generate([FRANCE, FRANCE], [_greedy()])


def test_defaults_are_vllms(llm):
    (output,) = llm.generate("Once upon a time")
    assert len(output.outputs[0].token_ids) <= 16


def test_logprobs(llm):
    (output,) = llm.generate(FRANCE, _greedy(4, logprobs=3))
    completion = output.outputs[0]
    assert len(completion.logprobs) == 4
    for token_id, entries in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entries[token_id].rank == 1
        assert len(entries) == 3
    assert completion.cumulative_logprob == pytest.approx(
        sum(
            entries[token_id].logprob
            for token_id, entries in zip(completion.token_ids, completion.logprobs, strict=True)
        )
    )


def test_chat(llm):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (one,) = llm.chat(question, SamplingParams(temperature=0, max_tokens=40))
    assert "Paris" in one.outputs[0].text
    assert one.outputs[0].finish_reason == "stop"
    two = llm.chat([question, question], SamplingParams(temperature=0, max_tokens=40))
    assert [output.outputs[0].text for output in two] == [one.outputs[0].text] * 2


def test_a_chat_with_tools_and_parts(llm):
    question = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    tool = {"type": "function", "function": {"name": "capital_of", "parameters": {"type": "object"}}}
    (plain,) = llm.chat(question, _greedy(1))
    (with_tools,) = llm.chat(question, _greedy(1), tools=[tool], chat_template_kwargs={"a": 1})
    (opened,) = llm.chat(question, _greedy(1), add_generation_prompt=False)
    assert "capital_of" in with_tools.prompt
    assert plain.prompt.startswith(opened.prompt)
    with pytest.raises(InvalidRequestError) as caught:
        llm.chat([{"role": "narrator", "content": "x"}])
    assert caught.value.field == "chat.messages[0].role"


def test_the_tokenizer(llm):
    ids = llm.generate(FRANCE, _greedy(1))[0].prompt_token_ids
    assert llm.get_tokenizer().encode(FRANCE) == ids


def test_stop_strings(llm):
    text = llm.generate("Once upon a time", _greedy(40))[0].outputs[0].text
    stop = text[30:35]
    (output,) = llm.generate("Once upon a time", _greedy(40, stop=[stop]))
    assert output.outputs[0].text == text[: text.index(stop)]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)


@pytest.mark.parametrize(
    ("prompts", "params", "error"),
    [
        ("", _greedy(), InvalidRequestError),
        ([FRANCE, ""], _greedy(), InvalidRequestError),
        ([[1, 2], [99999]], _greedy(), InvalidRequestError),
        ([[1.5]], _greedy(), InvalidRequestError),
        ({"text": FRANCE}, _greedy(), InvalidRequestError),
        ({"prompt": 5}, _greedy(), InvalidRequestError),
        (5, _greedy(), InvalidRequestError),
        ([None], _greedy(), InvalidRequestError),
        ([7, "x"], _greedy(), InvalidRequestError),
        ([[7] * 3000], _greedy(), ContextLengthError),
        (FRANCE, _greedy(max_tokens=5000), ContextLengthError),
    ],
)
def test_bad_input_is_refused_before_anything_runs(llm, prompts, params, error):
    with pytest.raises(error):
        llm.generate(prompts, params)
    assert llm.generate(FRANCE, _greedy(1))[0].outputs[0].text == " Paris"


def test_no_prompts_give_no_outputs(llm):
    assert llm.generate([], _greedy()) == []


@pytest.mark.parametrize(
    ("argument", "value"), [("tensor_parallel_size", 2), ("tokenizer", "other"), ("no_such_thing", 1), ("seed", 5)]
)
def test_arguments_that_cannot_be_served_are_named(argument, value):
    with pytest.raises(StartupError) as caught:
        LLM(**{argument: value})
    assert caught.value.field == argument


def test_after_its_end():
    with LLM(kv_cache_memory="64MiB", tensor_parallel_size=1, enforce_eager=True, gpu_memory_utilization=0.5) as llm:
        pass
    with pytest.raises(QuireError, match="this LLM is closed"):
        llm.generate(FRANCE)
