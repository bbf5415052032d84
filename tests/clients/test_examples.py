"""Every file in examples/ runs, against the live server, in the environment that has its client."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import QUIRE_PYTHON, ROOT, LiveServer

EXAMPLES = ROOT / "examples"
OPENAI2 = str(ROOT / ".venv-clients" / "openai2" / "bin" / "python")
OPENAI3 = str(ROOT / ".venv-clients" / "openai3" / "bin" / "python")

PERSON = r"Person\(name="

# What runs each example, and what it must print (patterns).
RUNS = {
    "anthropic_messages.py": (OPENAI3, "Paris"),
    "curl.sh": ("bash", "Paris", '"yes"|"no"', '"embedding":', "invalid_request_error"),
    "grpc_client.py": (QUIRE_PYTHON, "Paris"),
    "instructor_extraction.py": (OPENAI2, PERSON),
    "langchain_chat.py": (OPENAI3, PERSON),
    "litellm_chat.py": (OPENAI2, "Paris"),
    "llama_index_chat.py": (OPENAI2, "Rome"),
    "offline_llm.py": (QUIRE_PYTHON, "Paris"),
    "openai_node.mjs": ("node", "get_weather"),
    "openai_python.py": (OPENAI3, "GetWeather"),
    "openai_responses.py": (OPENAI3, "Paris"),
    "pydantic_ai_agent.py": (OPENAI3, PERSON),
}


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_example(server: LiveServer, tmp_path: Path, name: str) -> None:
    program, *outputs = RUNS[name]
    # A copy, so that nothing but the client it names is found from where it stands; node looks beside the file.
    script = Path(shutil.copy(EXAMPLES / name, tmp_path))
    (tmp_path / "node_modules").symlink_to(Path(__file__).parent / "node" / "node_modules")
    addresses = {"QUIRE_URL": server.base_url, "QUIRE_GRPC": server.grpc_address}
    # litellm would fetch a price list while it is imported.
    environment = {**os.environ, **addresses, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    run = subprocess.run(
        [program, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for output in outputs:
        assert re.search(output, run.stdout), run.stdout + run.stderr
