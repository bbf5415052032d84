"""Structured output of a whole server with the bundled model: every complete output matches, whatever else happens."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema
import openai
import pytest
from support.servers import inspect_scheduler

from quire import LLM, SamplingParams
from quire.client import Client
from quire.errors import InvalidRequestError
from quire.internal.v1 import scheduler_pb2
from quire.structured_outputs import StructuredOutputs

MODEL = "quire-tiny"
PROMPT = "Once upon a time"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["good", "bad", 3]}, "minItems": 1, "maxItems": 3},
        "friend": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/friend"}]},
    },
    "required": ["name", "age", "tags", "friend"],
    "additionalProperties": False,
    "$defs": {
        "friend": {
            "type": "object",
            "properties": {"initial": {"type": "string", "pattern": "^[A-Z]$"}},
            "required": ["initial"],
            "additionalProperties": False,
        }
    },
}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def _complete(client, **params):
    body = {"max_tokens": 300, "temperature": 1.0, "seed": 0, **params}
    return client.completions.create(model=MODEL, prompt=PROMPT, **body)


def _check_person(text):
    jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("seed", range(6))
def test_a_schema(client, seed):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe a person."}],
        response_format=RESPONSE_FORMAT,
        temperature=1.0,
        seed=seed,
        max_tokens=300,
    )
    assert answer.choices[0].finish_reason == "stop"
    _check_person(answer.choices[0].message.content)


def test_a_stream_gives_the_same(client):
    asked = {"seed": 4, "extra_body": {"response_format": RESPONSE_FORMAT}}
    whole = _complete(client, **asked).choices[0]
    chunks = [chunk.choices[0] for chunk in _complete(client, stream=True, **asked)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].finish_reason == whole.finish_reason == "stop"
    _check_person(whole.text)


def test_several_continuations_have_their_own_state(client):
    choices = _complete(client, n=3, extra_body={"structured_outputs": {"json": PERSON}}).choices
    for choice in choices:
        assert choice.finish_reason == "stop"
        _check_person(choice.text)
    assert len({choice.text for choice in choices}) == 3


def test_every_kind(client):
    texts = ["yes", "yes, but", "no"]
    for seed in range(4):
        kinds = {
            "choice": texts,
            "regex": r"[a-f]{3}-\d{2,4}",
            "grammar": 'start: sum\nsum: NUMBER ("+" NUMBER)~1..3\nNUMBER: /[1-9][0-9]?/',
        }
        answers = {
            kind: _complete(client, seed=seed, extra_body={"structured_outputs": {kind: value}}).choices[0].text
            for kind, value in kinds.items()
        }
        assert answers["choice"] in texts
        assert re.fullmatch(r"[a-f]{3}-[0-9]{2,4}", answers["regex"])
        assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", answers["grammar"])


def test_any_object_without_white_space(client):
    asked = {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}}
    text = _complete(client, temperature=0, extra_body=asked).choices[0].text
    value = json.loads(text)
    assert isinstance(value, dict)
    assert json.dumps(value, separators=(",", ":"), ensure_ascii=False) == text


def test_the_end_of_the_grammar_ends_the_output(client):
    choice = _complete(client, extra_body={"guided_choice": ["one"], "ignore_eos": True}).choices[0]
    assert (choice.text, choice.finish_reason) == ("one", "stop")


def test_what_is_cut_says_so(client):
    choice = _complete(client, max_tokens=5, extra_body={"response_format": RESPONSE_FORMAT}).choices[0]
    assert choice.finish_reason == "length"
    assert choice.text.startswith("{") and not choice.text.endswith("}")


def test_grpc(server):
    with Client(server.grpc_address) as client:
        params = SamplingParams(max_tokens=300, seed=1, structured_outputs=StructuredOutputs(json=PERSON))
        output = client.complete(PROMPT, params).outputs[0]
        assert output.finish_reason == "stop"
        _check_person(output.text)
        with pytest.raises(InvalidRequestError, match="look-ahead") as caught:
            client.complete(PROMPT, SamplingParams(structured_outputs=StructuredOutputs(regex="a(?=b)")))
        assert caught.value.field == "structured_outputs.regex"


def test_what_cannot_be_enforced_is_refused_and_the_server_serves_on(server, client):
    too_deep = "start: x0\n" + "".join(f'x{i}: "a" x{i + 1}\n' for i in range(2000)) + 'x2000: "b"'
    cases = [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}, '"not"'),
        ({"structured_outputs": {"json": {"type": "array", "contains": {}}}}, '"contains"'),
        ({"structured_outputs": {"grammar": too_deep}}, "too complex"),
    ]
    for body, message in cases:
        answer = httpx.post(f"{server.url}/v1/completions", json={"model": MODEL, "prompt": PROMPT, **body}, timeout=60)
        assert answer.status_code == 400, answer.text
        assert message in answer.json()["error"]["message"]
    _check_person(_complete(client, extra_body={"guided_json": PERSON}).choices[0].text)


def _free(seed):
    return SamplingParams(temperature=1.0, seed=seed, max_tokens=64, ignore_eos=True, logprobs=2)


@pytest.mark.slow
def test_free_requests_are_unchanged_by_structured_neighbours_and_preemption():
    """Structured ones too: alone, in company, and in a pool so small that they lose their blocks on the way."""
    prompts = [f"Number {index}:" for index in range(8)]
    people = {"type": "array", "items": PERSON, "minItems": 2, "maxItems": 3, "$defs": PERSON["$defs"]}
    schema = StructuredOutputs(json=people)
    structured = [SamplingParams(temperature=1.0, seed=i, max_tokens=380, structured_outputs=schema) for i in range(8)]
    wanted = [_free(i) if i % 2 else structured[i] for i in range(8)]
    runs = []
    for settings in (
        {"kv_cache_memory": "64MiB"},
        {"kv_cache_memory": "1280KiB", "enable_prefix_caching": False, "max_model_len": 400},
    ):
        with LLM(dtype="float32", max_num_seqs=8, **settings) as llm:
            if not runs:
                runs.append([llm.generate(prompt, params)[0] for prompt, params in zip(prompts, wanted, strict=True)])
            runs.append(llm.generate(prompts, wanted))
            with inspect_scheduler(llm.scheduler_address) as scheduler:
                state = scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)
    assert state.num_preemptions > 0, "the small pool preempts"
    alone, together, preempted = ([request.outputs[0] for request in run] for run in runs)
    for i in range(8):
        assert alone[i].token_ids == together[i].token_ids == preempted[i].token_ids
        assert alone[i].logprobs == together[i].logprobs
        if not i % 2 and alone[i].finish_reason == "stop":
            jsonschema.validate(json.loads(alone[i].text), people)
    assert sum(alone[i].finish_reason == "stop" for i in range(0, 8, 2)) >= 2


def test_many_at_once(server):
    """More than there is room for in a batch, of many kinds, streamed or not."""

    def ask(index):
        kinds = [{"guided_json": PERSON}, {"guided_regex": "[a-z]{2,5}"}, {}, {"guided_choice": ["x", "y z"]}]
        kind = kinds[index % len(kinds)]
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 300 if kind else 20, "seed": index, **kind}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=100)
        assert answer.status_code == 200, answer.text
        return kind, answer.json()["choices"][0]["text"]

    with ThreadPoolExecutor(24) as pool:
        for kind, text in pool.map(ask, range(48)):
            if "guided_json" in kind:
                _check_person(text)
            elif "guided_regex" in kind:
                assert re.fullmatch("[a-z]{2,5}", text)
            elif kind:
                assert text in kind["guided_choice"]
