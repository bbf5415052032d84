"""When a call is repeated, and when it is given up."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import Final

from quire.errors import DeadlineError, InvalidRequestError, ServiceUnavailableError

# gRPC takes a deadline of centuries for one that has passed.
_MAX_TIMEOUT_S: Final = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when an UNAVAILABLE call is repeated; times are in seconds.

    The wait before repeat k is random in [0, min(max_backoff, initial_backoff * multiplier^k)], so that clients
    that failed together do not come back together ("full jitter", Brooker 2015).
    """

    max_attempts: int = 5
    initial_backoff: float = 0.2
    max_backoff: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidRequestError("max_attempts must be at least 1", field="max_attempts")

    def backoff(self, repeat: int) -> float:
        """Seconds to wait before repeat number `repeat`, counted from 0."""
        limit = min(self.max_backoff, self.initial_backoff * self.multiplier**repeat)
        return random.uniform(0, limit)  # noqa: S311 (no secret)


class Attempts:
    """One call's attempts against its deadline."""

    def __init__(self, policy: RetryPolicy, timeout: float) -> None:
        """`timeout` is in seconds, from now."""
        self._policy = policy
        self._deadline = time.monotonic() + timeout
        self._num_failed = 0

    @property
    def timeout(self) -> float:
        """Seconds left. Raises DeadlineError if there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError("the deadline passed before the call succeeded")
        return left

    def delay_after(self, error: ServiceUnavailableError) -> float:
        """Seconds to wait before the next attempt; raises the error if there is none."""
        self._num_failed += 1
        delay = self._policy.backoff(self._num_failed - 1)
        if self._num_failed >= self._policy.max_attempts or time.monotonic() + delay >= self._deadline:
            raise error
        return delay


def check_timeout(timeout: object) -> float:
    """Seconds that gRPC can count. Raises InvalidRequestError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout) or timeout <= 0:
        raise InvalidRequestError(f"timeout must be a positive number of seconds, not {timeout!r}", field="timeout")
    return min(float(timeout), _MAX_TIMEOUT_S)
