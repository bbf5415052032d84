from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from support.fake_scheduler import MAX_MODEL_LEN, FakeScheduler, Pause
from support.gateway_fixtures import MODEL, Gateway, start_gateway
from tokenizers import Tokenizer

from quire import rpc
from quire.client import AsyncClient, Client, RetryPolicy
from quire.errors import (
    AuthenticationError,
    ContextLengthError,
    DeadlineError,
    DuplicateRequestError,
    InvalidRequestError,
    QuireError,
    RequestAbortedError,
    ServiceUnavailableError,
)
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, ToolCall
from quire.pooling_params import PoolingParams
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAST = RetryPolicy(max_attempts=4, initial_backoff=0.01, max_backoff=0.02)


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Gateway, scheduler: FakeScheduler) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.grpc_address, timeout=10) as client:
        yield client


async def in_thread(gateway: Gateway, work: Callable[[Client], Any]) -> Any:
    """Runs plain code beside the loop that serves it."""

    def run() -> Any:
        with Client(gateway.grpc_address, timeout=10, retry=FAST) as client:
            return work(client)

    return await asyncio.to_thread(run)


async def test_deltas_and_the_whole(client: AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("Paris 😀").ids
    scheduler.cached_tokens = 1
    count = len(tokenizer.encode("Paris 😀").ids)
    params = SamplingParams(n=2, max_tokens=count, logprobs=1)
    deltas = [delta async for delta in client.generate("hello", params)]
    for index in range(2):
        assert "".join(delta.text for delta in deltas if delta.index == index) == "Paris 😀"
    output = await client.complete("hello", params, request_id="mine")
    assert (output.request_id, output.prompt, output.finished) == ("mine", "hello", True)
    assert output.num_cached_tokens == 1
    assert [completion.text for completion in output.outputs] == ["Paris 😀"] * 2
    assert output.outputs[0].finish_reason == "length"
    assert output.outputs[0].logprobs is not None
    assert len(output.outputs[0].logprobs) == count


async def test_prompts(client: AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    brief = SamplingParams(max_tokens=1)
    await client.complete([5, 6], brief)
    await client.complete([{"role": "user", "content": "x"}], brief)
    with pytest.raises(InvalidRequestError, match="mix"):
        await client.complete([5, {"role": "user", "content": "x"}], brief)  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="empty"):
        await client.complete([], brief)
    chat = tokenizer.encode("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n").ids
    assert [request.prompt_token_ids for request in scheduler.requests] == [[5, 6], chat]


async def test_other_calls(client: AsyncClient, tokenizer: Tokenizer) -> None:
    assert [model.id for model in await client.models()] == [MODEL]
    token_ids = await client.tokenize("hello 😀")
    assert token_ids == tokenizer.encode("hello 😀").ids
    assert await client.detokenize(token_ids) == "hello 😀"


async def test_errors_are_exceptions(client: AsyncClient, scheduler: FakeScheduler) -> None:
    with pytest.raises(ContextLengthError) as caught:
        await client.complete([5] * MAX_MODEL_LEN)
    assert caught.value.field == "token_ids"
    await client.complete("a", SamplingParams(max_tokens=1, seed=1), request_id="twice")
    with pytest.raises(DuplicateRequestError):
        await client.complete("b", SamplingParams(max_tokens=1, seed=1), request_id="twice")


async def test_leaving_early_cancels(client: AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    deltas = client.generate("x")
    await anext(deltas)
    await deltas.aclose()
    await scheduler.wait_aborts()


async def test_the_deadline(gateway: Gateway, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]
    async with AsyncClient(gateway.grpc_address, timeout=0.2) as client:
        with pytest.raises(DeadlineError):
            await client.complete("x")


async def test_a_call_may_have_its_own_deadline(client: AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]
    with pytest.raises(DeadlineError):
        await client.complete("x", timeout=0.2)
    (abort,) = await scheduler.wait_aborts()
    assert abort.reason == scheduler_pb2.ABORT_REASON_DEADLINE_EXCEEDED
    assert len(await client.models(timeout=1e15)) == 1


async def test_the_prompt_comes_back(client: AsyncClient, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "x"}]
    chat = tokenizer.encode("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n").ids
    output = await client.complete(messages, SamplingParams(max_tokens=1), return_token_ids=True)
    assert output.prompt_token_ids == chat
    assert await client.tokenize(messages) == chat
    closed = await client.tokenize(messages, add_generation_prompt=False)
    assert closed == tokenizer.encode("<|im_start|>user\nx<|im_end|>\n").ids


async def test_api_keys(module_scheduler: FakeScheduler, model_folder: Path) -> None:
    module_scheduler.reset()
    gateway = await start_gateway(module_scheduler, model_folder, api_key=["secret"])
    try:
        async with AsyncClient(gateway.grpc_address, api_key="secret") as client:
            assert (await client.complete("x", SamplingParams(max_tokens=1))).finished
        async with AsyncClient(gateway.grpc_address, api_key="other") as client:
            with pytest.raises(AuthenticationError):
                await client.models()
            with pytest.raises(AuthenticationError):
                await client.complete("x")
        with pytest.raises(InvalidRequestError):
            AsyncClient(gateway.grpc_address, api_key="a\nb")
    finally:
        await gateway.close()


async def test_closing_in_mid_stream(gateway: Gateway, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    client = AsyncClient(gateway.grpc_address)
    deltas = client.generate("x")
    await anext(deltas)
    reading = asyncio.create_task(anext(deltas))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(RequestAbortedError, match="the client was closed"):
        await reading
    with pytest.raises(QuireError, match="the client is closed"):
        await client.models()
    with pytest.raises(QuireError, match="the client is closed"):
        await anext(client.generate("x"))
    await scheduler.wait_aborts()


async def test_a_cancellation_of_the_callers_goes_on(client: AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]
    reading = asyncio.create_task(client.complete("x"))
    await scheduler.wait_requests()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await scheduler.wait_aborts()


async def test_closing_plain_code_in_mid_stream(gateway: Gateway, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    client = Client(gateway.grpc_address)
    deltas = client.generate("x")
    await asyncio.to_thread(next, deltas)
    reading = asyncio.create_task(asyncio.to_thread(next, deltas))
    await asyncio.sleep(0.05)
    client.close()
    with pytest.raises(RequestAbortedError, match="the client was closed"):
        await reading
    with pytest.raises(QuireError, match="the client is closed"):
        client.models()


async def test_plain_code(gateway: Gateway, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("Paris").ids
    params = SamplingParams(max_tokens=len(tokenizer.encode("Paris").ids))
    texts = await in_thread(gateway, lambda client: [delta.text for delta in client.generate("x", params)])
    assert "".join(texts) == "Paris"
    output = await in_thread(gateway, lambda client: client.complete("x", params))
    assert output.outputs[0].text == "Paris"
    assert [model.id for model in await in_thread(gateway, lambda client: client.models())] == [MODEL]
    token_ids = await in_thread(gateway, lambda client: client.tokenize("hello"))
    assert await in_thread(gateway, lambda client: client.detokenize(token_ids)) == "hello"
    with pytest.raises(InvalidRequestError):
        await in_thread(gateway, lambda client: client.complete(""))
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    await in_thread(gateway, lambda client: next(client.generate("x")))
    await scheduler.wait_aborts()


class FlakyService(generate_pb2_grpc.GenerateServiceServicer):
    """Answers each Generate with the next of its scripts: messages, perhaps ended by an error."""

    def __init__(self, scripts: Sequence[Sequence[generate_pb2.GenerateResponse | grpc.StatusCode]]) -> None:
        self.scripts = list(scripts)
        self.requests: list[generate_pb2.GenerateRequest] = []
        self.num_model_calls = 0

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: generate_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generate_pb2.GenerateResponse]:
        self.requests.append(request)
        for entry in self.scripts[len(self.requests) - 1]:
            if isinstance(entry, grpc.StatusCode):
                await context.abort(entry, "as scripted")
            else:
                yield entry

    async def ListModels(  # type: ignore[override]  # noqa: N802
        self, request: generate_pb2.ListModelsRequest, context: Any
    ) -> generate_pb2.ListModelsResponse:
        self.num_model_calls += 1
        if self.num_model_calls < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "as scripted")
        return generate_pb2.ListModelsResponse(models=[generate_pb2.Model(id="m")])

    async def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Detokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError


async def flaky(service: FlakyService) -> tuple[grpc.aio.Server, str]:
    server = rpc.new_server()
    generate_pb2_grpc.add_GenerateServiceServicer_to_server(service, server)
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


def message(
    text: str, token_ids: list[int], *, index: int = 0, last: bool = False, usage: bool = False
) -> generate_pb2.GenerateResponse:
    delta = generate_pb2.CompletionDelta(index=index, text=text, token_ids=token_ids)
    if last:
        delta.finish_reason = generate_pb2.FINISH_REASON_LENGTH
    response = generate_pb2.GenerateResponse(deltas=[delta])
    if usage:
        response.usage.completion_tokens = 5
    return response


GONE = grpc.StatusCode.UNAVAILABLE
# The second answer holds the same output as the first would have, cut elsewhere.
RESUMED = [
    [GONE],
    [message("ab", [1, 2]), message("x", [9], index=1, last=True), GONE],
    [
        message("a", [1]),
        message("bcd", [2, 3, 4]),
        message("x", [9], index=1, last=True),
        message("e", [5], last=True, usage=True),
    ],
]
# Pieces of sequence 0 and 1 that the caller sees.
SEEN = [(0, "ab", [1, 2]), (1, "x", [9]), (0, "cd", [3, 4]), (0, "e", [5])]


def call_message(*calls: generate_pb2.ToolCallDelta, reasoning: str = "") -> generate_pb2.GenerateResponse:
    delta = generate_pb2.CompletionDelta(reasoning_content=reasoning, tool_calls=calls)
    return generate_pb2.GenerateResponse(deltas=[delta], prompt_token_ids=[7, 8])


async def test_tool_calls_over_a_retry() -> None:
    call = generate_pb2.ToolCallDelta
    end = generate_pb2.CompletionDelta(finish_reason=generate_pb2.FINISH_REASON_TOOL_CALLS)
    last = generate_pb2.GenerateResponse(deltas=[end], usage=generate_pb2.Usage(completion_tokens=5))
    scripts = [
        [call_message(call(id="a", name="f", arguments='{"x'), reasoning="hm"), GONE],
        [
            call_message(
                call(id="a", name="f", arguments='{"x": 1}'), call(index=1, id="b", name="g"), reasoning="hmm"
            ),
            call_message(call(index=1, arguments="{}")),
            last,
        ],
    ]
    server, address = await flaky(FlakyService(scripts))
    async with AsyncClient(address, retry=FAST) as client:
        output = await client.complete([{"role": "user", "content": "x"}], return_token_ids=True)
    await server.stop(None)
    (turn,) = output.outputs
    assert turn.tool_calls == [ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", "{}")]
    assert (turn.reasoning_content, turn.finish_reason) == ("hmm", "tool_calls")
    assert output.prompt_token_ids == [7, 8]


def seen(deltas: list[CompletionDelta]) -> list[tuple[int, str, list[int]]]:
    return [(delta.index, delta.text, list(delta.token_ids)) for delta in deltas]


async def test_a_retry_in_mid_stream_repeats_nothing() -> None:
    service = FlakyService(RESUMED)
    server, address = await flaky(service)
    async with AsyncClient(address, retry=FAST) as client:
        deltas = [delta async for delta in client.generate("x", SamplingParams(n=2))]
    await server.stop(None)
    assert seen(deltas) == SEEN
    # One id and one seed for all attempts: a repeat joins the run, or begins the same one.
    assert len({request.SerializeToString(deterministic=True) for request in service.requests}) == 1
    assert service.requests[0].request_id
    assert service.requests[0].sampling_params.HasField("seed")


async def test_a_retry_in_plain_code() -> None:
    service = FlakyService(RESUMED)
    server, address = await flaky(service)

    def run() -> tuple[list[CompletionDelta], list[str]]:
        with Client(address, retry=FAST) as client:
            return list(client.generate("x", SamplingParams(n=2))), [model.id for model in client.models()]

    deltas, models = await asyncio.to_thread(run)
    await server.stop(None)
    assert seen(deltas) == SEEN
    assert models == ["m"]


async def test_retries_come_to_an_end() -> None:
    service = FlakyService([[GONE]] * 4)
    server, address = await flaky(service)
    async with AsyncClient(address, retry=FAST) as client:
        with pytest.raises(ServiceUnavailableError):
            await client.complete("x")
    await server.stop(None)
    assert len(service.requests) == 4


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
async def test_only_unavailable_is_retried(code: grpc.StatusCode) -> None:
    service = FlakyService([[code]] * 4)
    server, address = await flaky(service)
    async with AsyncClient(address, retry=FAST) as client:
        with pytest.raises(Exception, match="as scripted"):
            await client.complete("x")
    await server.stop(None)
    assert len(service.requests) == 1


async def test_retries_end_with_the_deadline() -> None:
    patient = RetryPolicy(max_attempts=1000, initial_backoff=0.05, max_backoff=0.05)
    begun = time.monotonic()
    async with AsyncClient("127.0.0.1:1", timeout=0.4, retry=patient) as client:
        with pytest.raises((ServiceUnavailableError, DeadlineError)):
            await client.models()
    assert time.monotonic() - begun < 2


async def test_embeddings(client: AsyncClient, gateway: Gateway, scheduler: FakeScheduler) -> None:
    params = PoolingParams(pooling="mean", dimensions=3, truncate_prompt_tokens=2)
    vectors = await client.embed(["hello world", (70, 71, 72)], params)
    assert [len(vector) for vector in vectors] == [3, 3]
    assert sum(value * value for value in vectors[1]) == pytest.approx(1, abs=1e-5)
    assert scheduler.requests[1].prompt_token_ids == [71, 72]
    assert await in_thread(gateway, lambda plain: plain.embed([[71, 72]], params)) == vectors[1:]


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        (b"one text", "inputs"),
        ([], "inputs"),
        (["a", 7], "inputs[1]"),
        (["a", ""], "inputs[1]"),
        (["a\ud800"], "inputs[0]"),
    ],
)
async def test_embeddings_of_bad_inputs(client: AsyncClient, inputs: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await client.embed(inputs)
    assert refused.value.field == field
