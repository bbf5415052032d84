"""Code blocks of the documents run as they stand, against a real server, and give what the documents say.

A fence marked `run` (```` ```sh run ```` or ```` ```python run ````) is run; a fence marked `output` after it is what
it must print, in which `...` stands for any text, and on a line of its own for any lines. Blocks of a page run in order
and share a folder. What they say of addresses and `.venv/bin/` is made the test's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.servers import running_server

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(sh|python|text) (run|output)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TIMEOUT_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Block:
    """Code, where it stands, and what it must print."""

    line: int
    language: str
    code: str
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are marked."""
    text, found = page.read_text(), []
    for match in _FENCE.finditer(text):
        language, mark, content = match.groups()
        if mark == "run":
            found.append(Block(text.count("\n", 0, match.start()) + 1, language, content))
        else:
            assert found and found[-1].output is None, f"{page}: an output belongs to the block before it"
            found[-1].output = content
    return found


PAGES = [page for page in sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("*.md")) if blocks(page)]


@pytest.fixture(scope="module")
def server():
    with running_server() as running:
        yield running


@pytest.fixture
def environment(server, tmp_path):
    """One in which `quire` and `python` are this working tree's, and call the server if no address is given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("quire", "-P -m quire"), ("python", "-P")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    own = {"PATH": f"{programs}:{os.environ['PATH']}", "QUIRE_ADDRESS": server.grpc_address}
    return {**os.environ, **own, "NO_COLOR": "1", "COLUMNS": "120"}


def _as_here(code: str, server) -> str:
    for said, here in (
        ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
        ("127.0.0.1:50051", server.grpc_address),
        (".venv/bin/", ""),
    ):
        code = code.replace(said, here)
    return code


def _pattern(output: str) -> str:
    """A line `...` is any lines; elsewhere `...` is any text of a line."""
    lines = (
        "(?:.*\n)*?" if line.strip() == "..." else ".*".join(map(re.escape, line.split("..."))) + " *\n"
        for line in output.splitlines()
    )
    return "".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, server, environment, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    for block in blocks(page):
        code = _as_here(block.code, server)
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-P", "-c"]
        run = subprocess.run(
            [*command, code], cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
        place = f"{page.name}:{block.line}"
        assert run.returncode == 0, f"{place} failed:\n{run.stdout}\n{run.stderr}"
        if block.output is not None:
            printed = run.stdout if run.stdout.endswith("\n") else run.stdout + "\n"
            assert re.fullmatch(_pattern(block.output), printed), f"{place} printed:\n{printed}"
