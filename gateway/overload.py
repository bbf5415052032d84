"""Refusing at once while the scheduler's queue is full: before a prompt is read, tokenised and sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from quire.errors import OverloadedError

# How long a refusal counts, in seconds. In so short a time no full queue runs empty, so nothing stands idle for it.
_HOLD_S: Final = 0.1
# Refusals that hold for whatever a tenant sends next; others depend on the request.
_WHOLESALE: Final = frozenset({"max_queued_requests"})


class Refusals:
    """What the scheduler refused a moment ago, by tenant."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._latest: dict[str, tuple[float, OverloadedError]] = {}

    def note(self, tenant: str, error: OverloadedError) -> None:
        """The scheduler refused a request of the tenant."""
        if error.field in _WHOLESALE:
            self._latest[tenant] = (self._clock() + _HOLD_S, error)

    def check(self, tenant: str) -> None:
        """Raises OverloadedError if the scheduler would, most likely, refuse the tenant's next request too."""
        if (entry := self._latest.get(tenant)) is None:
            return
        until, error = entry
        if self._clock() < until:
            raise OverloadedError(error.message, field=error.field, retry_after=error.retry_after)
        del self._latest[tenant]
