"""Processes come and go without leaving anything behind, and refuse to start with a reason."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai
import psutil
import pytest
from support.checkpoints import make_checkpoint
from support.servers import running_server, wait_for

from quire import LLM, SamplingParams
from quire.config import BUNDLED_MODEL
from quire.errors import CheckpointError, KvPoolError, StartupError

QUIRE = [sys.executable, "-P", "-m", "quire"]
SMALL = ["--port", "0", "--grpc-port", "0", "--kv-cache-memory", "64MiB"]


@pytest.fixture
def nothing_left(monkeypatch, tmp_path_factory):
    """No process, socket folder or shared memory may be left that was not there before.

    Temporary folders get a home of their own, so that other servers on this machine do not matter.
    """
    tmp_path_factory.getbasetemp()  # pytest's own folder is made when it is first asked for, and is not meant
    with tempfile.TemporaryDirectory(prefix="q-") as home:
        monkeypatch.setenv("TMPDIR", home)
        monkeypatch.setattr(tempfile, "tempdir", None)
        started: list[psutil.Process] = []
        yield started
        for process in started:
            wait_for(lambda process=process: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        wait_for(lambda: not list(Path(home).iterdir()))
        monkeypatch.undo()
        tempfile.tempdir = None
    assert not [path for path in Path("/dev/shm").iterdir() if "quire" in path.name]


def _start_serve(*flags: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """`quire serve` in a process group of its own, once it is ready; and all its processes."""
    serve = subprocess.Popen([*QUIRE, "serve", *SMALL, *flags], stderr=subprocess.PIPE, text=True, process_group=0)
    output = ""
    for line in serve.stderr:
        output += line
        if "Ctrl-C" in line:
            break
    assert "Ctrl-C" in output, output
    return serve, [psutil.Process(serve.pid), *psutil.Process(serve.pid).children(recursive=True)]


def _finish(serve: subprocess.Popen[str], status: int) -> None:
    assert serve.wait(30) == status
    serve.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_ends_everything(nothing_left, number):
    """As Ctrl-C in a terminal; the processes are named for ps."""
    serve, processes = _start_serve()
    nothing_left += processes
    titles = {" ".join(process.cmdline()).strip() for process in processes}
    assert titles == {"quire: serve", "quire: executor 0", "quire: scheduler", "quire: gateway 0"}
    serve.send_signal(number)
    _finish(serve, 0)


def test_death_of_the_supervisor_ends_everything(nothing_left):
    serve, processes = _start_serve()
    nothing_left += processes
    serve.kill()
    _finish(serve, -signal.SIGKILL)


@pytest.mark.parametrize("delay_s", [0.3, 0.8, 1.5, 2.5])
def test_death_of_the_supervisor_during_the_start_ends_everything(nothing_left, delay_s):
    serve = subprocess.Popen([*QUIRE, "serve", *SMALL], stderr=subprocess.DEVNULL, process_group=0)
    time.sleep(delay_s)
    nothing_left += psutil.Process(serve.pid).children(recursive=True)
    serve.kill()
    assert serve.wait(30) == -signal.SIGKILL


def test_death_of_the_supervisor_once_it_has_a_folder(nothing_left):
    """The moment in which only processes that are about to start can know of it."""
    script = (
        "import os, sys, quire.supervisor\n"
        "make = quire.supervisor.create_runtime_dir\n"
        "quire.supervisor.create_runtime_dir = lambda path: (make(path), os.kill(os.getpid(), 9))\n"
        "from quire.__main__ import main\n"
        f"sys.argv[1:] = {['serve', *SMALL]}\n"
        "main()"
    )
    serve = subprocess.Popen([sys.executable, "-P", "-c", script], process_group=0)
    assert serve.wait(60) == -signal.SIGKILL


def test_offline_llm_leaves_nothing(nothing_left):
    others = set(psutil.Process(os.getpid()).children(recursive=True))
    with LLM(kv_cache_memory="64MiB") as llm:
        nothing_left += set(psutil.Process(os.getpid()).children(recursive=True)) - others
        assert llm.generate("The capital of France is", SamplingParams(max_tokens=2))[0].outputs[0].token_ids
    llm.close()


def test_forgotten_llm_leaves_nothing(nothing_left):
    """A script that never closes its LLM, and one that dies from an exception."""
    script = "from quire import LLM; llm = LLM(kv_cache_memory='64MiB'); print(llm.generate('Hi')[0].finished); 1 / 0"
    run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=100)
    assert run.stdout == "True\n"
    assert "ZeroDivisionError" in run.stderr


def test_kv_pool_in_a_file(nothing_left, tmp_path):
    path = tmp_path / "kv"
    with LLM(kv_cache_memory="64MiB", kv_pool=path) as llm:
        assert path.stat().st_size > 60 << 20
        assert path.stat().st_mode & 0o777 == 0o600
        assert llm.generate("The capital of France is", SamplingParams(max_tokens=2))[0].finished
    assert path.exists(), "the next server finds it warm"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks(stream):
    with running_server() as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=1.5)
        request = {"model": "quire-tiny", "prompt": "Once upon a time", "max_tokens": 1900, "n": 8}
        request["extra_body"] = {"ignore_eos": True}
        with client:
            if stream:
                answer = client.completions.create(**request, stream=True)
                next(iter(answer))
                assert server.kv_state().held_blocks > 0
                answer.close()
            else:
                with pytest.raises(openai.APITimeoutError):
                    client.completions.create(**request)
        server.wait_idle()


def _start(**settings) -> None:
    LLM(**{"kv_cache_memory": "64MiB", **settings}).close()


def test_a_model_that_is_not_there(nothing_left):
    with pytest.raises(StartupError, match="no/such/folder"):
        _start(model="/no/such/folder")


def test_a_truncated_checkpoint_is_named(nothing_left, tmp_path):
    folder = make_checkpoint(tmp_path / "model", "llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=re.escape("model.safetensors")):
        _start(model=folder)


def test_an_unreadable_configuration_is_named(nothing_left, tmp_path):
    folder = shutil.copytree(BUNDLED_MODEL, tmp_path / "model")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=re.escape("config.json")):
        _start(model=folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache_memory": "100TiB"}, "does not fit"),
        ({"kv_cache_memory": "64KiB"}, "less than one request of max_model_len"),
        ({"max_model_len": 10**6}, "max.model.len"),
    ],
)
def test_a_pool_that_does_not_fit(nothing_left, settings, message):
    with pytest.raises((KvPoolError, StartupError), match=message):
        _start(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"block_size": 0}, {"max_num_seqs": 0}, {"dtype": "int3"}, {"no_such_flag": 1}, {"kv_cache_memory": "x"}],
)
def test_settings_out_of_range_name_the_flag(settings):
    (name,) = settings
    with pytest.raises(StartupError, match="--" + name.replace("_", "-")):
        LLM(**settings)


def test_a_failed_start_says_why_on_the_command_line(nothing_left):
    run = subprocess.run([*QUIRE, "serve", "/no/such/folder", *SMALL], capture_output=True, text=True, timeout=100)
    assert run.returncode == 1
    assert "/no/such/folder" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_taken_port_is_named(nothing_left):
    with running_server() as server:
        flags = [*QUIRE, "serve", *SMALL[2:], "--port", str(server.port)]
        run = subprocess.run(flags, capture_output=True, text=True, timeout=100)
    assert run.returncode == 1
    assert str(server.port) in run.stderr
