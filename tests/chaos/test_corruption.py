"""Damaged memory, a machine that runs out of things, clocks that jump, answers that come too late (cases 25 to 28)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.chaos.baseline import Baseline
from support.chaos.phases import StepWatch
from support.chaos.server import QUIRE, ChaosServer, chaos_server, is_alive, start_server
from support.chaos.streams import answers, check_equal, running
from support.chaos.workload import mixed_workload
from support.servers import wait_for

from quire.config import BUNDLED_MODEL

PAGE = 4096
DAY_NS = 86_400 * 10**9


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosServer]:
    with chaos_server() as started:
        asyncio.run(answers(started, mixed_workload(40)))
        yield started


@pytest.mark.chaos_sample
def test_25_corrupted_ring(server, baseline, reference):
    """Case 25, first part: the plans in the ring are overwritten while the executor is stopped.

    Passes if the executor refuses them and is replaced, and every answer is the undisturbed one.
    """

    def damage() -> None:
        executor = server.find("executor 0")
        with StepWatch(executor) as watch:
            while is_alive(executor):
                with _stopped(executor):
                    _overwrite_plans(executor)
                    answered = watch.count().results_written
                # It may have taken out both plans under way before: then it answers both, and it is done again.
                wait_for(
                    lambda answered=answered: not is_alive(executor) or watch.count().results_written >= answered + 2
                )
        server.wait_replaced("executor 0", executor.pid)

    _while_streaming(server, reference, damage)


def test_25_corrupted_pool_header(server, baseline, reference):
    """Case 25, second part: the pool's header is overwritten, and the scheduler killed.

    Passes if the next scheduler refuses the pool and makes another one, and every answer is the undisturbed one.
    """

    def damage() -> None:
        scheduler = server.find("scheduler")
        with _memory(scheduler, "quire-kv-pool").open("r+b") as memory:
            memory.write(b"\xff" * 256)
        server.kill("scheduler")
        server.wait_replaced("scheduler", scheduler.pid)

    _while_streaming(server, reference, damage)
    assert server.kv_state().num_restored_blocks == 0


def test_25_corrupted_pool_file(reference):
    """Case 25, third part: the header of a pool in a file is overwritten between two runs.

    Passes if the second run does not use what it holds: it starts cold, or refuses the file by its name.
    """
    with tempfile.TemporaryDirectory(prefix="q-", dir="/dev/shm") as folder:
        pool = Path(folder) / "pool"
        with _server_in(folder, "--kv-pool", str(pool)) as first:
            asyncio.run(answers(first, mixed_workload(40)))
            assert first.stop() == 0
        with pool.open("r+b") as file:
            file.seek(8)
            file.write(b"\xff" * 64)
        try:
            with _server_in(folder, "--kv-pool", str(pool)) as second:
                assert second.kv_state().num_restored_blocks == 0
                check_equal(asyncio.run(answers(second, mixed_workload())), reference)
                assert second.stop() == 0
        except AssertionError as error:
            assert str(pool) in str(error), error


@contextlib.contextmanager
def _server_in(folder: str, *flags: str) -> Iterator[ChaosServer]:
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as home:
        server = start_server(Path(home), Path(folder) / "log", *flags)
        try:
            yield server
        finally:
            server.kill_all()


@contextlib.contextmanager
def _stopped(process: psutil.Process) -> Iterator[None]:
    """Stops a process in the middle of a step."""
    with StepWatch(process) as watch:
        wait_for(lambda: watch.count().plans_taken != watch.count().results_written)
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def _overwrite_plans(executor: psutil.Process) -> None:
    path = _memory(executor, "quire-step-rings")
    half = (path.stat().st_size - PAGE) // 2
    with path.open("r+b") as memory:
        memory.seek(PAGE)
        memory.write(b"\xff" * half)


def _memory(process: psutil.Process, name: str) -> Path:
    """Shared memory of a process, as a file that can be written."""
    folder = Path(f"/proc/{process.pid}/fd")
    return next(path for path in folder.iterdir() if f"memfd:{name}" in str(path.readlink()))


def _while_streaming(server: ChaosServer, reference: dict, disturb) -> None:
    async def run() -> None:
        async with running(server, mixed_workload()) as streams:
            await streams.until_each_has(3)
            await asyncio.to_thread(disturb)
            check_equal(await streams.answers(), reference)

    asyncio.run(run())


def test_26_no_space_left():
    """Case 26, first part: the file system of the pool's file is too small (ENOSPC).

    Passes if the start fails with a message that names the file, and leaves nothing.
    """
    as_root = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = ["sh", "-c", 'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"']
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as home:
        folder = Path(home) / "small"
        folder.mkdir()
        serve = [*QUIRE, "serve", "--port", "0", "--grpc-port", "0", "--kv-cache-memory", "64MiB"]
        command = [*as_root, *mount, str(folder), *serve, "--kv-pool", str(folder / "pool")]
        run = subprocess.run(command, env={**os.environ, "TMPDIR": home}, capture_output=True, text=True, timeout=120)
        assert run.returncode == 1, run.stderr
        assert str(folder / "pool") in run.stderr.replace("\n", "")
        assert "Traceback" not in run.stderr
        assert list(Path(home).iterdir()) == [folder]


def test_26_no_descriptors_left(server, baseline, reference):
    """Case 26, second part: the gateway has no descriptor left for the clients that come (EMFILE).

    Passes if the streams that run get the undisturbed answers, and the gateway serves again once it may.
    """

    def exhaust() -> None:
        gateway = server.find("gateway 0")
        before = gateway.rlimit(resource.RLIMIT_NOFILE)
        gateway.rlimit(resource.RLIMIT_NOFILE, (gateway.num_fds() + 2, before[1]))
        with contextlib.ExitStack() as stack:
            for port in [server.port, server.grpc_port] * 20:
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            wait_for(lambda: gateway.num_fds() >= gateway.rlimit(resource.RLIMIT_NOFILE)[0])
        gateway.rlimit(resource.RLIMIT_NOFILE, before)

    calls = mixed_workload()
    del calls["embeddings (whole)"]  # it makes new connections, which is what is refused here

    async def run() -> None:
        async with running(server, calls) as streams:
            await streams.until_each_has(3)
            await asyncio.to_thread(exhaust)
            check_equal(await streams.answers(), {name: reference[name] for name in calls})

    asyncio.run(run())


def test_26_clock_jumps(reference, tmp_path):
    """Case 26, third part: the wall clock of all processes jumps a day ahead, and two days back, under load.

    Passes if every answer is the undisturbed one, and no process was replaced: nothing depends on the time of day.
    """
    library, clock = tmp_path / "wall_clock.so", tmp_path / "clock"
    source = Path(__file__).parent.parent / "support" / "chaos" / "wall_clock.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    clock.write_bytes(bytes(8))

    with chaos_server(env={"LD_PRELOAD": str(library), "QUIRE_TEST_CLOCK": str(clock)}) as server:
        asyncio.run(answers(server, mixed_workload(40)))
        baseline = Baseline.take(server)
        processes = {title: process.pid for title, process in server.processes().items()}

        async def run() -> None:
            async with running(server, mixed_workload()) as streams:
                for pieces, offset in [(10, DAY_NS), (60, -DAY_NS), (120, 0)]:
                    await streams.until_each_has(pieces)
                    with clock.open("r+b") as file:
                        file.write(offset.to_bytes(8, "little", signed=True))
                    shift_s = await asyncio.to_thread(_clock_shift_s, server)
                    assert abs(shift_s - offset / 10**9) < 3600, "the server's clock did not jump"
                check_equal(await streams.answers(), reference)

        asyncio.run(run())
        assert {title: process.pid for title, process in server.processes().items()} == processes
        baseline.check(server)


def _clock_shift_s(server: ChaosServer) -> float:
    """How far ahead the server's time of day is."""
    body = {"model": "quire-tiny", "prompt": "x", "max_tokens": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    return float(answer["created"]) - time.time()


def test_27_truncated_checkpoint(tmp_path):
    """Case 27: a checkpoint whose file is cut short.

    Passes if the start fails with a message that names the file, and leaves nothing.
    """
    model = shutil.copytree(BUNDLED_MODEL, tmp_path / "model")
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as home:
        serve = [*QUIRE, "serve", str(model), "--port", "0", "--grpc-port", "0"]
        run = subprocess.run(serve, env={**os.environ, "TMPDIR": home}, capture_output=True, text=True, timeout=120)
        assert run.returncode == 1
        assert "model.safetensors" in run.stderr
        assert "Traceback" not in run.stderr
        assert list(Path(home).iterdir()) == []


def test_28_late_result(server, baseline, reference):
    """Case 28: requests are aborted while their step is being computed, and others take their places.

    The executor is stopped in between, so the results certainly come after the abort. Passes if the new requests get
    the undisturbed answers.
    """

    async def run() -> None:
        executor = server.find("executor 0")
        async with running(server, mixed_workload()) as first:
            await first.until_each_has(3)
            with _stopped(executor):
                for task in first.tasks.values():
                    task.cancel()
                await asyncio.wait(first.tasks.values())
                await asyncio.to_thread(wait_for, lambda: not server.kv_state().sequences)
                second = asyncio.create_task(answers(server, mixed_workload()))
                await asyncio.to_thread(wait_for, lambda: len(server.kv_state().sequences) >= 16)
            check_equal(await second, reference)
        assert server.find("executor 0").pid == executor.pid

    asyncio.run(run())
