"""Fair queueing by virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).

Each tenant has a counter of what it was served: a prompt's tokens cost 1, an output's 2, divided by its weight. The one
with the least counter goes next, so tenants that always have work get tokens in proportion to their weights. A tenant
that begins to wait does not bring credit along from the time when it asked for nothing: its counter is lifted to the
least of those that wait (or, if nobody does, to that of the last who did). Counters only grow, so nobody starves.

The paper lets running requests be; then a newcomer waits until one of a flood's long answers ends. Here it need not:

- Tokens and blocks of a step go to sequences by their tenants' counters, so a flood's prefill waits for a newcomer's.
- While the tenant that goes next is below its share of the slots (by weight, rounded down), it gets one from a tenant
  above, whose latest sequence is preempted: that keeps its tokens and mostly finds its blocks in the prefix cache.
  Since shares do not overlap, two tenants never take a slot from each other in turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from quire.scheduler.request_queue import RequestQueue, insert_by_arrival, take_out
from quire.scheduler.sequence import Sequence
from quire.scheduler.tenants import TenantAccount, TenantAccounts


class FairQueue(RequestQueue):
    """By what tenants were served; within a tenant by arrival."""

    reorders = True

    def __init__(self, accounts: TenantAccounts) -> None:
        super().__init__()
        self._accounts = accounts
        accounts.are_metered = True
        # Of tenants that wait; the last of a list is the first to run.
        self._by_tenant: dict[TenantAccount, list[Sequence]] = {}
        self._last_to_leave: TenantAccount | None = None

    def head(self) -> Sequence | None:
        if not self._by_tenant:
            return None
        first = min(self._by_tenant, key=lambda tenant: (*_urgency(tenant), self._by_tenant[tenant][-1].order))
        return self._by_tenant[first][-1]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._by_tenant.get(sequence.request.tenant, ())

    def rank(self, sequence: Sequence) -> tuple[float, int]:
        return sequence.request.tenant.served, sequence.order

    def goes_before(self, running: Sequence) -> bool:
        if running.num_uncomputed_tokens <= 1 or running.beams is not None or (head := self.head()) is None:
            return False
        tenant, other = head.request.tenant, running.request.tenant
        return tenant is not other and tenant.served <= other.served

    def displaced(self, running: list[list[Sequence]], num_slots: int, *, lacks_blocks: bool) -> list[Sequence]:
        head = self.head()
        if head is None or len(self._accounts.active) < 2:
            return []
        num_running = sum(map(len, running))
        if lacks_blocks:  # they hold fewer sequences than there are slots
            num_slots = min(num_slots, num_running + head.width - 1)
        num_missing = head.width - (num_slots - num_running)
        shares = self._shares(num_slots)
        tenant = head.request.tenant
        if num_missing <= 0 or tenant.num_running + head.width > shares[tenant]:
            return []
        return self._latest_above(shares, running, num_missing, head)

    def _shares(self, num_slots: int) -> Mapping[TenantAccount, int]:
        """The slots that are each active tenant's; those that rounding leaves over are nobody's."""
        active = self._accounts.active
        total = sum([tenant.weight for tenant in active])
        return {tenant: int(num_slots * tenant.weight / total) for tenant in active}

    def _latest_above(
        self, shares: Mapping[TenantAccount, int], running: list[list[Sequence]], num_slots: int, head: Sequence
    ) -> list[Sequence]:
        """Of tenants above their shares, the latest sequences, from the most served tenant on, in so many slots.

        Only of tenants that the head goes before even then: else they would take the slots back.
        """
        victims: list[Sequence] = []
        first = _urgency(head.request.tenant)
        excess = {tenant: tenant.num_running - share for tenant, share in shares.items()}
        for sequence in sorted(chain.from_iterable(running), key=self.rank, reverse=True):
            tenant = sequence.request.tenant
            # Beams go together, with their leader.
            leads = sequence.beams is None or sequence is sequence.beams.leader
            if not leads or num_slots <= 0 or excess[tenant] < sequence.width:
                continue
            if _urgency(tenant, shares[tenant] + excess[tenant] - sequence.width) > first:
                victims.append(sequence)
                excess[tenant] -= sequence.width
                num_slots -= sequence.width
        return victims

    def _insert(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        if tenant not in self._by_tenant:
            self._lift(tenant)
            self._by_tenant[tenant] = []
        insert_by_arrival(self._by_tenant[tenant], sequence)

    def _take(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        sequences = self._by_tenant[tenant]
        take_out(sequences, sequence)
        if not sequences:
            del self._by_tenant[tenant]
            self._last_to_leave = tenant

    def _lift(self, tenant: TenantAccount) -> None:
        waiting = [other.served for other in self._by_tenant]
        if not waiting and self._last_to_leave is not None:
            waiting = [self._last_to_leave.served]
        tenant.served = max([tenant.served, min(waiting, default=0.0)])


def _urgency(tenant: TenantAccount, num_running: int | None = None) -> tuple[float, float]:
    """The least goes first: of tenants that were served alike, the one that has (or would have) least running."""
    return tenant.served, (tenant.num_running if num_running is None else num_running) / tenant.weight
