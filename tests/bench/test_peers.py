"""What `make bench-peers` makes of its records; the runs themselves need the peers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from peers.cases import CASES
from peers.checkpoints import SHAPES
from peers.engines import ENGINES
from peers.machine import Limits
from peers.report import BEGIN, END, markdown, ratio_to_best, write_cases
from peers.servers import SERVERS

LIMITS = Limits(read_gb_s=10.0, float32_gops=100.0, bfloat16_gops=0.0, int8_gops=400.0)


def _record(engine: str, number: int, decode: float) -> dict:
    figures = {"decode_tokens_s": decode, "prefill_tokens_s": 10 * decode}
    return {"case": "bf16", "engine": engine, "round": number, "batch": 1, "flags": "f", "version": "v", **figures}


def test_the_ratio_is_taken_within_rounds_to_the_engine_with_the_best_median():
    by_engine = {"quire": {0: 20.0, 1: 40.0, 2: 30.0}, "a": {0: 10.0, 1: 20.0, 2: 30.0}, "b": {0: 1.0, 1: 99.0, 2: 2.0}}
    assert ratio_to_best("decode_tokens_s", by_engine) == ("a", 2.0)


def test_of_a_latency_the_lower_is_the_better():
    by_engine = {"quire": {0: 5.0}, "a": {0: 10.0}, "b": {0: 20.0}}
    assert ratio_to_best("ttft_ms", by_engine) == ("a", 2.0)


def test_no_ratio_without_a_peer():
    assert ratio_to_best("decode_tokens_s", {"quire": {0: 5.0}}) is None
    assert ratio_to_best("decode_tokens_s", {"quire": {0: 5.0}, "a": {1: 5.0}}) is None


def test_the_shape_of_smollm_has_its_size():
    """134.5 million parameters, of which norms are no products; 23 KB of keys and values a token."""
    shape = SHAPES["smollm-135m"]
    assert shape.linear_parameters == pytest.approx(134.5e6, rel=1e-3)
    assert shape.kv_bytes_per_token == 23_040


def test_limits_add_reading_and_arithmetic():
    shape = SHAPES["smollm-135m"]
    reading, arithmetic = shape.linear_parameters * 2 / 10e9, 2 * shape.linear_parameters / 100e9
    assert LIMITS.decode_rate(shape, "bf16", 1, 0) == pytest.approx(1 / (reading + arithmetic))
    assert LIMITS.decode_rate(shape, "bf16", 8, 0) == pytest.approx(8 / (reading + 8 * arithmetic))
    assert LIMITS.decode_rate(shape, "bf16", 1, 1000) < LIMITS.decode_rate(shape, "bf16", 1, 0)
    assert LIMITS.decode_rate(shape, "int8", 1, 0) > 1.9 * LIMITS.decode_rate(shape, "bf16", 1, 0)


def test_the_table_has_every_engine_its_flags_and_its_failures():
    records = [_record("quire", 0, 20.0), _record("llama_cpp", 0, 10.0)]
    records.append({"case": "bf16", "engine": "vllm", "round": 0, "error": "out of memory"})
    text = markdown(records, LIMITS, {"cpu": "X"}, "2026-01-01")["bf16"]
    (row,) = (line for line in text.splitlines() if line.startswith("| decode | 1 |"))
    assert "2.00 (llama_cpp)" in row
    assert "- llama_cpp: `f (v)`" in text
    assert "- vllm failed: out of memory" in text


def test_a_run_replaces_its_cases_and_keeps_the_others(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nNot measured yet.\n{END}\nafter\n")
    write_cases(page, {"int8": "an old\n\ntable", "tiny": "| tiny |"})
    write_cases(page, {"bf16": "| bf16 |\n\n- flags", "int8": "| int8 |"})
    write_cases(page, {"bf16": "| bf16, again |"})
    assert page.read_text() == (
        f"before\n{BEGIN}\n\n"
        "<!-- case bf16 -->\n| bf16, again |\n\n<!-- case int8 -->\n| int8 |\n\n<!-- case tiny -->\n| tiny |\n\n"
        f"{END}\nafter\n"
    )


def test_every_case_names_engines_that_exist_and_can_do_it():
    for case in CASES:
        for engine in case.engines:
            if hasattr(case, "number_format"):
                assert case.number_format in ENGINES[engine].formats
            else:
                assert engine in SERVERS


def test_an_engine_that_fails_says_so_and_goes_on():
    """The protocol, as a process: what the engine prints does not reach the replies."""
    code = """
from peers.protocol import serve_engine
class Engine:
    flags, version = "none", "1"
    def __init__(self, model):
        print("loading", model)
    def generate(self, prompts, output_len):
        return [output_len // len(prompts)]
    def close(self):
        print("closed")
serve_engine(Engine)
"""
    asked = [
        {"op": "load", "model": "m"},
        {"op": "generate", "prompts": [], "output_len": 4},
        {"op": "generate", "prompts": [[1]], "output_len": 4},
    ]
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input="".join(json.dumps(request) + "\n" for request in asked),
        env={"PYTHONPATH": str(Path(peers.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded, failed, generated = map(json.loads, run.stdout.splitlines())
    assert loaded["flags"] == "none"
    assert "ZeroDivisionError" in failed["error"]
    assert generated["tokens"] == [4]
    assert "closed" in run.stderr
