"""`quire inspect` on a running server: what it shows, what it finds, and that the server does not notice."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from support.made_pools import make_pool
from support.servers import Server, wait_for
from typer.testing import CliRunner

from quire.cli import app
from quire.kv_pool import KvPool

PROMPT = [(11 * i) % 1900 + 40 for i in range(100)]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def _pid(server: Server, name: str) -> int:
    return next(child.process.pid for child in server.supervisor.children if child.name == name)


def _inspect(server: Server, process: str = "scheduler", *arguments: str) -> dict[str, Any]:
    """Without findings about memory that others on this machine keep."""
    done = CliRunner().invoke(app, ["inspect", str(_pid(server, process)), "--json", *arguments])
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == (0 if found["sound"] else 2)
    found["findings"] = [finding for finding in found["findings"] if finding["kind"] != "unserved memory"]
    return found


@contextlib.contextmanager
def _pool(server: Server) -> Iterator[KvPool]:
    """The pool itself, for writing."""
    scheduler = _pid(server, "scheduler")
    for path in Path(f"/proc/{scheduler}/fd").iterdir():
        if "quire-kv-pool" in str(path.readlink()):
            with KvPool(os.open(path, os.O_RDWR)) as pool:
                yield pool
            return
    raise AssertionError("the scheduler has no pool")


def _complete(client: openai.OpenAI, max_tokens: int, n: int = 1) -> list[str]:
    answer = client.completions.create(
        model="quire-tiny", prompt=PROMPT, max_tokens=max_tokens, n=n, temperature=0, extra_body={"ignore_eos": True}
    )
    return [choice.text for choice in answer.choices]


@pytest.mark.parametrize("process", ["scheduler", "executor 0", "gateway 0"])
def test_every_process_of_a_server_leads_to_its_pool(server: Server, process: str):
    found = _inspect(server, process)
    assert found["findings"] == []
    state = server.kv_state()
    assert found["header"]["num_blocks"] == state.num_blocks
    assert found["scheduler"]["usable_blocks"] == state.num_usable_blocks
    titles = {holder["title"] for holder in found["processes"]}
    assert {"quire: scheduler", "quire: executor 0"} <= titles


def test_what_runs_is_shown_and_goes_on_undisturbed(server: Server, client: openai.OpenAI):
    expected = _complete(client, 600, n=3)
    server.wait_idle()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_complete, client, 600, 3)
        wait_for(lambda: sum(bool(sequence.block_ids) for sequence in server.kv_state().sequences) == 3)
        shown = _inspect(server)
        while not answer.done():
            assert _inspect(server)["findings"] == []
        assert answer.result() == expected
    assert shown["findings"] == []
    assert len(shown["scheduler"]["block_tables"]) == 3
    assert shown["scheduler"]["held_blocks"] > 0
    assert shown["scheduler"]["blocks_by_references"]["3"] == 100 // 16, "the prompt's full blocks are shared by three"
    assert shown["map"]["shared by 3 or 4"] == 100 // 16
    assert shown["journal"]["known_blocks"] >= 100 // 16


def test_not_a_byte_of_the_pool_changes(server: Server, client: openai.OpenAI, tmp_path: Path):
    _complete(client, 8)
    server.wait_idle()
    with _pool(server) as pool:
        size = os.fstat(pool.fd).st_size
        before, blocks = os.pread(pool.fd, size, 0), os.fstat(pool.fd).st_blocks
        _inspect(server, "executor 0", "--map", str(tmp_path / "map.svg"))
        assert os.pread(pool.fd, size, 0) == before
        assert os.fstat(pool.fd).st_blocks == blocks, "nor is a hole filled"


def test_a_scheduler_of_another_pool_is_not_believed(server: Server, tmp_path: Path):
    path = make_pool(tmp_path / "pool")
    address = server.supervisor.scheduler_address
    done = CliRunner().invoke(app, ["inspect", str(path), "--json", "--scheduler", address])
    found = json.loads(done.stdout)
    assert found["scheduler"] is None
    assert any("it is not this one" in note for note in found["notes"])


def test_a_record_that_the_scheduler_knows_nothing_of(server: Server):
    server.wait_idle()
    with _pool(server) as pool:
        last = pool.layout.num_blocks - 1
        journal = pool.journal()
        journal.write(last, 2**40, 0, b"h" * 32, b"", bytes(4 * pool.layout.block_size))
        try:
            found = _inspect(server)
        finally:
            journal.clear(last)
            del journal
    assert [(finding["kind"], finding["block"]) for finding in found["findings"]] == [
        ("untrue record", last),
        ("contradicted record", last),
    ]
    assert _inspect(server)["findings"] == []
