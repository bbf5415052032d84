"""What onlookers see of a real server is what its scheduler has."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256

import pytest
from support.servers import Server, running_server, stopped_executor, wait_for

from quire.client import Client
from quire.columns import pack_u32, unpack_u32
from quire.errors import RequestAbortedError
from quire.internal.v1 import scheduler_pb2
from quire.kv_journal import chain_hash
from quire.sampling_params import SamplingParams
from quire.v1 import monitor_pb2

PATIENCE_S = 60
# Of the shared server.
BLOCK_SIZE = 16
PROMPT = list(range(1000, 1000 + 3 * BLOCK_SIZE))


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc_address) as connected:
        yield connected


@contextlib.contextmanager
def generating(client: Client, prompt: list[int], n: int) -> Iterator[None]:
    """A request that has begun, and is cancelled at the end of the block."""
    params = SamplingParams(n=n, max_tokens=400, ignore_eos=True)
    with contextlib.closing(client.generate(prompt, params, timeout=PATIENCE_S)) as parts:
        next(parts)
        yield


def standing_still(server: Server) -> scheduler_pb2.GetKvCacheStateResponse:
    """The scheduler's state, once the last results are in and the next step is planned."""
    state = server.kv_state()

    def stands() -> bool:
        nonlocal state
        before, state = state, server.kv_state()
        return before == state

    wait_for(lambda: all(stands() for _ in range(5)))
    return state


def test_states_are_the_schedulers(server: Server, client: Client) -> None:
    with generating(client, PROMPT, n=4), generating(client, [5, 6, 7], n=1), stopped_executor(server):
        truth = standing_still(server)
        with contextlib.closing(client.watch(with_blocks=True, timeout=PATIENCE_S)) as states:
            state = next(states)
        loads = client.loads(timeout=PATIENCE_S)
    for told in (loads, state.loads):
        assert (told.free_blocks, told.cached_blocks, told.held_blocks, told.num_blocks, told.block_size) == (
            truth.free_blocks,
            truth.cached_blocks,
            truth.held_blocks,
            truth.num_blocks,
            truth.block_size,
        )
        assert told.num_requests_running == truth.num_requests_running == 5
        assert told.num_requests_waiting == truth.num_requests_waiting == 0
        assert told.kv_cache_usage == pytest.approx(truth.held_blocks / truth.num_blocks)
    tables = {(s.request_id, s.sequence_index): unpack_u32(s.block_ids) for s in truth.sequences}
    assert {(s.request_id, s.sequence_index): unpack_u32(s.block_ids) for s in state.sequences} == tables
    assert {s.status for s in state.sequences} == {"running"}
    assert state.blocks.is_complete
    held = {block_id: value - 1 for block_id, value in enumerate(state.blocks.states) if value > 1}
    assert len(held) == truth.held_blocks
    assert sum(value == 1 for value in state.blocks.states) == truth.cached_blocks
    users = [block_id for table in tables.values() for block_id in table]
    assert {block_id: users.count(block_id) for block_id in users} == held
    # The whole blocks of the prompt but the last, whose last token each of the four computes.
    assert sorted(held.values(), reverse=True)[:2] == [4, 4]
    server.wait_idle()


class Mirror:
    """What a router knows: the hashes that events told of, kept up to date by a thread."""

    def __init__(self, client: Client) -> None:
        self.hashes: set[bytes] = set()
        self.num_cleared = 0
        self._batches = client.kv_events()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(RequestAbortedError):
            for batch in self._batches:
                for event in batch.events:
                    self._take(event)

    def _take(self, event: monitor_pb2.KvEvent) -> None:
        match event.WhichOneof("event"):
            case "stored":
                self.hashes.add(event.stored.block_hash)
            case "removed":
                self.hashes.remove(event.removed.block_hash)
            case "cleared":
                self.hashes.clear()
                self.num_cleared += 1

    def join(self) -> None:
        """After the client was closed."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def mirrored(server: Server) -> Iterator[Mirror]:
    client = Client(server.grpc_address)
    mirror = Mirror(client)
    try:
        yield mirror
    finally:
        client.close()
        mirror.join()


def hashes_of(token_ids: list[int], salt: str = "") -> list[bytes]:
    """As docs/observability.md has routers make them, of a prompt of no tenant."""
    extra = sha256(pack_u32([0, 0]) + salt.encode()).digest() if salt else b""
    hashes, parent = [], b""
    for start in range(0, len(token_ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
        parent = chain_hash(parent, pack_u32(token_ids[start : start + BLOCK_SIZE]), extra)
        hashes.append(parent)
    return hashes


def test_a_router_knows_what_is_cached(server: Server, client: Client) -> None:
    with mirrored(server) as mirror:
        prompts = [[base + i for i in range(50)] for base in (200, 300, 400)]
        outputs = [client.complete(prompt, SamplingParams(max_tokens=40, ignore_eos=True)) for prompt in prompts]
        server.wait_idle()
        wait_for(lambda: len(mirror.hashes) == server.kv_state().cached_blocks)
        for prompt, output in zip(prompts, outputs, strict=True):
            tokens = prompt + list(output.outputs[0].token_ids)
            # The last token is never computed.
            assert mirror.hashes.issuperset(hashes_of(tokens[:-1]))
        # Salted ones are there and nobody finds them without the salt.
        before = set(mirror.hashes)
        client.complete(list(range(600, 640)), SamplingParams(max_tokens=1), cache_salt="secret")
        wait_for(lambda: len(mirror.hashes) == len(before) + 2)
        assert not mirror.hashes.intersection(hashes_of(list(range(600, 640))))
        assert mirror.hashes - before == set(hashes_of(list(range(600, 640)), "secret"))


def test_top_prints_a_state(server: Server) -> None:
    command = [sys.executable, "-m", "quire", "top", "--address", server.grpc_address, "--once", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    state = json.loads(done.stdout)
    assert state["loads"]["num_blocks"] == server.kv_state().num_blocks
    assert state["blocks"]["is_complete"] is True
    assert state["sequences"] == []


@pytest.mark.slow
def test_onlookers_see_the_next_scheduler() -> None:
    """States and KV events go on; what the journal brought back is there."""
    with running_server() as server, Client(server.grpc_address) as client, mirrored(server) as mirror:
        client.complete(PROMPT, SamplingParams(max_tokens=2))
        server.wait_idle()
        wait_for(lambda: len(mirror.hashes) == 3)
        with contextlib.closing(client.watch(interval=0.1, timeout=PATIENCE_S)) as states:
            first = next(states).scheduler_start_ns
            (scheduler,) = (child.process for child in server.supervisor.children if child.name == "scheduler")
            os.kill(scheduler.pid, signal.SIGKILL)
            assert any(state.scheduler_start_ns != first for state in states)
        wait_for(lambda: mirror.num_cleared == 2 and mirror.hashes == set(hashes_of(PROMPT)), PATIENCE_S)
