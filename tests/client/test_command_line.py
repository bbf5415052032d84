"""`quire complete`, `quire chat` and `quire grpc`, as processes of their own, against a gateway."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from support.fake_scheduler import MAX_MODEL_LEN, FakeScheduler, Pause
from support.gateway_fixtures import MODEL, Gateway
from tokenizers import Tokenizer

from quire import __version__
from quire.columns import unpack_u32

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = "quire.v1.GenerateService"


@dataclass
class Finished:
    """A process that has ended."""

    status: int
    out: str
    err: str


async def quire(*args: str, given: bytes = b"", gateway: Gateway | None = None) -> Finished:
    """Runs the command line to its end."""
    environment = {**os.environ, **({"QUIRE_ADDRESS": gateway.grpc_address} if gateway else {})}
    # In a thread: uvloop forks by itself, and a process with gRPC's threads must not be forked.
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-P", "-m", "quire", *args],
        input=given,
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


async def test_version() -> None:
    assert (await quire("--version")).out == f"{__version__}\n"


async def test_a_prompt_from_standard_input(gateway: Gateway, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("Paris").ids
    count = str(len(tokenizer.encode("Paris").ids))
    done = await quire("complete", "-", "--max-tokens", count, given=b"hello\n", gateway=gateway)
    assert (done.status, done.out) == (0, "Paris\n")
    assert scheduler.requests[0].prompt_token_ids == tokenizer.encode("hello").ids


async def test_a_chat_goes_on_after_what_cannot_be_answered(
    gateway: Gateway, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("yes").ids
    around = len(tokenizer.encode("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n").ids)
    room = MAX_MODEL_LEN - around - 3
    # Fits alone, but not after another turn.
    long = "x" + " y" * ((room - 1) // len(tokenizer.encode(" y").ids))
    lines = [b"caf\xe9", b"one", long.encode(), b"seven " * MAX_MODEL_LEN, b"two"]
    given = b"\n".join(lines) + b"\n"
    done = await quire("chat", "--max-tokens", "3", given=given, gateway=gateway)
    assert done.status == 0
    assert "not valid UTF-8" in done.err
    assert "the oldest turn is left out" in done.err
    assert "does not fit the context" in done.err
    prompts = [
        tokenizer.decode(unpack_u32(request.message.prompt_token_ids), skip_special_tokens=False)
        for request in scheduler.requests
    ]
    questions = ["<|im_start|>user\none<|im_end|>", long, "<|im_start|>user\ntwo<|im_end|>"]
    assert len(prompts) == len(questions)
    for prompt, question in zip(prompts, questions, strict=True):
        assert question in prompt


async def test_grpc_list_and_describe(gateway: Gateway) -> None:
    listed = await quire("grpc", "list", gateway=gateway)
    assert f"  {SERVICE}/Generate" in listed.out.splitlines()
    assert "grpc.health.v1.Health" in listed.out.splitlines()
    described = (await quire("grpc", "describe", "quire.v1.SamplingParams", gateway=gateway)).out.splitlines()
    assert "  uint32 n = 1;  // optional" in described
    assert "  map<uint32, float> logit_bias = 12;" in described
    assert "  repeated string stop = 14;" in described
    unknown = await quire("grpc", "describe", "quire.v1.Nothing", gateway=gateway)
    assert unknown.status == 1
    assert "the server knows no 'quire.v1.Nothing'" in unknown.err


async def test_grpc_call(gateway: Gateway, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("Paris 😀").ids
    count = len(tokenizer.encode("Paris 😀").ids)
    request = json.dumps({"text": "hello", "sampling_params": {"max_tokens": count}})
    done = await quire("grpc", "call", f"{SERVICE}/Generate", request, "-H", "x-trace: 7", gateway=gateway)
    responses = [json.loads(line) for line in done.out.splitlines()]
    assert "".join(delta.get("text", "") for response in responses for delta in response["deltas"]) == "Paris 😀"
    assert responses[-1]["usage"]["completion_tokens"] == count
    models = await quire("grpc", "call", f"{SERVICE}/ListModels", "-", given=b"{}\n", gateway=gateway)
    assert json.loads(models.out)["models"][0]["id"] == MODEL


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((f"{SERVICE}/Generate", '{"text": "x", "sampling_params": {"n": 0}}'), "INVALID_ARGUMENT: n must be"),
        ((f"{SERVICE}/Generate", '{"words": 1}'), "not a quire.v1.GenerateRequest in JSON"),
        ((f"{SERVICE}/Dance",), "has no method"),
        ((f"{SERVICE}/ListModels", "-"), "takes one message, not 0"),
        ((f"{SERVICE}/ListModels", "{}", "--deadline", "0"), "timeout must be"),
        ((f"{SERVICE}/ListModels", "{}", "-H", "x"), "a header is"),
    ],
)
async def test_grpc_call_says_what_is_wrong(gateway: Gateway, args: tuple[str, ...], said: str) -> None:
    done = await quire("grpc", "call", *args, gateway=gateway)
    assert done.status == 1
    assert said in done.err


async def test_the_deadline_of_a_call(gateway: Gateway, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]
    done = await quire("grpc", "call", f"{SERVICE}/Generate", '{"text": "x"}', "--deadline", "1", gateway=gateway)
    assert done.status == 1
    assert "DEADLINE_EXCEEDED" in done.err
    await scheduler.wait_aborts()
