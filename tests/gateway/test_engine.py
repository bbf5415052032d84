"""The engine as the offline LLM class uses it: no server, only validate, submit and generate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from support.fake_scheduler import MAX_MODEL_LEN, VOCAB_SIZE, FakeScheduler, Pause, Together
from tokenizers import Tokenizer

from quire.errors import (
    CheckpointError,
    ContextLengthError,
    InvalidRequestError,
    ModelNotFoundError,
    ServiceUnavailableError,
    StartupError,
)
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.engine import Engine
from quire.gateway.tenants import ANONYMOUS
from quire.gateway.validation import Prompt, RequestContext, ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.outputs import GenerationDelta, RequestOutput
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(module_scheduler: FakeScheduler, model_folder: Path) -> AsyncIterator[Engine]:
    engine = await Engine.start(scheduler=module_scheduler.address, model=str(model_folder))
    yield engine
    await engine.close()


async def valid(engine: Engine, prompt: Prompt = "hello", **params: object) -> ValidRequest:
    return await engine.validator.validate(prompt, SamplingParams(**params), RequestContext("id", ANONYMOUS))  # type: ignore[arg-type]


async def output_of(engine: Engine, request: ValidRequest) -> RequestOutput:
    output = RequestOutput.empty("id", request.prompt, request.prompt_token_ids, request.n)
    async for delta in engine.generate(request):
        output.add(delta, engine.tokenizer.vocabulary.text_of)
    return output


async def test_deltas_add_up(engine: Engine, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("Paris 😀 Tokyo").ids
    scheduler.cached_tokens = 1
    output = await output_of(engine, await valid(engine, n=3, max_tokens=6, logprobs=1))
    assert output.finished
    assert output.num_cached_tokens == 1
    for completion in output.outputs:
        assert completion.token_ids == tokenizer.encode("Paris 😀 Tokyo").ids[:6]
        assert completion.text == tokenizer.decode(completion.token_ids)
        assert completion.finish_reason == "length"
        assert completion.logprobs is not None
        assert len(completion.logprobs) == 6
        assert completion.cumulative_logprob == -3.0


async def test_a_slow_reader_gets_steps_together(engine: Engine, scheduler: FakeScheduler) -> None:
    async with await engine.submit(await valid(engine, max_tokens=20)) as generation:
        await asyncio.sleep(0.1)
        deltas = [delta async for delta in generation]
    tokens = [token for delta in deltas for part in delta.deltas for token in part.token_ids]
    assert len(tokens) == 20


async def test_usage_comes_once_and_last(engine: Engine, scheduler: FakeScheduler) -> None:
    deltas = [delta async for delta in engine.generate(await valid(engine, max_tokens=5, n=2))]
    assert [delta.usage is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (1, 10)


async def test_closing_the_iterator_aborts(engine: Engine, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    iterator = engine.generate(await valid(engine))
    await anext(iterator)
    await iterator.aclose()
    (abort,) = await scheduler.wait_aborts()
    assert abort.reason == scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED


async def test_cancelling_the_reader_aborts(engine: Engine, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]

    async def read() -> None:
        async for _ in engine.generate(await valid(engine)):
            pass

    reading = asyncio.create_task(read())
    await scheduler.wait_requests()
    reading.cancel()
    await scheduler.wait_aborts()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_finished_request_is_not_aborted(engine: Engine, scheduler: FakeScheduler) -> None:
    async with await engine.submit(await valid(engine, max_tokens=2)) as generation:
        async for _ in generation:
            pass
    await asyncio.sleep(0.02)
    assert scheduler.aborts == []


async def test_a_stop_string_aborts_its_sequence_alone(
    engine: Engine, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    go_on = asyncio.Event()
    stop = tokenizer.encode("stop").ids

    def script(request: scheduler_pb2.SubmitRequest, index: int) -> list[int | Pause | Together]:
        return [Together([*stop, 90, 91]), Pause(go_on), 92] if index == 1 else [Pause(go_on), *[93] * 9]

    scheduler.script = script
    async with await engine.submit(await valid(engine, n=2, stop="top", max_tokens=9)) as generation:
        deltas: list[GenerationDelta] = [await anext(generation)]
        (abort,) = await scheduler.wait_aborts()
        go_on.set()
        deltas += [delta async for delta in generation]
    assert (list(abort.sequence_indices), abort.reason) == ([1], scheduler_pb2.ABORT_REASON_STOP_STRING)
    parts = [part for delta in deltas for part in delta.deltas]
    assert [part.finish_reason for part in parts if part.index == 1] == ["stop"]
    assert "".join(part.text for part in parts if part.index == 1) == "s"
    assert [part.finish_reason for part in parts if part.index == 0][-1] == "length"


async def test_a_sequence_that_the_scheduler_aborts(engine: Engine, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    async with await engine.submit(await valid(engine)) as generation:
        await anext(generation)
        end = scheduler_pb2.SequenceFinished(
            request_key=scheduler.requests[0].message.request_key, reason=generate_pb2.FINISH_REASON_ABORT
        )
        scheduler.send(scheduler_pb2.StepOutputs(finished=[end]))
        deltas = [delta async for delta in generation]
    assert [part.finish_reason for delta in deltas for part in delta.deltas] == ["abort"]
    assert scheduler.aborts == []


async def test_what_was_held_back_comes_with_the_end(
    engine: Engine, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    half = tokenizer.token_to_id("ð")
    scheduler.script = lambda request, index: [*tokenizer.encode("xST").ids, half]
    count = len(tokenizer.encode("xST").ids)
    output = await output_of(engine, await valid(engine, stop="STOP", max_tokens=count + 1))
    assert output.outputs[0].text == "xST\N{REPLACEMENT CHARACTER}"


async def test_validation(engine: Engine, tokenizer: Tokenizer) -> None:
    request = await valid(engine, "hello", stop="x")
    assert (request.prompt, request.prompt_token_ids) == ("hello", tokenizer.encode("hello").ids)
    ends = (tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|im_end|>"))
    assert request.eos_token_ids == tuple(sorted(ends))
    assert request.params.max_tokens == MAX_MODEL_LEN - 1
    assert (await valid(engine, [5, 6])).prompt is None
    with pytest.raises(InvalidRequestError, match=f"512\\): {VOCAB_SIZE}, -1$"):
        await valid(engine, [1, VOCAB_SIZE, -1])
    with pytest.raises(InvalidRequestError, match="empty"):
        await valid(engine, [])
    with pytest.raises(InvalidRequestError, match="empty"):
        await valid(engine, "")
    with pytest.raises(InvalidRequestError, match="no messages"):
        await valid(engine, ChatPrompt([]))
    with pytest.raises(InvalidRequestError, match="Unicode"):
        await valid(engine, "\ud800")
    with pytest.raises(ContextLengthError):
        await valid(engine, [5] * MAX_MODEL_LEN)
    with pytest.raises(InvalidRequestError, match="max_num_seqs"):
        await valid(engine, n=9)
    with pytest.raises(ModelNotFoundError):
        engine.validator.check_model("other")


async def test_a_chat_that_does_not_open_a_turn(engine: Engine) -> None:
    messages = [{"role": "user", "content": "x"}]
    opened = await valid(engine, ChatPrompt(messages))
    closed = await valid(engine, ChatPrompt(messages, add_generation_prompt=False))
    assert opened.prompt is not None
    assert closed.prompt is not None
    assert opened.prompt == closed.prompt + "<|im_start|>assistant\n"


async def test_encoding_does_not_block_the_loop(engine: Engine) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    await engine.tokenizer.encode("capital of France " * 50_000)
    ticking.cancel()
    assert ticks > 20


async def test_a_checkpoint_without_a_tokenizer_is_named(
    scheduler: FakeScheduler, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        await Engine.start(scheduler=scheduler.address, model=str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config.json is not valid JSON"):
        await Engine.start(scheduler=scheduler.address, model=str(tmp_path))
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(CheckpointError, match=r"generation_config.json .*top_p must be"):
        await Engine.start(scheduler=scheduler.address, model=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        await Engine.start(scheduler=scheduler.address, model=str(tmp_path))


async def test_without_a_generation_config_the_config_names_the_end(
    scheduler: FakeScheduler, model_folder: Path, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "config.json").write_text('{"eos_token_id": 77}')
    engine = await Engine.start(scheduler=scheduler.address, model=str(tmp_path))
    assert 77 in engine.tokenizer.eos_token_ids
    await engine.close()


async def test_no_scheduler_is_a_startup_error(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"not ready after 0\.2 s"):
        await Engine.start(scheduler=f"unix:{tmp_path}/nobody", model=str(model_folder), startup_timeout=0.2)


async def test_closing_fails_what_runs(scheduler: FakeScheduler, model_folder: Path) -> None:
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]
    engine = await Engine.start(scheduler=scheduler.address, model=str(model_folder))
    generation = await engine.submit(await valid(engine))
    reading = asyncio.create_task(anext(generation))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(ServiceUnavailableError, match="shutting down"):
        await reading
    assert scheduler.aborts[0].reason == scheduler_pb2.ABORT_REASON_SHUTDOWN
    with pytest.raises(ServiceUnavailableError):
        await engine.submit(replace(generation.request, context=RequestContext("late", ANONYMOUS)))


async def test_logprobs_of_the_prompt_come_with_the_first_tokens(engine: Engine, scheduler: FakeScheduler) -> None:
    request = await valid(engine, "The capital of France", max_tokens=3, n=2, prompt_logprobs=2)
    deltas = [delta async for delta in engine.generate(request)]
    assert [delta.prompt_logprobs is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    positions = deltas[0].prompt_logprobs
    assert positions is not None and positions[0] is None
    told = [position for position in positions if position is not None]
    assert [position.token_id for position in told] == request.prompt_token_ids[1:]
    assert [position.logprob for position in told] == pytest.approx([-i / 100 for i in request.prompt_token_ids[1:]])
    assert all(position.top == ((60, 0.0), (61, -1.0)) for position in told)


async def test_outputs_hold_logprobs_of_the_prompt(engine: Engine, scheduler: FakeScheduler) -> None:
    request = await valid(engine, [70, 61, 72], max_tokens=3, prompt_logprobs=2)
    output = await output_of(engine, request)
    assert output.prompt_logprobs is not None
    first, second, third = output.prompt_logprobs
    text_of = engine.tokenizer.vocabulary.text_of
    assert first is None and second is not None and third is not None
    assert {token_id: entry.rank for token_id, entry in second.items()} == {61: 2, 60: 1}
    assert {token_id: entry.rank for token_id, entry in third.items()} == {72: None, 60: 1, 61: 2}
    assert third[72].decoded_token == text_of(72)
    assert (await output_of(engine, await valid(engine, max_tokens=3))).prompt_logprobs is None


async def test_more_logprobs_of_the_prompt_than_the_server_gives_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="prompt_logprobs must be at most 20, not 21") as refused:
        await valid(engine, prompt_logprobs=21)
    assert refused.value.field == "prompt_logprobs"
