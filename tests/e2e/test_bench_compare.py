"""`quire bench compare` against a real server and a real transformers."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from quire.cli import app
from quire.errors import CheckpointError, InvalidRequestError

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sequential", "batch"])
def test_both_sides_give_the_same_texts_and_as_many_tokens(tmp_path: Path, mode: str):
    result_file, picture = tmp_path / "result.json", tmp_path / "picture.png"
    done = CliRunner().invoke(
        app,
        ["bench", "compare", "--users", "1,2", "--rounds", "2", "--requests-per-user", "2", "--output-len", "12",
         "--hf-mode", mode, "--kv-cache-memory", "32MiB", "--threads", "1", "--output-json", str(result_file),
         "--plot", str(picture)],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "better by" in done.stdout
    result = json.loads(result_file.read_text())
    assert result["model"] == "quire-tiny"
    assert result["hf"]["dtype"] == "float32"
    assert [(record["round"], record["users"]) for record in result["rounds"]] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for record in result["rounds"]:
        requests = 2 * record["users"]
        assert record["texts"] == record["equal_texts"] == requests
        for side in ("hf", "quire"):
            figures = record[side]
            assert (figures["completed"], figures["failed"]) == (requests, 0)
            assert figures["total_output_tokens"] == 12 * requests
            assert figures["max_concurrent_requests"] == record["users"]
            assert 0 < figures["p50_ttft_ms"] <= figures["p50_e2el_ms"] <= figures["p95_e2el_ms"]
            assert figures["peak_memory_bytes"] > 50 * 2**20
        assert record["hf"]["total_input_tokens"] == record["quire"]["total_input_tokens"]
        assert record["quire"]["total_cached_tokens"] == 0
    one, two = result["summary"]
    assert (one["users"], two["users"]) == (1, 2)
    assert (one["hf"]["p50_ttft_ms"] is None) == (mode == "batch")
    assert one["ratio"]["output_throughput"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not [child for child in psutil.Process().children(recursive=True) if "compare_hf" in str(child.cmdline())]


def test_a_model_that_is_not_there_is_refused_before_anything_starts():
    with pytest.raises(CheckpointError, match="there is no folder"):
        CliRunner().invoke(app, ["bench", "compare", "--model", "./none"], catch_exceptions=False)


@pytest.mark.slow
def test_prompts_that_do_not_fit_are_refused(tmp_path: Path):
    prompts = tmp_path / "prompts"
    prompts.write_text("short\n" + "long " * 3000 + "\n")
    with pytest.raises(InvalidRequestError, match=r"prompt 2 has \d+ tokens"):
        CliRunner().invoke(app, ["bench", "compare", "--prompts", str(prompts)], catch_exceptions=False)
