from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from support.fake_scheduler import FakeScheduler, Together
from support.gateway_fixtures import MODEL, Gateway, sse_events
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")


def say(scheduler: FakeScheduler, tokenizer: Tokenizer, *texts: str) -> None:
    """Sequence i answers with the tokens of text i and the end token."""
    end = tokenizer.token_to_id("<|end|>")
    scheduler.script = lambda request, index: [
        *tokenizer.encode(texts[index], add_special_tokens=False).ids,
        end,
    ]


async def complete(http: httpx.AsyncClient, **body: Any) -> Any:
    answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": "hello", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(http: httpx.AsyncClient, **body: Any) -> list[Any]:
    body = {"model": MODEL, "prompt": "hello", "stream": True, **body}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return sse_events(answer.text)


async def test_the_whole_answer(http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.cached_tokens = 1
    say(scheduler, tokenizer, " Paris 😀.")
    answer = await complete(http, max_tokens=50)
    Completion.model_validate(answer, strict=True)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    num_tokens = len(tokenizer.encode(" Paris 😀.").ids) + 1
    assert answer["choices"] == [
        {"index": 0, "text": " Paris 😀.", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert answer["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": num_tokens,
        "total_tokens": 1 + num_tokens,
        "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_the_stream_says_the_same(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    say(scheduler, tokenizer, " Paris 😀.")
    *chunks, done = await stream(http, max_tokens=50)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "text_completion" and "usage" not in chunk for chunk in chunks)
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == " Paris 😀."
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


async def test_include_usage(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    *chunks, usage, done = await stream(http, max_tokens=3, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    Completion.model_validate(usage, strict=True)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hello", ["hello"]),
        (["hello", "one"], ["hello", "one"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["hello", [5, 6]], None),
    ],
)
async def test_forms_of_prompts(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer, prompt: Any, prompts: Any
) -> None:
    if prompts is None:
        answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": prompt})
        assert answer.status_code == 400
        return
    answer = await complete(http, prompt=prompt, n=2, max_tokens=4)
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(prompts)))
    expected = [tokenizer.encode(entry).ids if isinstance(entry, str) else entry for entry in prompts]
    assert [request.prompt_token_ids for request in scheduler.requests] == expected
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert answer["usage"]["completion_tokens"] == 8 * len(prompts)


async def test_streamed_choices_of_several_prompts(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"prompt": ["hello", "one", "two"], "n": 2, "max_tokens": 12, "seed": 7}
    whole = await complete(http, **body)
    *chunks, usage, _ = await stream(http, **body, stream_options={"include_usage": True})
    texts = dict.fromkeys(range(6), "")
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert usage["usage"] == whole["usage"]


async def test_parameters_arrive_resolved(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    await complete(http, top_p=0.5, logit_bias={"7": -3}, stop_token_ids=[9], seed=-1, min_tokens=2)
    await complete(http)
    given, default = (request.params for request in scheduler.requests)
    assert (given.top_p, dict(given.logit_bias), list(given.stop_token_ids)) == (0.5, {7: -3.0}, [9])
    assert (given.seed, given.min_tokens, given.max_tokens) == (2**64 - 1, 2, 16)
    # generation_config.json, then the library's defaults.
    assert (default.temperature, default.top_k, default.top_p) == (0.75, 40, 1.0)
    assert default.HasField("seed")
    assert not default.HasField("logprobs")


async def test_without_max_tokens_there_are_16_or_what_fits(http: httpx.AsyncClient) -> None:
    assert (await complete(http))["usage"]["completion_tokens"] == 16
    assert (await complete(http, prompt=[5] * 250))["usage"]["completion_tokens"] == 6


async def test_a_stop_string_over_token_borders(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    say(scheduler, tokenizer, "one two three four five")
    body = {"stop": ["zzz", "o three f"], "max_tokens": 50}
    (choice,) = (await complete(http, **body))["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one tw", "stop", "o three f")
    *chunks, _ = await stream(http, **body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "one tw"
    aborts = await scheduler.wait_aborts(2)
    assert [list(abort.sequence_indices) for abort in aborts] == [[0], [0]]


async def test_a_stop_string_ends_only_its_own_choice(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    say(scheduler, tokenizer, "one two three", "four five six")
    answer = await complete(http, n=2, stop="two", max_tokens=50)
    assert [choice["text"] for choice in answer["choices"]] == ["one ", "four five six"]
    assert [choice["stop_reason"] for choice in answer["choices"]] == ["two", None]
    (abort,) = await scheduler.wait_aborts(1)
    assert list(abort.sequence_indices) == [0]


async def test_a_stop_token_is_counted_but_not_shown(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    stop = tokenizer.encode("t").ids[0]
    scheduler.script = lambda request, index: [*tokenizer.encode("xy").ids, stop, 70]
    answer = await complete(http, stop_token_ids=[stop])
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("xy", "stop", stop)
    assert answer["usage"]["completion_tokens"] == 3


async def test_min_tokens_defers_stop_strings(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("xx").ids[:1] * 5
    letter = tokenizer.decode(tokenizer.encode("xx").ids[:1])
    (choice,) = (await complete(http, stop=letter, min_tokens=2))["choices"]
    assert choice["text"] == letter * 2
    assert choice["stop_reason"] == letter


async def test_tokens_after_a_stop_in_one_message_are_dropped(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    one, two = tokenizer.encode("x").ids, tokenizer.encode("y").ids
    scheduler.script = lambda request, index: [Together([*one, *two, *one, *one])]
    answer = await complete(http, stop="y")
    assert answer["choices"][0]["text"] == "x"
    assert answer["usage"]["completion_tokens"] == 2


async def test_logprobs(http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(" Paris x").ids
    scheduler.script = lambda request, index: token_ids
    tokens = [tokenizer.decode([token_id]) for token_id in token_ids]
    answer = await complete(http, logprobs=2, max_tokens=len(token_ids))
    Completion.model_validate(answer, strict=True)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == tokens
    assert logprobs["token_logprobs"] == [-0.5] * len(tokens)
    assert logprobs["text_offset"] == [len("".join(tokens[:count])) for count in range(len(tokens))]
    assert all(set(top.values()) <= {-0.5, -1.5} for top in logprobs["top_logprobs"])
    assert tokens[0] in logprobs["top_logprobs"][0]
    *chunks, _ = await stream(http, logprobs=2, max_tokens=len(token_ids))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [entry for part in parts for entry in part[name]] == logprobs[name]
    zero = (await complete(http, logprobs=0, max_tokens=2))["choices"][0]["logprobs"]
    assert zero["top_logprobs"] == [{token: -0.5} for token in tokens[:2]]


async def test_special_tokens_are_shown_if_wanted(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("x<|im_start|>y").ids
    body = {"ignore_eos": True, "max_tokens": 3}
    assert (await complete(http, **body))["choices"][0]["text"] == "xy"
    shown = await complete(http, **body, skip_special_tokens=False)
    assert shown["choices"][0]["text"] == "x<|im_start|>y"


async def test_ignore_eos_goes_on(http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    end, letter = tokenizer.token_to_id("<|im_end|>"), tokenizer.encode("x").ids[0]
    scheduler.script = lambda request, index: [letter, end, letter]
    assert (await complete(http, max_tokens=3))["choices"][0]["finish_reason"] == "stop"
    (choice,) = (await complete(http, max_tokens=3, ignore_eos=True))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("xx", "length")


async def test_the_official_client(gateway: Gateway, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    say(scheduler, tokenizer, "one two")
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-") as client:
        whole = await client.completions.create(model=MODEL, prompt="hello", stop=[" two"], logprobs=1)
        assert whole.choices[0].text == "one"
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details is not None
        chunks = await client.completions.create(
            model=MODEL, prompt=[5, 6], stream=True, stream_options={"include_usage": True}
        )
        text = ""
        async for chunk in chunks:
            text += "".join(choice.text for choice in chunk.choices)
        assert text == "one two"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model=MODEL, prompt="x", temperature=3)
        assert caught.value.param == "temperature"
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).owned_by == "quire"
