"""The REST API of a whole server, through the official client where it can say it and bare HTTP where it cannot."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import httpx
import openai
import psutil
import pytest

MODEL = "quire-tiny"
FRANCE = "The capital of France is"


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def _complete(client, prompt=FRANCE, **params):
    return client.completions.create(model=MODEL, prompt=prompt, **{"max_tokens": 8, "temperature": 0, **params})


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL


def test_the_bundled_model_knows_the_capital_of_france(client):
    answer = _complete(client, logprobs=2)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].logprobs.tokens[0] == " Paris"
    assert answer.choices[0].logprobs.token_logprobs[0] > -0.105  # a probability of at least 0.9


def test_completion_streams_the_same_text(client):
    whole = _complete(client, max_tokens=40)
    stream = list(_complete(client, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in stream}) == 1
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_every_form_of_prompt(server, client):
    ids = httpx.post(f"{server.url}/v1/completions", json={"model": MODEL, "prompt": FRANCE, "max_tokens": 1})
    assert ids.status_code == 200
    text = _complete(client).choices[0].text
    both = _complete(client, prompt=[FRANCE, "The capital of Italy is"])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == text
    assert both.choices[1].text.startswith(" Rome")
    token_ids = _token_ids(server, FRANCE)
    assert _complete(client, prompt=token_ids).choices[0].text == text
    assert [choice.text for choice in _complete(client, prompt=[token_ids, token_ids]).choices] == [text, text]


def _token_ids(server, text):
    from quire.client import Client

    with Client(server.grpc_address) as grpc_client:
        return grpc_client.tokenize(text)


def test_chat(client):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_completion_tokens=40, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_completion_tokens=40, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content


def test_n_continuations_share_their_prompt(server, client):
    before = server.kv_state()
    answer = _complete(client, n=4, temperature=1.2, seed=5, max_tokens=16)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.usage.prompt_tokens == 5
    assert server.kv_state().num_copied_blocks - before.num_copied_blocks == 3
    again = _complete(client, n=4, temperature=1.2, seed=5, max_tokens=16)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_stop(client):
    text = _complete(client, prompt="Once upon a time", max_tokens=40).choices[0].text
    stop = text[40:44]
    stopped = _complete(client, prompt="Once upon a time", max_tokens=40, stop=[stop])
    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_logit_bias_and_penalties(server, client):
    (paris,) = _token_ids(server, " Paris")
    banned = _complete(client, logit_bias={str(paris): -100})
    assert "Paris" not in banned.choices[0].text
    forced = _complete(client, logit_bias={str(paris): 100}, max_tokens=3)
    assert forced.choices[0].text == " Paris Paris Paris"
    unrepeated = _complete(client, logit_bias={str(paris): 100}, max_tokens=3, extra_body={"repetition_penalty": 50.0})
    assert unrepeated.choices[0].text != forced.choices[0].text


def test_min_tokens_and_ignore_eos(client):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    longer = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_completion_tokens=60, extra_body={"min_tokens": 50}
    )
    assert longer.usage.completion_tokens >= 50
    endless = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_completion_tokens=60, extra_body={"ignore_eos": True}
    )
    assert endless.usage.completion_tokens == 60
    assert endless.choices[0].finish_reason == "length"


BAD = [
    ({"model": "gpt-none"}, 404, "model"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [1, 10**6]}, 400, "prompt"),
    ({"prompt": [True]}, 400, "prompt"),
    ({"prompt": {"a": 1}}, 400, "prompt"),
    ({"prompt": [7] * 3000}, 400, "prompt"),
    ({"max_tokens": 5000}, 400, "prompt"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": "7"}, 400, "max_tokens"),
    ({"max_tokens": True}, 400, "max_tokens"),
    ({"temperature": -0.1}, 400, "temperature"),
    ({"temperature": 2.1}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"top_p": 1.1}, 400, "top_p"),
    ({"n": 0}, 400, "n"),
    ({"n": 100_000}, 400, "n"),
    ({"presence_penalty": 2.5}, 400, "presence_penalty"),
    ({"frequency_penalty": -2.5}, 400, "frequency_penalty"),
    ({"logprobs": 1000}, 400, "logprobs"),
    ({"logit_bias": {"7": 101}}, 400, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ({"stop": ["x"] * 100}, 400, "stop"),
    ({"no_such_field": 1}, 400, "no_such_field"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("change", "status", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused_before_the_200(server, change, status, param, stream):
    body = {"model": MODEL, "prompt": FRANCE, "max_tokens": 4, "stream": stream, **change}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"]


def test_bad_json(server):
    answer = httpx.post(
        f"{server.url}/v1/completions", content=b"{not json", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_server_is_unharmed_by_bad_input(client):
    assert _complete(client).choices[0].text.startswith(" Paris")


def test_health_version_docs(server):
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/version").json()["version"]
    assert "/v1/completions" in httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert httpx.get(f"{server.url}/docs").status_code == 200


async def test_many_clients_at_once(server):
    """64 streams of mixed lengths; each is what it would be alone."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        async def run(i: int) -> str:
            stream = await client.completions.create(
                model=MODEL,
                prompt=f"{i}. Once upon a time",
                max_tokens=8 + i % 24,
                temperature=0.8,
                seed=i,
                stream=True,
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        together = await asyncio.gather(*map(run, range(64)))
        alone = [await run(i) for i in (0, 17, 63)]
    assert [together[0], together[17], together[63]] == alone


def test_frames_on_the_wire(server):
    body = {"model": MODEL, "prompt": FRANCE, "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        frames = [line for line in answer.iter_lines() if line]
    assert frames[-1] == "data: [DONE]"
    assert all(json.loads(frame.removeprefix("data: "))["object"] == "text_completion" for frame in frames[:-1])


def test_executors_are_sandboxed_and_sockets_are_ours_alone(server):
    children = psutil.Process().children(recursive=True)
    (executor,) = [child for child in children if "quire: executor" in " ".join(child.cmdline())]
    for thread in Path(f"/proc/{executor.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    folder = Path(server.supervisor.scheduler_address.removeprefix("unix:")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    sockets = [path for path in folder.rglob("*") if path.is_socket()]
    assert {"executor-0.sock", "scheduler.sock"} <= {path.name for path in sockets}
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}
