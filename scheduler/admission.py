"""Whether a new request may enter: bounded queues, and the limits of its tenant over all gateways.

What was admitted once is never refused: a resubmission after a failure enters whatever the limits say.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quire.errors import OverloadedError
from quire.internal.v1 import scheduler_pb2
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.tenants import TenantAccount
from quire.scheduler.token_bucket import TokenBucket

# Bounds of what clients are told to wait, in seconds.
_MIN_RETRY_S: Final = 1
_MAX_RETRY_S: Final = 60
# How long the past is that says how fast requests end, in seconds, and how often it is looked at.
_WINDOW_S: Final = 30.0
_SAMPLE_S: Final = 1.0


@dataclass(slots=True)
class _Buckets:
    """What a tenant may still use of its limits per minute."""

    requests: TokenBucket | None = None
    tokens: TokenBucket | None = None
    # Output tokens of its account that were taken out of `tokens`.
    num_output_tokens: int = 0


class Admission:
    """Decides before a request is queued, and says when to come again."""

    def __init__(
        self,
        scheduler: Scheduler,
        max_queued_requests: int,
        max_queued_tokens: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds."""
        self._scheduler = scheduler
        self._max_requests = max_queued_requests
        self._max_tokens = max_queued_tokens
        self._clock = clock
        self._buckets: dict[TenantAccount, _Buckets] = {}
        # (time, requests that had ended)
        self._ends: deque[tuple[float, int]] = deque([(clock(), 0)])

    def admit(self, tenant: scheduler_pb2.Tenant, num_prompt_tokens: int, *, is_first: bool = True) -> None:
        """Takes a new prompt into account. Raises OverloadedError, whose field is the limit that was reached.

        `is_first`: it is the first prompt of a client's request, or the only one.
        """
        account = self._scheduler.tenants.of(tenant)
        now = self._clock()
        self._note_ends(now)
        if is_first:
            self._check_queue(account, num_prompt_tokens)
        if tenant.HasField("max_concurrent_requests") and account.num_requests >= tenant.max_concurrent_requests:
            raise self._tenant_error(tenant, "max_concurrent_requests", self._retry_after(1))
        self._charge(tenant, account, num_prompt_tokens, now)

    def _check_queue(self, account: TenantAccount, num_prompt_tokens: int) -> None:
        """A tenant may fill its share of the queue whatever others have in it, and all of it while there is room."""
        queue, limits = self._scheduler.waiting, self._scheduler.limits
        # The first ones have slots to go to.
        num_queued = len(queue) - max(limits.max_num_seqs - self._scheduler.num_running, 0)
        if num_queued >= self._max_requests and account.num_waiting >= self._max_requests * self._share(account):
            message = f"{len(queue)} requests wait already"
            raise OverloadedError(message, field="max_queued_requests", retry_after=self._retry_after(len(queue)))
        if self._max_tokens is None or not account.num_waiting:
            return
        fits_queue = queue.num_prompt_tokens + num_prompt_tokens <= self._max_tokens
        share = self._max_tokens * self._share(account)
        if not fits_queue and account.num_waiting_tokens + num_prompt_tokens > share:
            message = f"prompts of {queue.num_prompt_tokens} tokens wait already"
            raise OverloadedError(message, field="max_queued_tokens", retry_after=self._retry_after(len(queue)))

    def _share(self, account: TenantAccount) -> float:
        return self._scheduler.tenants.share(account)

    def _charge(self, tenant: scheduler_pb2.Tenant, account: TenantAccount, num_prompt_tokens: int, now: float) -> None:
        """Takes a request and its prompt out of the tenant's buckets, if both have enough."""
        buckets = self._buckets_of(tenant, account, now)
        for name, bucket, amount in (
            ("requests_per_minute", buckets.requests, 1),
            ("tokens_per_minute", buckets.tokens, num_prompt_tokens),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(amount, now)) > 0:
                raise self._tenant_error(tenant, name, _bounded(wait_s))
        if buckets.requests is not None:
            buckets.requests.take(1, now)
        if buckets.tokens is not None:
            buckets.tokens.take(num_prompt_tokens, now)

    def _buckets_of(self, tenant: scheduler_pb2.Tenant, account: TenantAccount, now: float) -> _Buckets:
        """The buckets as the limits are now; output since the last look is out of them."""
        buckets = self._buckets.get(account)
        if buckets is None:
            buckets = self._buckets[account] = _Buckets(num_output_tokens=account.num_output_tokens)
        requests = tenant.requests_per_minute if tenant.HasField("requests_per_minute") else None
        tokens = tenant.tokens_per_minute if tenant.HasField("tokens_per_minute") else None
        buckets.requests = TokenBucket.renewed(buckets.requests, requests, now)
        buckets.tokens = TokenBucket.renewed(buckets.tokens, tokens, now)
        num_new, buckets.num_output_tokens = (
            account.num_output_tokens - buckets.num_output_tokens,
            account.num_output_tokens,
        )
        if buckets.tokens is not None:
            buckets.tokens.take(num_new, now)
        return buckets

    def _tenant_error(self, tenant: scheduler_pb2.Tenant, name: str, retry_after: int) -> OverloadedError:
        message = f"the limit of this tenant is reached: {name} = {getattr(tenant, name)}"
        return OverloadedError(message, field=name, retry_after=retry_after)

    def _note_ends(self, now: float) -> None:
        if now - self._ends[-1][0] >= _SAMPLE_S:  # one of them is older than the window, or the only one
            self._ends.append((now, self._scheduler.tenants.num_ended))
            while now - self._ends[1][0] > _WINDOW_S:
                self._ends.popleft()

    def _retry_after(self, num_requests: int) -> int:
        """Seconds until so many requests will have ended, at the pace of late."""
        since, num_ended = self._ends[0]
        pace = max(self._scheduler.tenants.num_ended - num_ended, 1) / max(self._clock() - since, _SAMPLE_S)
        return _bounded(num_requests / pace)


def _bounded(seconds: float) -> int:
    return min(max(math.ceil(seconds), _MIN_RETRY_S), _MAX_RETRY_S)
