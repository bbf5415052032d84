"""Puts a new executor in an old one's place while steps run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quire.errors import QuireError
from quire.process import in_daemon_thread
from quire.supervision.keeper import Keeper

# An executor and its successor live at the same time, so they listen at two addresses by turns.
_TURN: Final = {".sock": "b.sock", "b.sock": ".sock"}


async def replace_executor(executors: Sequence[Keeper], index: int, scheduler: Keeper) -> None:
    """Starts another executor, has the scheduler move the lane to it, and ends the old one.

    Raises QuireError with the reason if that fails; the old one goes on.
    """
    executor = executors[index]
    new = executor.spec.with_own(listen=_other_address(str(executor.spec.own["listen"])))

    async def hand_over() -> None:
        told_before = scheduler.spec
        # Whoever takes the scheduler's place from now on knows the new executor.
        addresses = [str(keeper.spec.own["listen"]) for keeper in executors]
        addresses[index] = str(new.own["listen"])
        scheduler.spec = told_before.with_own(executors=addresses)
        # That one does not know the old executor, which may be in the middle of a step.
        scheduler.dies_first = {executor.child} if executor.child is not None else set()
        try:
            await _move_lane(scheduler, index, addresses[index])
        except QuireError:
            scheduler.spec = told_before
            raise
        finally:
            scheduler.dies_first = set()

    old = executor.spec
    await executor.replace(new, hand_over)
    # Executors may not change files, their own socket included.
    old.remove_socket()


async def _move_lane(scheduler: Keeper, index: int, address: str) -> None:
    """Tells the scheduler. Raises QuireError unless the new executor has the lane."""
    told = scheduler.child
    at, timeout_s = str(scheduler.spec.own["listen"]), scheduler.spec.settings.startup_timeout
    try:
        await in_daemon_thread(lambda: _call_replace_executor(at, index, address, timeout_s))
    except QuireError:
        if told is None or told.is_running:
            raise
        # It died meanwhile. The next one has the new address, and serves once it has met the executor there.
        await in_daemon_thread(lambda: _call_describe(at, timeout_s))


def _call_replace_executor(scheduler: str, index: int, address: str, timeout_s: float) -> None:
    # Imported when it is needed, so that children are started 0.1 s sooner.
    from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
    from quire.rpc import errors_from_status, open_sync_channel

    request = scheduler_pb2.ReplaceExecutorRequest(index=index, address=address)
    with open_sync_channel(scheduler) as channel, errors_from_status("the scheduler"):
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        stub.ReplaceExecutor(request, timeout=timeout_s, wait_for_ready=True)


def _call_describe(scheduler: str, timeout_s: float) -> None:
    from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
    from quire.rpc import errors_from_status, open_sync_channel

    with open_sync_channel(scheduler) as channel, errors_from_status("the scheduler"):
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        stub.Describe(scheduler_pb2.DescribeRequest(), timeout=timeout_s, wait_for_ready=True)


def _other_address(address: str) -> str:
    old = "b.sock" if address.endswith("b.sock") else ".sock"
    return address.removesuffix(old) + _TURN[old]
