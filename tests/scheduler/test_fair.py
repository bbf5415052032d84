"""Fair queueing: who runs first, who makes way, and that tokens follow the weights whatever arrives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.scheduling import Bench

from quire.scheduler.tenants import OUTPUT_TOKEN_COST, TenantAccount


def fair(**given) -> Bench:
    return Bench(policy="fair", prefix_caching=False, **given)


def account(bench: Bench, name: str) -> TenantAccount:
    return next(entry.request.tenant for entry in bench.submitted.values() if entry.request.tenant.name == name)


def prompt(number: int, length: int = 4) -> list[int]:
    return [number + 10] * length


def run(bench: Bench, num_steps: int) -> None:
    for _ in range(num_steps):
        bench.step()
        bench.scheduler.check_integrity()


def order_of_first_tokens(bench: Bench) -> list[str]:
    """Tenants by when their requests began, until nothing is left to do."""
    seen: list[str] = []
    begun = set()
    while (plan := bench.step()) is not None:
        for sequence in plan.sequences:
            if sequence.request.key not in begun:
                begun.add(sequence.request.key)
                seen.append(sequence.request.tenant.name)
    return seen


def test_the_least_served_tenant_goes_first_whoever_came_first() -> None:
    bench = fair(max_num_seqs=1)
    for number in range(4):
        bench.submit(prompt(number), max_tokens=1, tenant="flood")
    for number in range(4, 6):
        bench.submit(prompt(number), max_tokens=1, tenant="quiet")
    assert order_of_first_tokens(bench) == ["flood", "quiet", "flood", "quiet", "flood", "flood"]
    bench.check_idle()


def test_a_tenant_of_three_times_the_weight_runs_three_times_as_often() -> None:
    bench = fair(max_num_seqs=1)
    for number in range(8):
        bench.submit(prompt(number), max_tokens=1, tenant="small")
        bench.submit(prompt(number + 8), max_tokens=1, tenant="large", weight=3)
    order = order_of_first_tokens(bench)
    assert order[:8].count("large") == 6
    assert order[:4].count("large") == 3


def test_prompts_and_outputs_are_charged_at_their_costs() -> None:
    bench = fair()
    bench.submit(prompt(0, 6), max_tokens=5, tenant="a", weight=2)
    bench.drain(overlap=1)
    assert account(bench, "a").served == (6 + 5 * OUTPUT_TOKEN_COST) / 2
    assert account(bench, "a").num_output_tokens == 5


def test_what_the_prefix_cache_had_costs_nothing() -> None:
    bench = Bench(policy="fair", block_size=4)
    for _ in range(2):
        bench.submit(prompt(0, 9), max_tokens=1, tenant="a")
        bench.drain(overlap=1)
    assert account(bench, "a").served == 9 + 1 + 2 * OUTPUT_TOKEN_COST


def test_a_newcomer_gets_its_share_of_full_slots_at_once_and_no_more() -> None:
    bench = fair(max_num_seqs=4, num_blocks=200)
    flood = [bench.submit(prompt(number), max_tokens=30, tenant="flood") for number in range(8)]
    run(bench, 3)
    assert account(bench, "flood").num_running == 4
    newcomers = [bench.submit(prompt(number + 20), max_tokens=30, tenant="quiet") for number in range(4)]
    bench.step()
    assert account(bench, "quiet").num_running == 1
    run(bench, 3)
    assert account(bench, "quiet").num_running == 2
    assert bench.scheduler.num_preemptions == 2
    assert [bool(entry.sequences[0].blocks) for entry in flood] == [True] * 2 + [False] * 6, "the latest made way"
    run(bench, 20)
    assert (account(bench, "flood").num_running, account(bench, "quiet").num_running) == (2, 2)
    assert bench.scheduler.num_preemptions == 2, "nobody takes slots in turns"
    bench.drain()
    bench.check_idle()
    for entry in flood + newcomers:
        assert entry.outputs[0] == entry.truth(0), "preempted sequences kept their tokens"


def test_shares_of_slots_follow_the_weights() -> None:
    bench = fair(max_num_seqs=8, num_blocks=400)
    for number in range(16):
        bench.submit(prompt(number), max_tokens=40, tenant="flood", weight=3)
    run(bench, 2)
    for number in range(16):
        bench.submit(prompt(number + 20), max_tokens=40, tenant="quiet")
    run(bench, 10)
    assert (account(bench, "flood").num_running, account(bench, "quiet").num_running) == (6, 2)


def test_one_slot_is_not_taken_back_and_forth() -> None:
    bench = fair(max_num_seqs=1)
    bench.submit(prompt(0), max_tokens=20, tenant="a")
    run(bench, 2)
    bench.submit(prompt(1), max_tokens=20, tenant="b")
    bench.drain()
    assert bench.scheduler.num_preemptions == 0
    bench.check_idle()


def test_a_full_pool_makes_way_for_a_newcomer() -> None:
    """Slots are left, blocks are not."""
    bench = fair(num_blocks=16, block_size=4, max_num_seqs=16, max_model_len=64)
    for number in range(4):
        bench.submit(prompt(number, 15), max_tokens=40, tenant="flood")
    run(bench, 2)
    newcomer = bench.submit(prompt(9, 15), max_tokens=2, tenant="quiet")
    run(bench, 4)
    assert newcomer.outputs[0], "it did not wait until one of the flood's had ended"
    bench.drain()
    bench.check_idle()


def test_a_head_that_waits_for_blocks_keeps_its_place() -> None:
    bench = fair(num_blocks=10, block_size=4, max_num_seqs=4, max_model_len=40)
    for number in range(2):
        bench.submit(prompt(number, 30), max_tokens=9, tenant="flood")
    run(bench, 1)
    newcomer = bench.submit(prompt(9, 30), max_tokens=2, tenant="quiet")
    served = account(bench, "quiet").served
    run(bench, 6)
    assert account(bench, "flood").served > served == account(bench, "quiet").served
    while not newcomer.outputs[0]:
        bench.step()
    assert account(bench, "flood").num_waiting == 1, "it went before the flood's second one"
    bench.drain()
    bench.check_idle()


def test_a_newcomers_prefill_goes_before_the_rest_of_a_floods() -> None:
    bench = fair(num_blocks=200, max_num_batched_tokens=8, max_model_len=256)
    bench.submit(prompt(0, 200), max_tokens=2, tenant="flood")
    run(bench, 5)
    newcomer = bench.submit(prompt(1, 24), max_tokens=2, tenant="quiet")
    run(bench, 8)
    assert newcomer.outputs[0], "three steps of its own among as many of the flood's"
    fcfs = Bench(num_blocks=200, max_num_batched_tokens=8, max_model_len=256, prefix_caching=False)
    fcfs.submit(prompt(0, 200), max_tokens=2)
    run(fcfs, 5)
    late = fcfs.submit(prompt(1, 24), max_tokens=2)
    run(fcfs, 8)
    assert not late.outputs[0]


def test_credit_is_not_saved_while_a_tenant_asks_for_nothing() -> None:
    bench = fair(max_num_seqs=1)
    bench.submit(prompt(0), max_tokens=1, tenant="late")
    bench.drain()
    for number in range(40):
        bench.submit(prompt(number), max_tokens=4, tenant="busy")
    run(bench, 60)
    for number in range(20):
        bench.submit(prompt(number + 50), max_tokens=4, tenant="late")
    order = order_of_first_tokens(bench)
    assert abs(order[:10].count("late") - 5) <= 1


def test_a_resubmission_is_not_charged_for_its_prompt_again() -> None:
    bench = fair()
    bench.submit(prompt(0, 12), max_tokens=3, tenant="a", attempt=1)
    bench.drain(overlap=1)
    assert account(bench, "a").served == 3 * OUTPUT_TOKEN_COST


def test_what_is_computed_again_after_a_preemption_is_not_charged_again() -> None:
    bench = fair(max_num_seqs=2)
    bench.submit(prompt(0, 8), max_tokens=6, tenant="a")
    bench.submit(prompt(1, 8), max_tokens=6, tenant="a")
    run(bench, 3)
    bench.submit(prompt(2), max_tokens=2, tenant="b")
    bench.drain(overlap=1)
    assert bench.scheduler.num_preemptions == 1
    assert account(bench, "a").served == 2 * (8 + 6 * OUTPUT_TOKEN_COST)


LENGTHS = st.tuples(st.integers(1, 24), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(
    first=st.lists(LENGTHS, min_size=1, max_size=6),
    second=st.lists(LENGTHS, min_size=1, max_size=6),
    weight=st.sampled_from([1.0, 2.0, 0.25]),
    lead=st.integers(0, 30),
    max_num_seqs=st.sampled_from([1, 2, 5, 16]),
    budget=st.sampled_from([4, 16, 64]),
    num_blocks=st.sampled_from([10, 40, 200]),
    overlap=st.integers(1, 2),
)
def test_backlogged_tenants_are_served_by_their_weights(
    first, second, weight, lead, max_num_seqs, budget, num_blocks, overlap
) -> None:
    """The paper's bound (theorem 4.4 for its scheduler): counters of tenants that always have work stay together.

    A tenant can get ahead by what is admitted before the other may go: at most what all slots hold and a step computes.
    """
    bench = fair(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, num_blocks=num_blocks, block_size=4, max_model_len=40
    )
    lengths, weights, sent = {"a": first, "b": second}, {"a": 1.0, "b": weight}, {"a": 0, "b": 0}

    def fill(tenant: str) -> None:
        """Keeps the tenant backlogged: more waits than could run."""
        while sent[tenant] == 0 or account(bench, tenant).num_waiting < 2:
            length, max_tokens = lengths[tenant][sent[tenant] % len(lengths[tenant])]
            bench.submit(prompt(sent[tenant], length), max_tokens=max_tokens, tenant=tenant, weight=weights[tenant])
            sent[tenant] += 1

    def advance() -> None:
        while bench.in_flight(0) < overlap and bench.plan() is not None:
            pass
        if bench.lanes[0].sent:
            bench.compute()
        bench.deliver()

    for _ in range(lead):
        fill("a")
        advance()
    fill("a")
    fill("b")
    a, b = account(bench, "a"), account(bench, "b")
    start = a.served, b.served
    # What one tenant may run without the other: its slots' requests from begin to end, and the steps in flight.
    most = max(length + OUTPUT_TOKEN_COST * max_tokens for length, max_tokens in first + second)
    bound = (max_num_seqs * most + overlap * (budget + OUTPUT_TOKEN_COST * max_num_seqs)) * max(1, 1 / weight)
    for _ in range(120):
        fill("a")
        fill("b")
        advance()
        gained = a.served - start[0], b.served - start[1]
        assert abs(gained[0] - gained[1]) <= bound
    bench.scheduler.check_integrity()


@settings(max_examples=40, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 10), st.integers(0, 3)), max_size=40
    ),
    max_num_seqs=st.integers(1, 4),
    num_blocks=st.integers(10, 30),
)
def test_everything_ends_with_the_right_tokens(arrivals, max_num_seqs, num_blocks) -> None:
    bench = Bench(policy="fair", num_blocks=num_blocks, block_size=4, max_num_seqs=max_num_seqs, max_model_len=40)
    entries = []
    for number, (tenant, length, max_tokens, num_steps) in enumerate(arrivals):
        entries.append(bench.submit(prompt(number % 5, length), max_tokens=max_tokens, tenant=tenant))
        run(bench, num_steps)
    bench.drain()
    bench.check_idle()
    for entry in entries:
        assert entry.outputs[0] == entry.truth(0)
