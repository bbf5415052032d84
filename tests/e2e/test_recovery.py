"""An executor dies, hangs or is replaced while it computes: streams pause and go on with the very same tokens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.servers import Server, running_server, wait_for

from quire import SamplingParams
from quire.client import Client
from quire.internal.v1 import scheduler_pb2

PARAMS = SamplingParams(n=2, temperature=1.0, seed=7, max_tokens=400, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(watchdog_timeout=3.0) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc_address) as client:
        yield client


def _tokens(client: Client, prompt: str, disturb: Callable[[], None] = lambda: None) -> dict[int, list[int]]:
    """What a stream brings, by sequence; `disturb` is called once, when its first tokens are there."""
    tokens: dict[int, list[int]] = {}
    for delta in client.generate(prompt, PARAMS):
        if not tokens:
            disturb()
        tokens.setdefault(delta.index, []).extend(delta.token_ids)
    assert [len(output) for output in tokens.values()] == [PARAMS.max_tokens] * PARAMS.n
    return tokens


def _executor(server: Server) -> psutil.Process:
    """The process that serves the scheduler now."""
    described = server.scheduler.Describe(scheduler_pb2.DescribeRequest(), timeout=10)
    return psutil.Process(described.executors[0].pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_executor_that_dies_or_hangs_in_the_middle_of_a_stream(server, client, number):
    undisturbed = _tokens(client, f"Once upon a time {number}")
    lost, old = server.kv_state().num_lost_executors, _executor(server)
    assert _tokens(client, f"Once upon a time {number}", lambda: old.send_signal(number)) == undisturbed
    assert server.kv_state().num_lost_executors == lost + 1
    assert _executor(server) != old
    wait_for(lambda: not psutil.pid_exists(old.pid) or old.status() == psutil.STATUS_ZOMBIE)
    server.wait_idle()


@pytest.fixture
def second_executor(tmp_path: Path) -> Iterator[str]:
    """The address of another executor of the same model."""
    address = f"unix:{tmp_path}/second.sock"
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-m", "quire", "executor", "--listen", address, "--log-level", "warning"]
    with subprocess.Popen([*command, "--status-fd", str(writing)], pass_fds=[writing]) as process:
        os.close(writing)
        with os.fdopen(reading) as status:
            assert '"ready"' in status.readline()
            yield address
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_an_executor_is_replaced_in_the_middle_of_a_stream(server, client, second_executor):
    undisturbed = _tokens(client, "Long ago")
    lost, old = server.kv_state().num_lost_executors, _executor(server)

    def replace(address: str) -> None:
        request = scheduler_pb2.ReplaceExecutorRequest(index=0, address=address)
        server.scheduler.ReplaceExecutor(request, timeout=60)

    assert _tokens(client, "Long ago", lambda: replace(second_executor)) == undisturbed
    assert _executor(server) != old
    assert old.is_running(), "whoever started it ends it"
    assert server.kv_state().num_lost_executors == lost
    # And back again, before the second one ends.
    replace(server.supervisor.scheduler_address.replace("scheduler.sock", "executor-0.sock"))
    assert _executor(server) == old
    server.wait_idle()
