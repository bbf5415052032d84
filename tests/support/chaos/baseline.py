"""What an idle server has, before a case and after it: blocks, descriptors, shared memory, queue, health, output."""

from __future__ import annotations

import collections
import contextlib
import gc
import re
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from support.chaos.server import RECOVERY_TIMEOUT_S, ChaosServer
from support.servers import wait_for

QUESTION = "The capital of France is"
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Holdings:
    """What one process holds of what must not leak."""

    descriptors: int
    # By name, such as "memfd:quire-kv-pool": how many mappings and descriptors of shared memory.
    shared_memory: dict[str, int]


@dataclass(frozen=True)
class Baseline:
    """An idle server."""

    num_blocks: int
    processes: dict[str, Holdings]
    files: list[str]
    answer: str

    @classmethod
    def take(cls, server: ChaosServer) -> Baseline:
        """Of a server that has worked a little, since the first request opens what stays open."""
        server.wait_serving()
        answer = ask(server)
        server.wait_idle()
        return cls(
            num_blocks=server.kv_state().num_blocks,
            processes={title: _holdings(process) for title, process in server.processes().items()},
            files=_files(server),
            answer=answer,
        )

    def check(self, server: ChaosServer) -> None:
        """The server is idle and has no more than it had.

        A process that was restarted may have opened less so far; it must not have more. Everything is waited for: a
        closed connection is noticed by the other side when that gets to it.
        """
        gc.collect()  # calls in the tracebacks of cancelled tasks hold connections of ours
        server.wait_serving()
        assert ask(server) == self.answer, "the next greedy output is another one"
        server.wait_idle()
        state = server.kv_state()
        assert state.num_blocks == self.num_blocks
        assert state.free_blocks + state.cached_blocks == state.num_blocks
        differences: list[str] = []

        def is_back() -> bool:
            differences[:] = self._differences(server)
            return not differences

        try:
            wait_for(is_back, RECOVERY_TIMEOUT_S / 4)
        except AssertionError:
            raise AssertionError("not back at the baseline: " + "; ".join(differences)) from None

    def _differences(self, server: ChaosServer) -> list[str]:
        found = []
        processes = server.processes()
        if processes.keys() != self.processes.keys():
            return [f"processes {sorted(processes)} instead of {sorted(self.processes)}"]
        for title, process in processes.items():
            before, now = self.processes[title], _holdings(process)
            if now.descriptors > before.descriptors:
                open_now = _describe_descriptors(process)
                found.append(f"{title} has {now.descriptors} descriptors, had {before.descriptors}: {open_now}")
            if now.shared_memory != before.shared_memory:
                found.append(f"{title} has shared memory {now.shared_memory}, had {before.shared_memory}")
        if (files := _files(server)) != self.files:
            found.append(f"the temporary folder has {files}, had {self.files}")
        return found


def ask(server: ChaosServer) -> str:
    """A greedy answer over REST."""
    body = {"model": "quire-tiny", "prompt": QUESTION, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=RECOVERY_TIMEOUT_S)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


def _holdings(process: psutil.Process) -> Holdings:
    names = collections.Counter[str]()
    folder = Path(f"/proc/{process.pid}")
    descriptors = list((folder / "fd").iterdir())
    for path in descriptors:
        try:
            target = str(path.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if "memfd:" in target:
            names[_plain(target)] += 1
    for line in (folder / "maps").read_text().splitlines():
        if "/memfd:" in line or "/dev/shm/" in line:
            names["mapping of " + _plain(line.split(maxsplit=5)[5])] += 1
    return Holdings(len(descriptors), dict(sorted(names.items())))


def _describe_descriptors(process: psutil.Process) -> list[str]:
    """What a process has open, for a message."""
    sockets = {
        entry.fd: f"socket {entry.laddr} {entry.raddr} {entry.status}" for entry in process.net_connections(kind="all")
    }
    opened = []
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            opened.append(sockets.get(int(path.name)) or str(path.readlink()))
    return sorted(opened)


def _plain(name: str) -> str:
    return _NUMBER.sub("N", name.removesuffix(" (deleted)"))


def _files(server: ChaosServer) -> list[str]:
    """Paths in the temporary folder, without the random parts of their names."""
    paths = (path.relative_to(server.home) for path in server.home.rglob("*"))
    return sorted(re.sub(r"quire-[^/]+", "quire-N", str(path)) for path in paths)
