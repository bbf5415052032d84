"""What the scheduler knows of each tenant: its weight, what it has waiting and running, what it was served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from quire.internal.v1 import scheduler_pb2

if TYPE_CHECKING:
    from quire.scheduler.sequence import Sequence

# What tokens cost, as in the paper that fair_queue.py names. A prompt's is 1.
OUTPUT_TOKEN_COST: Final = 2


class TenantAccount:
    """One tenant, over all gateways."""

    __slots__ = (
        "name",
        "num_output_tokens",
        "num_requests",
        "num_running",
        "num_waiting",
        "num_waiting_tokens",
        "served",
        "weight",
    )

    def __init__(self, name: str = "", weight: float = 1.0) -> None:
        self.name = name
        self.weight = weight
        # Requests that have not ended.
        self.num_requests = 0
        # Sequences with a slot.
        self.num_running = 0
        # Sequences in the queue, and the tokens of their prompts.
        self.num_waiting = 0
        self.num_waiting_tokens = 0
        # Metered: tokens sampled so far, and the cost of all that was computed, divided by the weight.
        self.num_output_tokens = 0
        self.served = 0.0

    def __repr__(self) -> str:
        counts = f"{self.num_running} running, {self.num_waiting} waiting, {self.served:.0f} served"
        return f"TenantAccount({self.name!r}, {counts})"


class TenantAccounts:
    """All accounts by the tenant's name."""

    def __init__(self) -> None:
        self._by_name: dict[str, TenantAccount] = {}
        # Whether steps meter who gets their tokens: under fair queueing, and once a tenant has a limit of tokens.
        self.are_metered = False
        # Those with requests that have not ended.
        self.active: dict[TenantAccount, None] = {}
        # Requests that have ended, since the start.
        self.num_ended = 0

    def of(self, tenant: scheduler_pb2.Tenant) -> TenantAccount:
        """The account of a request's tenant. The latest request says its weight, which a reload may have changed."""
        account = self._by_name.get(tenant.name)
        if account is None:
            account = self._by_name[tenant.name] = TenantAccount(tenant.name)
        account.weight = tenant.weight or 1.0
        self.are_metered |= tenant.HasField("tokens_per_minute")
        return account

    def begin(self, account: TenantAccount) -> None:
        """A request is there."""
        account.num_requests += 1
        self.active[account] = None

    def end(self, account: TenantAccount) -> None:
        """A request has ended."""
        self.num_ended += 1
        account.num_requests -= 1
        if not account.num_requests:
            del self.active[account]

    def share(self, account: TenantAccount) -> float:
        """What part of anything is a tenant's by its weight, among those that are active and itself; in (0, 1]."""
        others = sum([other.weight for other in self.active if other is not account])
        return account.weight / (account.weight + others)


def meter_prompt(sequence: Sequence, num_new_tokens: int) -> None:
    """Charges for what a step is to compute of a prompt: what the cache had costs nothing.

    Neither does what was charged before: a sequence that lost its blocks, or came again after a failure, has paid.
    """
    end = min(sequence.num_computed_tokens + num_new_tokens, sequence.num_prompt_tokens)
    num_unpaid = end - max(sequence.num_computed_tokens, sequence.num_paid_tokens)
    if num_unpaid > 0:
        sequence.num_paid_tokens = end
        account = sequence.request.tenant
        account.served += num_unpaid / account.weight


def meter_outputs(sampled: Iterable[Sequence]) -> None:
    """Charges for the tokens that a step is to sample."""
    for account, num_tokens in Counter([sequence.request.tenant for sequence in sampled]).items():
        account.num_output_tokens += num_tokens
        account.served += OUTPUT_TOKEN_COST * num_tokens / account.weight
