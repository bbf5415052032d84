"""Processes that die, hang, fail for good, drain and are upgraded, with clients in the middle."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import Server, running_server, wait_for

from quire import LLM, SamplingParams
from quire.config import BUNDLED_MODEL
from quire.errors import QuireError, StartupError
from quire.supervision.child import Child
from quire.supervision.control import Message, call, find_servers

RESTART_S = 100.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two gateways and a short watchdog; tests leave it well."""
    with running_server(gateways=2, watchdog_timeout=8) as server:
        yield server


def _child(server: Server, name: str) -> Child:
    return next(child for child in server.supervisor.children if child.name == name)


def _complete(server: Server, max_tokens: int = 12, retry_s: float = 0.0) -> list[Any]:
    """Greedy tokens of a prompt. A gateway's death breaks connections, which `retry_s` allows for."""
    body = {"model": "quire-tiny", "prompt": "The capital of France is", "max_tokens": max_tokens, "temperature": 0}
    deadline = time.monotonic() + retry_s
    while True:
        try:
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=RESTART_S)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            continue
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]


def _open_stream(url: str, max_tokens: int) -> Iterator[str]:
    """The lines of a stream, of which the first is there."""
    body = {"model": "quire-tiny", "prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=RESTART_S) as answer:
        yield from answer.iter_lines()


def _restarted(server: Server, before: Child) -> Callable[[], bool]:
    def is_back() -> bool:
        child = _child(server, before.name)
        return child is not before and child.ready is not None

    return is_back


def _command(server: Server, **message: Any) -> Message:
    pid = os.getpid()
    folder = next(
        folder for folder, found in find_servers() if found["pid"] == pid and found["ports"]["port"] == server.port
    )
    return call(folder, message, RESTART_S)


@pytest.mark.parametrize("name", ["gateway 1", "scheduler", "executor 0"])
def test_a_process_that_dies_is_started_again(server: Server, name: str, caplog: pytest.LogCaptureFixture):
    expected = _complete(server)
    before = _child(server, name)
    before.process.kill()
    wait_for(_restarted(server, before), RESTART_S)
    assert f"{name} was killed by SIGKILL; starting it again" in caplog.text
    assert _complete(server, retry_s=RESTART_S) == expected


@pytest.mark.slow
def test_a_process_that_is_stopped_is_killed_and_started_again(server: Server):
    """SIGSTOP of a gateway: nobody but the supervisor's watchdog notices."""
    before = _child(server, "gateway 0")
    before.process.send_signal(signal.SIGSTOP)
    wait_for(_restarted(server, before), RESTART_S)
    assert before.process.returncode == -signal.SIGKILL
    assert "stood still" in before.describe_end()
    _complete(server, retry_s=RESTART_S)


@pytest.mark.slow
def test_the_death_of_a_gateway_leaves_the_streams_of_others(server: Server):
    """Of many streams over two gateways those end whose gateway was killed, and the others are complete."""
    begun = threading.Barrier(9)

    def stream() -> bool:
        # A connection each, so that the kernel spreads them.
        lines = _open_stream(server.url, 600)
        next(lines)
        begun.wait(RESTART_S)
        try:
            return "data: [DONE]" in list(lines)
        except httpx.TransportError:
            return False

    before = _child(server, "gateway 0")
    with ThreadPoolExecutor(8) as threads:
        streams = [threads.submit(stream) for _ in range(8)]
        begun.wait(RESTART_S)
        other = _child(server, "gateway 1")
        before.process.kill()
        finished = [future.result(RESTART_S) for future in streams]
    wait_for(_restarted(server, before), RESTART_S)
    assert _child(server, "gateway 1") is other
    assert any(finished), "no stream was at the other gateway: a chance of 1 in 256"
    server.wait_idle()


def test_another_server_cannot_have_the_ports(server: Server):
    for setting in ("port", "grpc_port"):
        taken = getattr(server, setting)
        refused = pytest.raises(StartupError, match=f"--{setting.replace('_', '-')}: cannot listen on .*{taken}")
        with refused, running_server(**{setting: taken}):
            pass


def test_status_names_all_processes(server: Server):
    status = _command(server, command="status")
    assert [process["name"] for process in status["processes"]] == ["executor 0", "scheduler", "gateway 0", "gateway 1"]
    assert {process["state"] for process in status["processes"]} == {"ready"}
    assert [process["pid"] for process in status["processes"]] == [c.process.pid for c in server.supervisor.children]
    assert status["ports"] == {"port": server.port, "grpc_port": server.grpc_port}


@pytest.mark.slow
@pytest.mark.parametrize("process", ["gateway", "scheduler", "executor"])
def test_an_upgrade_under_load_fails_no_request(server: Server, process: str):
    """A stream in flight goes on to its end, and requests that follow one another never fail."""
    before = [child for child in server.supervisor.children if child.name.startswith(process)]
    expected = _complete(server, 400)
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(_complete, server, 400) for _ in range(3)]
        upgraded = _command(server, command="upgrade", process=process)["upgraded"]
        assert [answer.result(RESTART_S) for answer in answers] == [expected] * 3
    assert upgraded == [child.name for child in before]
    after = [child for child in server.supervisor.children if child.name.startswith(process)]
    assert not {child.process.pid for child in before} & {child.process.pid for child in after}
    assert [child.process.returncode for child in before] == [0] * len(before)
    assert _complete(server, 400) == expected


def test_what_cannot_be_upgraded_is_said(server: Server):
    with pytest.raises(QuireError, match="no kind of process called 'disk'"):
        _command(server, command="upgrade", process="disk")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that must be empty at the end; short, as paths of sockets are."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
        wait_for(lambda: not list(Path(folder).iterdir()))
        monkeypatch.undo()
        tempfile.tempdir = None


@pytest.mark.slow
def test_a_new_executor_that_does_not_start_leaves_the_old_one(home: Path):
    """And once the old one has died too, the server ends with the reason."""
    model = home.parent / f"{home.name}-model"
    shutil.copytree(BUNDLED_MODEL, model)
    try:
        with running_server(model=str(model), served_model_name="quire-tiny") as server:
            expected = _complete(server)
            (model / "config.json").write_text("{")
            with pytest.raises(QuireError, match=r"executor 0: .*config\.json"):
                _command(server, command="upgrade", process="executor")
            assert _complete(server) == expected
            _child(server, "executor 0").process.kill()
            failures: list[StartupError] = []
            waiting = threading.Thread(target=lambda: failures.append(server.supervisor.wait()), daemon=True)
            waiting.start()
            waiting.join(3 * RESTART_S)
            assert "executor 0 failed to start 5 times in a row" in failures[0].message
            assert "config.json" in failures[0].message
    finally:
        shutil.rmtree(model)


@contextlib.contextmanager
def _serve(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`quire serve` on free ports, once it is ready, and its REST address."""
    command = [sys.executable, "-P", "-m", "quire", "serve", "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen([*command, "--kv-cache-memory", "64MiB", *flags], stderr=subprocess.PIPE, text=True) as serve:
        assert serve.stderr is not None
        try:
            lines = []
            for line in serve.stderr:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            (ready,) = (line for line in lines if line.startswith("Ready."))
            yield serve, ready.split()[3]
        finally:
            serve.kill()


@pytest.mark.slow
def test_sigterm_drains_even_when_the_executor_dies_meanwhile(home: Path):
    with _serve("--gateways", "2") as (serve, url):
        lines = _open_stream(url, 1200)
        next(lines)
        (found,) = (found for _, found in find_servers() if found["pid"] == serve.pid)
        executor = next(process["pid"] for process in found["processes"] if process["name"] == "executor 0")
        serve.terminate()

        def refuses() -> bool:
            try:
                httpx.get(f"{url}/health", timeout=RESTART_S)
            except httpx.ConnectError:
                return True
            return False

        wait_for(refuses, RESTART_S)
        os.kill(executor, signal.SIGKILL)
        *_, last, _, done, _ = ["", *lines]
        assert done == "data: [DONE]"
        assert '"finish_reason":"length"' in last
        assert serve.wait(RESTART_S) == 0


@pytest.mark.slow
def test_a_second_signal_ends_at_once(home: Path):
    with _serve("--shutdown-timeout", "600") as (serve, url):
        lines = _open_stream(url, 2000)
        next(lines)
        (found,) = (found for _, found in find_servers() if found["pid"] == serve.pid)
        executor = next(process["pid"] for process in found["processes"] if process["name"] == "executor 0")
        os.kill(executor, signal.SIGSTOP)  # nothing can end
        serve.terminate()
        time.sleep(1)
        serve.terminate()
        assert serve.wait(RESTART_S) == 0
        with contextlib.suppress(httpx.TransportError):
            list(lines)


@pytest.mark.slow
def test_death_of_the_supervisor_while_a_process_is_restarted_ends_everything(home: Path):
    with _serve() as (serve, _):
        (found,) = (found for _, found in find_servers() if found["pid"] == serve.pid)
        os.kill(found["processes"][0]["pid"], signal.SIGKILL)
        time.sleep(0.5)
        serve.kill()
    # `home` says that nothing is left.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["executor 0", "scheduler"])
def test_offline_generation_survives_a_death(home: Path, name: str):
    params = SamplingParams(max_tokens=900, temperature=0, ignore_eos=True)
    prompts = ["The capital of France is", "Once upon a time"]
    with LLM(kv_cache_memory="64MiB") as llm, ThreadPoolExecutor(1) as thread:
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        generating = thread.submit(llm.generate, prompts, params)
        children = llm._background.supervisor.children
        time.sleep(0.3)
        next(child for child in children if child.name == name).process.kill()
        assert [output.outputs[0].token_ids for output in generating.result(RESTART_S)] == expected
