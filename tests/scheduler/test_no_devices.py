"""Gateway and scheduler do not know what computes: no code of theirs names it, but for settings with vLLM's names."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_WORDS = re.compile(r"cuda|gpu|nvidia|device_type", re.IGNORECASE)
# Settings and metrics that vLLM named.
_VLLM = ("gpu_memory_utilization", "gpu-memory-utilization", "num_gpu_blocks", "num-gpu-blocks", "gpu_cache_usage_perc")


@pytest.mark.parametrize("part", ["gateway", "scheduler"])
def test_no_code_names_a_device(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    assert len(files) > 20
    found = [f"{path.name}:{line}: {text}" for path in files for line, text in _names(path.read_text())]
    assert not found


def test_what_would_be_found() -> None:
    source = 'x = device == DEVICE_CUDA  # on a GPU\nf("on a GPU")\ny = settings.num_gpu_blocks_override\n'
    assert [line for line, _ in _names(source)] == [1, 2]


def _names(source: str) -> list[tuple[int, str]]:
    """Names and texts that name a device, by line; comments may."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = [(token.start[0], token.string) for token in tokens if token.type != tokenize.COMMENT]
    return [(line, text) for line, text in code if _WORDS.search(_without_vllm(text))]


def _without_vllm(text: str) -> str:
    for name in _VLLM:
        text = text.replace(name, "")
    return text
