"""The side-by-side comparison: settings, prompts, arithmetic of the report, the picture, and its child process."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quire.bench.compare_child import HfProcess
from quire.bench.compare_plot import plot_comparison
from quire.bench.compare_prompts import BUILT_IN, load_prompts
from quire.bench.compare_report import FIGURES, comparison_table, summarise_rounds
from quire.bench.memory import PeakMemory, memory_of
from quire.bench.settings import CompareSettings
from quire.errors import InvalidRequestError, StartupError

PATIENCE_S = 100


def _figures(tokens_per_s: float, ms: float, *, streams: bool = True) -> dict[str, Any]:
    return dict.fromkeys(FIGURES, 1.0) | {
        "output_throughput": tokens_per_s,
        "p50_e2el_ms": ms,
        "p95_e2el_ms": 2 * ms,
        "p50_ttft_ms": ms / 2,
        "streams": streams,
    }


def _record(users: int, hf: dict[str, Any], quire: dict[str, Any], equal: int) -> dict[str, Any]:
    return {"users": users, "hf": hf, "quire": quire, "texts": 4, "equal_texts": equal}


ROUNDS = [
    _record(1, _figures(10, 800), _figures(20, 400), 4),
    _record(5, _figures(10, 4000, streams=False), _figures(80, 500), 4),
    _record(1, _figures(20, 500), _figures(60, 250), 3),
    _record(5, _figures(10, 4000, streams=False), _figures(80, 500), 4),
    _record(1, _figures(40, 900), _figures(400, 300), 4),
    _record(5, _figures(10, 4000, streams=False), _figures(80, 500), 4),
]


def _result() -> dict[str, Any]:
    about = {"version": "5", "dtype": "float32", "threads": 2}
    return {
        "model": "m",
        "hf_mode": "batch",
        "output_len": 8,
        "hf": about,
        "rounds": ROUNDS,
        "summary": summarise_rounds(ROUNDS),
    }


def test_medians_and_ratios():
    one, five = summarise_rounds(ROUNDS)
    assert (one["users"], five["users"]) == (1, 5)
    assert (one["hf"]["output_throughput"], one["quire"]["output_throughput"]) == (20, 60)
    # 2, 3 and 10 within the rounds; the medians' own ratio would be 3 too, so take a time: 2, 2 and 3.
    assert one["ratio"] == {"output_throughput": 3, "p50_e2el": 2, "p95_e2el": 2, "p50_ttft": 2}
    assert (one["texts"], one["equal_texts"]) == (12, 11)
    assert five["ratio"]["output_throughput"] == 8
    assert five["ratio"]["p50_e2el"] == 8


def test_without_streaming_there_is_no_first_token():
    _, five = summarise_rounds(ROUNDS)
    assert five["hf"]["p50_ttft_ms"] is None
    assert five["ratio"]["p50_ttft"] is None
    assert five["quire"]["p50_ttft_ms"] == 250


def test_the_table_says_it_all():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_table(_result()))
    shown = console.export_text()
    for words in ("generate", "Quire", "better by", "× 3.00", "× 8.00", "11 of 12", "–"):
        assert words in shown


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra `bench`")
def test_the_picture_is_drawn(tmp_path: Path):
    plot_comparison(_result(), tmp_path / "new" / "run.png")
    assert (tmp_path / "new" / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"users": "1,0"}, "users", "positive"),
        ({"users": "1;5"}, "users", "positive"),
        ({"users": ""}, "users", "positive"),
        ({"users": "5,5"}, "users", "twice"),
        ({"plot": "run.pdf"}, "plot", r"neither a \.png"),
        ({"hf_mode": "paged"}, "hf_mode", "sequential"),
    ],
)
def test_settings_of_no_use_are_refused(given, field, says):
    with pytest.raises(StartupError, match=says) as caught:
        CompareSettings.load(given)
    assert caught.value.field == field


def test_users_are_read():
    assert CompareSettings.load({}).user_counts == (1, 5, 10, 20)
    assert CompareSettings.load({"users": "3, 1"}).user_counts == (3, 1)


def test_prompts_come_from_a_file(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two words \n")
    assert load_prompts(path) == ["one", "two words"]
    assert load_prompts(None) == list(BUILT_IN)
    assert len(set(BUILT_IN)) == len(BUILT_IN) >= 20


@pytest.mark.parametrize(("content", "says"), [(b"\n \n", "has no prompt"), (b"\xff\xfe", "no UTF-8"), (None, "read")])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content, says):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=says) as caught:
        load_prompts(path)
    assert caught.value.field == "prompts"


@pytest.mark.slow
def test_what_transformers_cannot_load_is_said_and_the_process_ends(tmp_path: Path):
    with HfProcess() as child:
        pid = child.pid
        with pytest.raises(StartupError, match=r"Hugging Face: .*Error"):
            child.ask(PATIENCE_S, op="load", model=str(tmp_path), revision=None, dtype="float32", device="cpu")
    assert not Path(f"/proc/{pid}").exists()


def test_a_child_that_dies_or_hangs_is_said():
    with HfProcess() as child:
        with pytest.raises(StartupError, match="did not answer in time"):
            child.ask(0, op="tokenize", texts=[])
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(StartupError, match=f"ended with status -{int(signal.SIGKILL)}"):
            for _ in range(2):  # the first may still reach the pipe
                child.ask(PATIENCE_S, op="tokenize", texts=[])


# 64 MiB of its own, 32 MiB of shared memory that it has open twice, and 16 MiB that it only keeps.
_HOLDER = """
import mmap, os, sys
own = bytearray(os.urandom(1)) * (64 << 20)
shared, kept = os.memfd_create("shared"), os.memfd_create("kept")
os.posix_fallocate(shared, 0, 32 << 20); os.posix_fallocate(kept, 0, 16 << 20)
again = os.dup(shared)
mapped = mmap.mmap(shared, 32 << 20)
mapped[:] = bytes(32 << 20)
print("ready", flush=True)
sys.stdin.read()
"""


def test_memory_is_counted_once():
    with subprocess.Popen(["python3", "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        mib = memory_of([holder.pid], keepers=[holder.pid]) / 2**20
        assert 64 + 32 + 16 <= mib < 64 + 32 + 16 + 40, "and an interpreter"
        assert memory_of([], keepers=[holder.pid]) == 48 * 2**20
        holder.communicate(timeout=PATIENCE_S)
    assert memory_of([holder.pid]) == 0


def test_the_peak_is_what_was_seen():
    values = iter([3, 9, 4])
    with PeakMemory(lambda: next(values, 1)) as peak:
        deadline = time.monotonic() + PATIENCE_S
        while peak.bytes < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert peak.bytes == 9
