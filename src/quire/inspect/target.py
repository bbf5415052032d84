"""What `quire inspect PATH|PID` means: a descriptor of a pool, and the server that has it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.errors import KvPoolError
from quire.inspect.processes import Identity, close_all, held_pools, identity_of, open_if_pool, open_pools
from quire.supervision.control import find_servers


@dataclass(frozen=True, slots=True)
class Target:
    """A pool that is open for reading; close it."""

    name: str
    descriptor: int
    # Where the scheduler that serves it listens; None if no server of ours does.
    scheduler: str | None

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class _Server:
    """A server that answers on its control socket."""

    folder: Path
    status: dict[str, Any]

    @property
    def scheduler_pid(self) -> int | None:
        found = (process["pid"] for process in self.status["processes"] if process["name"] == "scheduler")
        return next(found, None)

    @property
    def scheduler_address(self) -> str:
        return f"unix:{self.folder}/scheduler.sock"

    @property
    def pids(self) -> set[int]:
        return {self.status["pid"], *(process["pid"] for process in self.status["processes"])}


def find_target(where: str, scheduler: str | None = None) -> Target:
    """Finds the pool that a path or the id of a process names; `scheduler` is asked in place of its server's.

    Raises KvPoolError with the reason if there is none that can be read.
    """
    servers = [_Server(folder, status) for folder, status in find_servers()]
    if where.isascii() and where.isdecimal():
        name, descriptor = _open_of_process(int(where), servers)
    else:
        name, descriptor = where, _open_path(Path(where))
    held = held_pools(descriptor).get(identity_of(descriptor))
    holders = {holder.pid for holder in held.holders} if held is not None else set()
    serving = [server for server in servers if server.scheduler_pid in holders]
    return Target(name, descriptor, scheduler or (serving[0].scheduler_address if serving else None))


def _open_path(path: Path) -> int:
    try:
        descriptor = open_if_pool(path)
    except OSError as error:
        raise KvPoolError(f"cannot read {path}: {error.strerror}", field="target") from error
    if descriptor is None:
        what = "a folder" if path.is_dir() else "not a KV pool: its first bytes are not a pool's magic"
        raise KvPoolError(f"{path} is {what}", field="target")
    return descriptor


def _open_of_process(pid: int, servers: list[_Server]) -> tuple[str, int]:
    """The name and a descriptor of the pool that a process, or the server that it is part of, has."""
    own = [server for server in servers if pid in server.pids]
    if len(own) > 1:
        pids = ", ".join(str(server.scheduler_pid) for server in own)
        raise KvPoolError(f"process {pid} has several servers; name one of their schedulers: {pids}", field="target")
    # A gateway has no pool, and a program may hold other pools than its server's; a scheduler may have died just now.
    candidates = [own[0].scheduler_pid, own[0].status["pid"]] if own else [pid]
    for candidate in candidates:
        if candidate is None or (own and not Path(f"/proc/{candidate}").exists()):
            continue
        pools = _pools_of(candidate)
        if len(pools) > 1:
            close_all(pools)
            raise KvPoolError(f"process {pid} holds several KV pools; name a scheduler's process", field="target")
        if pools:
            return f"the KV pool of process {candidate}", pools.popitem()[1]
    kind = "its server has none in memory" if own else "it has none"
    raise KvPoolError(f"process {pid} is no process with a KV pool: {kind}", field="target")


def _pools_of(pid: int) -> dict[Identity, int]:
    try:
        return open_pools(pid)
    except ProcessLookupError as error:
        raise KvPoolError(f"there is no process {pid}", field="target") from error
    except PermissionError as error:
        raise KvPoolError(f"process {pid} may not be looked at: it is another user's", field="target") from error
    except OSError as error:
        raise KvPoolError(f"process {pid} cannot be looked at: {error.strerror}", field="target") from error
