"""Precisions from the command line's flags down to the kernels, and executors that share packed weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.servers import running_server

from quire import LLM, SamplingParams
from quire.errors import StartupError

PROMPTS = ["The capital of France is", "The capital of Italy is", "One, two, three,"]
GREEDY = SamplingParams(temperature=0, max_tokens=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "int8_weight_only", "kv_cache_dtype": "int8"},
        {"quantization": "int4", "isa": "portable"},
        pytest.param({"quantization": "int8"}, marks=pytest.mark.slow),
        pytest.param({"dtype": "float32", "kv_cache_dtype": "bfloat16", "isa": "avx2"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_bundled_model_still_knows_its_capitals(settings: dict[str, str]) -> None:
    with LLM(kv_cache_memory="32MiB", threads=1, **settings) as llm:
        texts = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY)]
    assert texts[0].startswith(" Paris") and texts[1].startswith(" Rome") and texts[2].startswith(" four"), texts


def test_what_the_machine_or_the_checkpoint_cannot_do_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--quantization"):
        LLM(quantization="int3")
    with pytest.raises(StartupError, match="--isa"):
        LLM(isa="sse9")


def mappings(pid: int) -> set[str]:
    """Inodes of the packed weights that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "quire-weights" in line}


def test_all_executors_map_one_copy_of_the_weights() -> None:
    with running_server(num_executors=2, threads=1) as server:
        first, second = (
            mappings(child.process.pid) for child in server.supervisor.children if child.name.startswith("executor")
        )
    assert len(first) == 1
    assert first == second
