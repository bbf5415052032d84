"""Fixtures of the gateway's and the client's tests: a real gateway in front of a fake scheduler."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support import tiny_tokenizer
from support.fake_scheduler import FakeScheduler, running
from tokenizers import Tokenizer

from quire.config import GatewaySettings
from quire.gateway.server import run
from quire.process import StatusReporter, StopSignal

MODEL = "tiny"


@dataclass
class Gateway:
    """A gateway that runs in the test's loop."""

    port: int
    grpc_port: int
    stop: StopSignal
    task: asyncio.Task[None]

    async def close(self) -> None:
        """Stops it as SIGTERM does. Raises what `run` raises."""
        self.stop.set()
        await self.task

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


class ReadyStatus(StatusReporter):
    """Tells the test when the gateway is ready."""

    def __init__(self) -> None:
        super().__init__(None)
        object.__setattr__(self, "details", asyncio.get_running_loop().create_future())

    def ready(self, **details: Any) -> None:
        self.details.set_result(details)


def settings(scheduler: FakeScheduler, model: Path, **given: Any) -> GatewaySettings:
    defaults = {
        "scheduler": scheduler.address,
        "model": str(model),
        "served_model_name": MODEL,
        "port": 0,
        "grpc_port": 0,
        "startup_timeout": 20.0,
    }
    return GatewaySettings.load({**defaults, **given})


async def start_gateway(scheduler: FakeScheduler, model: Path, **given: Any) -> Gateway:
    """Runs the gateway's own `run` and waits until it is ready."""
    status, stop = ReadyStatus(), StopSignal()
    task = asyncio.create_task(run(settings(scheduler, model, **given), status, stop))
    await asyncio.wait({task, status.details}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    return Gateway(**await status.details, stop=stop, task=task)


def sse_events(text: str) -> list[Any]:
    """The data of every server-sent event, parsed; [DONE] stays a string."""
    assert text.endswith("\n\n")
    data = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in data]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_folder / "tokenizer.json"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_scheduler(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FakeScheduler]:
    folder = tmp_path_factory.mktemp("run")
    async with running(FakeScheduler(folder / "s.sock")) as scheduler:
        yield scheduler


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(module_scheduler: FakeScheduler, model_folder: Path) -> AsyncIterator[Gateway]:
    gateway = await start_gateway(module_scheduler, model_folder)
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
        yield client


@pytest.fixture
def scheduler(module_scheduler: FakeScheduler) -> Iterator[FakeScheduler]:
    """The module's scheduler, behaving as when new."""
    module_scheduler.reset()
    yield module_scheduler
    module_scheduler.reset()
