"""An executor in a process of its own, without a model: `python -m support.executor_process ADDRESS FINGERPRINT STEP`.

It attaches the pool that it is offered (one that it is to provide was there before, if it may be), computes with a
FakeExecutor in memory of its own, and hangs in the STEPth step (0: in none) as a kernel would that never returns: the
process is well otherwise. -1: in the step of an earlier scheduler, so that it cannot attach a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.fake_executor import FakeExecutor, FakeKvMemory
from support.step_server import StepService, serving

from quire.internal.v1 import executor_pb2
from quire.kv_pool import KvPool

BLOCK_SIZE = 4


class _Service(StepService):
    def __init__(self, fingerprint: str, hanging_step: int) -> None:
        super().__init__(self._execute)
        self._executor = FakeExecutor(FakeKvMemory(BLOCK_SIZE))
        self._fingerprint, self._hanging_step = fingerprint, hanging_step
        self._num_steps = 0
        self._pool: KvPool | None = None

    async def Describe(self, request: Any, context: Any) -> executor_pb2.ExecutorDescription:  # noqa: N802
        return executor_pb2.ExecutorDescription(
            pool_home=executor_pb2.POOL_HOME_HOST,
            num_ranks=1,
            cache_groups=[executor_pb2.CacheGroup(num_layers=1, num_kv_heads=1, head_dim=1, element_bytes=4)],
            fingerprint=self._fingerprint.encode().ljust(32),
            pid=os.getpid(),
        )

    async def AttachKvPool(self, request: Any, context: Any) -> executor_pb2.AttachKvPoolResponse:  # noqa: N802
        if self._hanging_step < 0:
            await asyncio.Event().wait()
        if request.HasField("executor_memory"):
            return executor_pb2.AttachKvPoolResponse(has_content=not request.executor_memory.is_new)
        self._pool = await asyncio.to_thread(KvPool.attach_handover, Path(request.handover_socket))
        return executor_pb2.AttachKvPoolResponse()

    def _execute(self, plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
        self._num_steps += 1
        if self._num_steps == self._hanging_step:
            threading.Event().wait()
        return self._executor.execute(plan)


@contextlib.contextmanager
def executor_process(address: str, fingerprint: str, hanging_step: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """It may take a moment until it serves, and is killed at the end of the block."""
    Path(address.removeprefix("unix:")).unlink(missing_ok=True)  # its predecessor's
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "support.executor_process", address, fingerprint, str(hanging_step)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


async def _main() -> None:
    address, fingerprint, hanging_step = sys.argv[1:]
    async with serving(_Service(fingerprint, int(hanging_step)), address):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
