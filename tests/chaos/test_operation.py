"""Gateways that die, executors that hang, stops, restarts and upgrades under load (cases 4 to 8)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.chaos.baseline import Baseline
from support.chaos.measurements import record
from support.chaos.phases import StepWatch
from support.chaos.server import QUIRE, RECOVERY_TIMEOUT_S, ChaosServer, chaos_server, start_server
from support.chaos.streams import Clients, answers, check_equal, events, rest, running
from support.chaos.workload import STORY, mixed_workload
from support.servers import wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosServer]:
    with chaos_server("--watchdog-timeout", "5") as started:
        asyncio.run(answers(started, mixed_workload(40)))
        yield started


@pytest.fixture
def baseline(server: ChaosServer, reference: object) -> Iterator[Baseline]:
    taken = Baseline.take(server)
    yield taken
    taken.check(server)


def test_4_gateway_killed():
    """Case 4: one of two gateways is killed while each serves streams.

    Passes if the other's streams are whole and equal to each other, the scheduler has forgotten the dead one's,
    the gateway is back, and so is the baseline.
    """
    with chaos_server("--gateways", "2") as server:
        baseline = Baseline.take(server)
        asyncio.run(_kill_a_gateway(server))
        baseline.check(server)


async def _kill_a_gateway(server: ChaosServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(Clients(server)) for _ in range(12)]
        streams = [asyncio.create_task(_collect(clients)) for clients in many]
        await asyncio.to_thread(wait_for, lambda: len(_serving_gateways(server)) == 2)
        await asyncio.to_thread(wait_for, lambda: len(server.kv_state().sequences) == len(streams))
        victim = server.kill("gateway 0")
        results = await asyncio.gather(*streams, return_exceptions=True)
        broken = [result for result in results if isinstance(result, BaseException)]
        whole = [result for result in results if not isinstance(result, BaseException)]
        assert broken, "it served nobody"
        assert whole, "the other gateway's streams were cut as well"
        assert all(isinstance(result, httpx.TransportError) for result in broken), broken
        assert set(whole) == {whole[0]}
        await asyncio.to_thread(server.wait_replaced, "gateway 0", victim)


async def _collect(clients: Clients) -> str:
    body = {"model": "quire-tiny", "prompt": STORY, "max_tokens": 1200, "seed": 4, "ignore_eos": True}
    text = ""
    async for event in events(clients, "/v1/completions", body):
        text += "".join(choice["text"] for choice in event["choices"])
    return text


def _serving_gateways(server: ChaosServer) -> set[str]:
    """Titles of the gateways that have a connection to a client."""
    return {
        title
        for title, process in server.processes().items()
        if title.startswith("gateway")
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED
    }


def test_5_executor_stopped(server, baseline, reference):
    """Case 5: SIGSTOP of the executor in the middle of a step, past the watchdog.

    Passes if it is killed without ever going on (its counters stand still for good), and every answer is the
    undisturbed one.
    """

    async def disturb() -> None:
        async with running(server, mixed_workload()) as streams:
            await streams.until_each_has(3)
            await asyncio.to_thread(_stop_executor, server)
            check_equal(await streams.answers(), reference)

    asyncio.run(disturb())


def _stop_executor(server: ChaosServer) -> None:
    executor = server.find("executor 0")
    with StepWatch(executor) as watch:
        while watch.count().plans_taken == watch.count().results_written:
            pass
        os.kill(executor.pid, signal.SIGSTOP)
        wait_for(lambda: executor.status() == psutil.STATUS_STOPPED)
        stopped_at = watch.count()
        server.wait_replaced("executor 0", executor.pid)
        assert not executor.is_running(), "it was replaced before it was dead"
        assert watch.count() == stopped_at


@pytest.mark.parametrize("process", ["executor", "scheduler"])
def test_8_upgrade(server, baseline, reference, process):
    """Case 8: `quire upgrade` under load, twice.

    Passes if other processes run afterwards, and every answer is the undisturbed one.
    """
    title = {"executor": "executor 0"}.get(process, process)

    async def disturb() -> None:
        async with running(server, mixed_workload()) as streams:
            await streams.until_each_has(3)
            for _ in range(2):
                pid = server.find(title).pid
                await asyncio.to_thread(_upgrade, server, process)
                assert server.find(title).pid != pid
            check_equal(await streams.answers(), reference)
            record(8, f"longest pause of a stream, {process} upgraded", streams.longest_pause_s, "s")

    asyncio.run(disturb())


def _upgrade(server: ChaosServer, process: str) -> None:
    command = [*QUIRE, "upgrade", process, "--pid", str(server.process.pid)]
    run = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(server.home)}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr


def test_6_stop_under_load(reference):
    """Case 6: SIGTERM while streams run, with time enough for them.

    Passes if health says NOT_SERVING (or takes no more connections) before the streams have ended, every answer is
    the undisturbed one, and the exit status is 0 with nothing left.
    """
    calls = mixed_workload()
    del calls["embeddings (whole)"]  # one request after the other: new ones are refused while it stops
    with chaos_server("--shutdown-timeout", "300") as server:

        async def disturb() -> None:
            async with running(server, calls) as streams, _Health(server) as health:
                await streams.until_each_has(3)
                assert await health.is_serving()
                server.process.send_signal(signal.SIGTERM)
                while await health.is_serving():
                    await asyncio.sleep(0)
                assert streams.num_unfinished, "the streams had ended before health changed"
                check_equal(await streams.answers(), {name: reference[name] for name in calls})

        asyncio.run(disturb())
        assert server.process.wait(RECOVERY_TIMEOUT_S) == 0


class _Health:
    """A connection for health checks that is there before the stop."""

    def __init__(self, server: ChaosServer) -> None:
        self._channel = grpc.aio.insecure_channel(server.grpc_address)
        self._stub = health_pb2_grpc.HealthStub(self._channel)

    async def is_serving(self) -> bool:
        try:
            answer = await self._stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def __aenter__(self) -> _Health:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_7_warm_restart(reference, number):
    """Case 7: everything is stopped, or killed, and started again on the pool's file.

    Passes if the second server finds blocks of the first in the journal, answers a repeated prompt with cached tokens,
    and every answer is that of a cold run.
    """
    prompt = rest("/v1/completions", prompt=STORY * 40, max_tokens=40, temperature=0, return_token_ids=True)
    with tempfile.TemporaryDirectory(prefix="q-", dir="/dev/shm") as folder:
        pool = ("--kv-pool", str(Path(folder) / "pool"))
        with _started(*pool) as server:
            cold = asyncio.run(answers(server, {**mixed_workload(), "long": prompt}))
            server.wait_idle()
            server.stop(number)
        with _started(*pool) as server:
            assert server.kv_state().num_restored_blocks > 0
            assert _cached_tokens(server) > 0
            warm = asyncio.run(answers(server, {**mixed_workload(), "long": prompt}))
            assert server.stop() == 0
    check_equal(warm, cold)
    cold.pop("long")
    check_equal(cold, reference)


def _cached_tokens(server: ChaosServer) -> int:
    body = {"model": "quire-tiny", "prompt": STORY * 40, "max_tokens": 1}
    usage = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


@contextlib.contextmanager
def _started(*flags: str) -> Iterator[ChaosServer]:
    """A server that the block ends."""
    temporary = tempfile.TemporaryDirectory(prefix="q-", dir="/tmp")
    with temporary as home, tempfile.NamedTemporaryFile(prefix="quire-log-") as log:
        server = start_server(Path(home), Path(log.name), *flags)
        try:
            yield server
            server.check_nothing_left()
        finally:
            print(server.said())
            server.kill_all()
