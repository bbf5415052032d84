"""Embeddings in front of a fake scheduler: validation, normalising, aborts; and over gRPC."""

from __future__ import annotations

import asyncio
import json
import math
from array import array
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from support.fake_scheduler import HIDDEN_SIZE, MAX_MODEL_LEN, FakeScheduler, Pause, pseudo_state
from support.gateway_fixtures import Gateway

from quire.errors import (
    CheckpointError,
    ContextLengthError,
    InvalidRequestError,
    OverloadedError,
    QuireError,
    ServiceUnavailableError,
)
from quire.gateway.engine import Engine
from quire.gateway.pooling import cosine_similarity, own_pooling, unit_vector
from quire.gateway.tenants import ANONYMOUS
from quire.gateway.validation import RequestContext
from quire.pooling_params import PoolingParams
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABOUT = RequestContext("embd", ANONYMOUS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(module_scheduler: FakeScheduler, model_folder: Path) -> AsyncIterator[Engine]:
    engine = await Engine.start(scheduler=module_scheduler.address, model=str(model_folder))
    yield engine
    await engine.close()


@pytest.fixture
def stub(gateway: Gateway) -> Iterator[Any]:
    channel = grpc.aio.insecure_channel(gateway.grpc_address)
    yield generate_pb2_grpc.GenerateServiceStub(channel)


def unit(values: list[float]) -> list[float]:
    return [value / math.hypot(*values) for value in values]


async def test_vectors_have_length_one(engine: Engine, scheduler: FakeScheduler) -> None:
    scheduler.cached_tokens = 2
    one, two = await engine.embed(["hello world", [70, 71, 72]], PoolingParams(), ABOUT)
    assert two.prompt_token_ids == [70, 71, 72]
    for embedding, submitted in zip((one, two), scheduler.requests, strict=True):
        state = array("f", pseudo_state(submitted.message))
        assert list(embedding.values) == pytest.approx(unit(list(state)), abs=1e-6)
        assert math.hypot(*embedding.values) == pytest.approx(1, abs=1e-6)
        assert embedding.cached_tokens == 2
    assert [request.message.request_id for request in scheduler.requests] == ["embd-0", "embd-1"]
    assert [request.message.pooling for request in scheduler.requests] == [generate_pb2.POOLING_TYPE_LAST] * 2
    assert cosine_similarity(one, one) == pytest.approx(1, abs=1e-6)
    assert -1 <= cosine_similarity(one, two) <= 1


async def test_dimensions_are_the_first_and_scaled_again(engine: Engine, scheduler: FakeScheduler) -> None:
    (whole,) = await engine.embed(["hello"], PoolingParams(pooling="mean"), ABOUT)
    (cut,) = await engine.embed(["hello"], PoolingParams(pooling="mean", dimensions=3), ABOUT)
    assert list(cut.values) == pytest.approx(unit(list(whole.values[:3])), abs=1e-6)
    assert scheduler.requests[0].message.pooling == generate_pb2.POOLING_TYPE_MEAN


@pytest.mark.parametrize(("kept", "left"), [(2, [72, 73]), (-1, [70, 71, 72, 73]), (9, [70, 71, 72, 73])])
async def test_inputs_are_cut_from_the_front(engine: Engine, kept: int, left: list[int]) -> None:
    (embedding,) = await engine.embed([[70, 71, 72, 73]], PoolingParams(truncate_prompt_tokens=kept), ABOUT)
    assert embedding.prompt_token_ids == left


async def test_as_many_tokens_as_the_context_holds(engine: Engine) -> None:
    full = [70] * MAX_MODEL_LEN
    (embedding,) = await engine.embed([full], PoolingParams(), ABOUT)
    assert len(embedding.prompt_token_ids) == MAX_MODEL_LEN
    (embedding,) = await engine.embed([[*full, 71]], PoolingParams(truncate_prompt_tokens=-1), ABOUT)
    assert embedding.prompt_token_ids == [*full[1:], 71]
    with pytest.raises(ContextLengthError, match=f"{MAX_MODEL_LEN} tokens"):
        await engine.embed([[*full, 71]], PoolingParams(), ABOUT)


@pytest.mark.parametrize(
    ("inputs", "params", "field"),
    [
        (["hello", ""], {}, "input[1]"),
        (["hello", []], {}, "input[1]"),
        ([[70, 100_000]], {}, "input"),
        (["hello", [0] * 300], {}, "input[1]"),
        (["hello"], {"dimensions": HIDDEN_SIZE + 1}, "dimensions"),
        (["hello"], {"truncate_prompt_tokens": MAX_MODEL_LEN + 1}, "truncate_prompt_tokens"),
    ],
)
async def test_one_bad_input_refuses_all(
    engine: Engine, scheduler: FakeScheduler, inputs: Any, params: Any, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await engine.embed(inputs, PoolingParams(**params), ABOUT)
    assert refused.value.field == field
    assert not scheduler.requests


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"dimensions": 0}, "dimensions"),
        ({"pooling": "max"}, "pooling"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
async def test_params_are_in_range(params: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        PoolingParams(**params)
    assert refused.value.field == field


async def test_whoever_leaves_aborts_all_inputs(engine: Engine, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]
    embedding = asyncio.create_task(engine.embed(["a", "b", "c"], PoolingParams(), ABOUT))
    await scheduler.wait_requests(3)
    embedding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await embedding
    assert len({abort.request_key for abort in await scheduler.wait_aborts(3)}) == 3


async def test_what_the_scheduler_says_is_raised(engine: Engine, scheduler: FakeScheduler) -> None:
    scheduler.submit_error = ServiceUnavailableError("full")
    with pytest.raises(ServiceUnavailableError, match="full"):
        await engine.embed(["a", "b"], PoolingParams(), ABOUT)


async def test_inputs_count_as_requests(module_scheduler: FakeScheduler, model_folder: Path) -> None:
    module_scheduler.reset()
    module_scheduler.script = lambda request, index: [Pause(asyncio.Event())]
    address, model = module_scheduler.address, str(model_folder)
    engine = await Engine.start(scheduler=address, model=model, max_concurrent_requests=2)
    with pytest.raises(OverloadedError):
        await engine.embed(["a", "b", "c"], PoolingParams(), ABOUT)
    assert len(await module_scheduler.wait_aborts(2)) == 2, "those that were taken are given up"
    await engine.close()


async def test_states_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(QuireError, match="not numbers"):
        unit_vector(array("f", [1.0, math.nan]).tobytes())
    assert list(unit_vector(bytes(8))) == [0.0, 0.0]
    assert list(unit_vector(array("f", [3e38, 4e38 / 2]).tobytes())) == pytest.approx(unit([3e38, 2e38]), abs=1e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "last"),
        ({"word_embedding_dimension": 8, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}, "mean"),
        ({"pooling_mode_cls_token": True}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, None),
    ],
)
async def test_the_models_own_pooling(tmp_path: Path, config: Any, expected: str | None) -> None:
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert own_pooling(str(tmp_path), None) == expected


async def test_a_damaged_pooling_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json is not valid JSON"):
        own_pooling(str(tmp_path), None)


async def test_over_grpc(stub: Any, scheduler: FakeScheduler) -> None:
    scheduler.cached_tokens = 1
    request = generate_pb2.EmbedRequest(pooling=generate_pb2.POOLING_TYPE_MEAN, dimensions=4)
    request.inputs.add(text="hello")
    request.inputs.add().token_ids.ids.extend([70, 71])
    response = await stub.Embed(request, timeout=20)
    assert [len(embedding.values) for embedding in response.embeddings] == [4, 4]
    assert math.hypot(*response.embeddings[1].values) == pytest.approx(1, abs=1e-6)
    assert response.usage.prompt_tokens == sum(len(request.prompt_token_ids) for request in scheduler.requests)
    assert response.usage.cached_tokens == 2


@pytest.mark.parametrize(
    ("inputs", "settings", "field"),
    [
        ([], {}, "inputs"),
        ([generate_pb2.EmbedInput()], {}, "inputs[0]"),
        ([generate_pb2.EmbedInput(text="a")], {"pooling": 7}, "pooling"),
        ([generate_pb2.EmbedInput(text="a")], {"dimensions": 9}, "dimensions"),
        ([generate_pb2.EmbedInput(text="a")] * 2049, {}, "inputs"),
    ],
)
async def test_bad_grpc_requests_are_refused(stub: Any, inputs: Any, settings: Any, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Embed(generate_pb2.EmbedRequest(inputs=inputs, **settings), timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (refused.value.details() or "")
