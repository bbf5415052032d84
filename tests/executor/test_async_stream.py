"""Steps over an asynchronous device, through both transports: in order, without waiting, and to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint
from support.step_driver import StepDriver, StepPlanner, attach_request, load, pool_layout, prompt_of
from support.thread_device import ThreadDevice

from quire import kernels, rpc
from quire.columns import unpack_u32
from quire.errors import QuireError
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.executor.service import ExecutorService
from quire.handover import offered
from quire.internal.v1 import executor_pb2, executor_pb2_grpc
from quire.kv_pool import KvPool
from quire.scheduler.executor_client import ExecutorClient, StepChannel

_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    kernels.set_implementation("torch")
    yield load(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"))
    kernels.set_implementation(None)


@dataclass
class Served:
    """A served model with a pool and an open stream."""

    device: ThreadDevice
    runner: ModelRunner
    channel: StepChannel
    is_closed: bool = False

    async def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            await self.channel.close()

    async def read(self) -> executor_pb2.StepResult:
        return await asyncio.wait_for(self.channel.receive(), _TIMEOUT_S)

    async def progress_stands(self) -> int:
        """The executor's progress, once nothing more happens."""
        async with asyncio.timeout(_TIMEOUT_S):
            seen = [await self.channel.progress()]
            while len(seen) < 10 or len(set(seen[-10:])) > 1:
                await asyncio.sleep(0.02)
                seen.append(await self.channel.progress())
        return seen[-1]


@pytest.fixture(params=["ring", "grpc"])
async def served(model: Model, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    device = ThreadDevice()
    runner = ModelRunner(model, device=device)
    service = ExecutorService(runner)
    server = rpc.new_server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(service, server)
    address = f"unix:{tmp_path}/executor.sock"
    rpc.bind(server, address)
    await server.start()
    client = ExecutorClient(0, address)
    async with rpc.open_channel(address) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        with KvPool.create_memfd(pool_layout(model)) as pool, offered("pool", [pool.fd]) as handover:
            await stub.AttachKvPool(attach_request(pool.layout, handover))
            steps = await client.open_steps(request.param, 10)
            served = Served(device, runner, steps)
            yield served
            device.resume()
            await served.close()
    await client.close()
    await service.close()
    await server.stop(1)


async def test_results_of_steps_that_overlap_come_in_order(served: Served, model: Model, tmp_path: Path) -> None:
    driver = StepDriver(model, tmp_path)
    expected = driver.generate(driver.add(prompt_of(50)), 8)
    planner = StepPlanner()
    slot = planner.add(prompt_of(50))
    served.device.pause()
    for count in (30, 20, *[1] * 7):
        await served.channel.send(planner.plan({slot: count}))
    await served.progress_stands()
    # As many as may be, and no more, are launched; the first tokens are not known.
    assert served.runner.sequences.num_unknown[slot] == 1
    served.device.resume()
    results = [await served.read() for _ in range(9)]
    assert [result.step for result in results] == list(range(1, 10))
    assert [token for result in results for token in unpack_u32(result.token_ids)] == expected


async def test_a_device_that_hangs_stands_still(served: Served) -> None:
    """What the watchdog sees: launches count, and then nothing until the device goes on."""
    planner = StepPlanner()
    slot = planner.add(prompt_of(5))
    served.device.pause()
    await served.channel.send(planner.plan({slot: 5}))
    await served.channel.send(planner.plan({slot: 1}))
    hanging = await served.progress_stands()
    assert hanging == 2  # plans taken
    served.device.resume()
    await served.read()
    await served.read()
    assert await served.progress_stands() == hanging + 2 * 3 + 2


async def test_a_device_that_fails_ends_the_stream(served: Served) -> None:
    """Its completion is never signalled."""
    planner = StepPlanner()
    slot = planner.add(prompt_of(5))
    await served.channel.send(planner.plan({slot: 5}))
    assert (await served.read()).step == 1
    served.device.fail("an illegal memory access was encountered")
    await served.channel.send(planner.plan({slot: 1}))
    with pytest.raises(QuireError, match="step 2 failed: RuntimeError: device error: an illegal memory access"):
        await served.read()


async def test_a_plan_that_fails_leaves_the_steps_before_it_their_results(served: Served) -> None:
    planner = StepPlanner()
    slot = planner.add(prompt_of(5))
    served.device.pause()
    await served.channel.send(planner.plan({slot: 5}))
    planner.epoch += 1
    await served.channel.send(planner.plan({slot: 1}))
    await served.progress_stands()
    served.device.resume()
    assert (await served.read()).step == 1
    with pytest.raises(QuireError, match="the plan is of epoch"):
        await served.read()


async def test_a_stream_that_is_closed_lets_its_steps_end(served: Served) -> None:
    planner = StepPlanner()
    slot = planner.add(prompt_of(5))
    served.device.pause()
    await served.channel.send(planner.plan({slot: 5}))
    await served.progress_stands()
    await served.close()
    assert served.runner._cache is not None
    served.device.resume()
    async with asyncio.timeout(_TIMEOUT_S):
        while served.runner._cache is not None:
            await asyncio.sleep(0.02)
    assert served.device.is_idle
