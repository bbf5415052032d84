"""The official Node client: each script of node/ is one test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from live_server import LiveServer

NODE = Path(__file__).parent / "node"
SCRIPTS = sorted(path.name for path in NODE.glob("*.mjs") if path.name != "client.mjs")


@pytest.mark.parametrize("script", SCRIPTS)
def test_script(server: LiveServer, script: str) -> None:
    run = subprocess.run(
        ["node", script],
        cwd=NODE,
        env={**os.environ, "QUIRE_URL": server.base_url},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed: " in run.stdout
