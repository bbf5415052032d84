"""Whether what is submitted gets ahead, which is what load balancers ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Final

from quire.gateway.scheduler_client import SchedulerClient

logger = logging.getLogger(__name__)

# Between two looks at the outputs.
_TICK_S: Final = 1.0


class Readiness:
    """Watches one client. It is ready while the scheduler is connected, an executor lives, and outputs come."""

    def __init__(self, client: SchedulerClient, timeout: float) -> None:
        """`timeout`: seconds in which something should come of the requests that run."""
        self._client = client
        self._timeout = timeout
        self._is_stalled = False

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None if it is."""
        if not self._client.is_connected:
            return "the scheduler is not connected"
        if self._client.num_live_executors == 0:
            return "no executor is running"
        if self._is_stalled:
            return f"requests are running, and nothing came of them for {self._timeout:g} s"
        return None

    async def changes(self) -> AsyncGenerator[bool, None]:
        """Whether it is ready now, and again whenever that changes."""
        loop = asyncio.get_running_loop()
        client, known = self._client, None
        num_messages, since = client.num_messages, loop.time()
        while True:
            client.changed.clear()
            # While there is no scheduler, or none of its executors lives, that is the reason.
            if client.num_messages != num_messages or not self._is_due():
                num_messages, since = client.num_messages, loop.time()
            self._is_stalled = loop.time() - since >= self._timeout
            if (is_ready := self.reason is None) is not known:
                known = is_ready
                logger.log(logging.INFO if is_ready else logging.WARNING, "health: %s", self.reason or "ready")
                yield is_ready
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_TICK_S, self._timeout / 4)):
                    await client.changed.wait()

    def _is_due(self) -> bool:
        client = self._client
        return client.is_connected and client.num_live_executors != 0 and client.awaits_outputs
