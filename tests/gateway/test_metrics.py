"""What a gateway counts of requests, and that it is reported once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message

from quire.errors import QuireError, ServiceUnavailableError, UnreachedError
from quire.gateway.metrics import RequestMetrics
from quire.gateway.metrics_report import MetricsReporter
from quire.gateway.request_record import RecordKeeper, RequestRecord
from quire.gateway.tenants import ANONYMOUS, Tenant
from quire.internal.v1 import metrics_pb2
from quire.scheduler.metrics import MetricStore

MAX_MODEL_LEN = 64


def record(tenant: Tenant = ANONYMOUS, **given: Any) -> RequestRecord:
    fields = {"num_prompt_tokens": 7, "num_sequences": 1, "max_tokens": 10, "arrived_s": 100.0} | given
    return RequestRecord("id", tenant, **fields)


def answered(counts: RequestMetrics, lengths: list[int], reasons: list[Any], **given: Any) -> None:
    """A request whose sequences get one token each every second, from second 102 on; its first step was at 101."""
    entry = record(num_sequences=len(lengths), submitted_s=100.5, queued_s=0.5, num_cached_tokens=4, **given)
    for step in range(max(lengths)):
        entry.first_token_s = entry.first_token_s or 102.0
        entry.last_token_s = 102.0 + step
        counts.on_tokens(entry, sum(length > step for length in lengths), 1.0 if step else None)
    entry.ended_s = 110.0
    entry.finish_reasons, entry.output_lengths = reasons, lengths
    counts.on_end(entry)


def sums(counts: RequestMetrics) -> tuple[dict[tuple[str, ...], float], dict[str, tuple[int, float]]]:
    """Counters by name and labels; count and sum of histograms."""
    values = counts.take() or metrics_pb2.MetricValues()
    numbers = {(number.name, *number.labels): number.value for number in values.numbers}
    return numbers, {entry.name: (sum(entry.counts), entry.sum) for entry in values.histograms}


def test_an_answered_request():
    counts = RequestMetrics(MAX_MODEL_LEN)
    answered(counts, [4], ["length"])
    assert sums(counts) == (
        {
            ("prompt_tokens",): 7,
            ("prompt_tokens_cached",): 4,
            ("prompt_tokens_by_source", "local_cache_hit"): 4,
            ("prompt_tokens_by_source", "local_compute"): 3,
            ("generation_tokens",): 4,
            ("request_success", "length"): 1,
        },
        {
            "time_to_first_token_seconds": (1, 2.0),
            "inter_token_latency_seconds": (3, 3.0),
            "request_prompt_tokens": (1, 7),
            "request_prefill_kv_computed_tokens": (1, 3),
            "request_generation_tokens": (1, 4),
            "request_max_num_generation_tokens": (1, 4),
            "request_params_n": (1, 1),
            "request_params_max_tokens": (1, 10),
            "e2e_request_latency_seconds": (1, 10.0),
            "request_queue_time_seconds": (1, 0.5),
            "request_prefill_time_seconds": (1, 1.0),
            "request_inference_time_seconds": (1, 4.0),
            "request_decode_time_seconds": (1, 3.0),
            "request_time_per_output_token_seconds": (1, 1.0),
        },
    )
    assert counts.take() is None, "it is taken once"


def test_continuations_count_one_by_one():
    counts = RequestMetrics(MAX_MODEL_LEN)
    answered(counts, [4, 2], ["stop", "length"])
    numbers, histograms = sums(counts)
    assert numbers["prompt_tokens",] == 7
    assert numbers["generation_tokens",] == 6
    assert (numbers["request_success", "stop"], numbers["request_success", "length"]) == (1, 1)
    assert histograms["request_generation_tokens"] == (2, 6)
    assert histograms["request_max_num_generation_tokens"] == (1, 4)
    assert histograms["request_params_n"] == (1, 2)


@pytest.mark.parametrize(
    ("reasons", "error", "expected"),
    [
        (["stop", "abort"], None, {"stop": 1, "abort": 1}),
        (["stop"], QuireError("broken"), {"stop": 1, "error": 1}),
        ([], QuireError("broken"), {"error": 2}),
    ],
)
def test_what_was_not_answered_has_no_durations(reasons, error, expected):
    counts = RequestMetrics(MAX_MODEL_LEN)
    answered(counts, [2, 3], reasons, error=error)
    numbers, histograms = sums(counts)
    assert {labels[0]: value for (name, *labels), value in numbers.items() if name == "request_success"} == expected
    assert histograms.keys() == {"time_to_first_token_seconds", "inter_token_latency_seconds"}


def test_an_embedding_has_no_tokens():
    counts = RequestMetrics(MAX_MODEL_LEN)
    entry = record(max_tokens=0, submitted_s=100.5, queued_s=0.5, ended_s=103.0, finish_reasons=["stop"])
    counts.on_end(entry)
    numbers, histograms = sums(counts)
    assert numbers == {
        ("prompt_tokens",): 7,
        ("prompt_tokens_by_source", "local_compute"): 7,
        ("request_success", "stop"): 1,
    }
    assert histograms["request_inference_time_seconds"] == (1, 2.0)
    assert not histograms.keys() & {"request_generation_tokens", "request_params_n", "time_to_first_token_seconds"}


def test_a_value_on_a_bound_is_below_it():
    counts = RequestMetrics(MAX_MODEL_LEN)
    counts.on_tokens(record(), 1, 0.025)
    values = counts.take()
    assert values is not None
    assert list(values.histograms[0].counts)[:3] == [0, 1, 0]


def test_tenants_are_counted_by_their_names():
    counts = RequestMetrics(MAX_MODEL_LEN)
    answered(counts, [3], ["stop"], tenant=Tenant("a"))
    answered(counts, [2], ["stop"], tenant=Tenant("b"))
    answered(counts, [2], ["stop"])
    numbers, _ = sums(counts)
    assert numbers["generation_tokens",] == 7
    assert (numbers["tenant_generation_tokens", "a"], numbers["tenant_generation_tokens", "b"]) == (3, 2)
    assert numbers["tenant_prompt_tokens", "a"] == 7
    assert numbers["tenant_request_success", "a", "stop"] == 1
    assert not any("" in labels for labels in numbers), "nobody is not a tenant"


def test_the_record_s_keeper_feeds_it():
    """The observer's interface, as requests use it."""
    counts = RequestMetrics(MAX_MODEL_LEN)
    keeper = RecordKeeper(record(), [counts])
    keeper.submitted()
    keeper.started(4, 0.0)
    keeper.tokens(1)
    keeper.tokens(2)
    keeper.end(["stop"], [3])
    keeper.end(["abort"])
    numbers, histograms = sums(counts)
    assert numbers["generation_tokens",] == 3
    assert numbers["request_success", "stop"] == 1
    assert ("request_success", "abort") not in numbers
    assert histograms["inter_token_latency_seconds"][0] == 1


class Scheduler:
    """The calls, without a network: each may be lost on its way there, or its answer on the way back."""

    def __init__(self) -> None:
        self.store = MetricStore(MAX_MODEL_LEN)
        self.losses: list[str] = []
        self.hangs = False

    async def call(self, report: metrics_pb2.ReportMetricsRequest | None) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        loss = self.losses.pop(0) if self.losses else ""
        if loss == "request":
            raise UnreachedError("nobody there")
        if report is not None:
            self.store.add(report)
        if loss == "answer":
            raise UnreachedError("it went away")

    async def ReportMetrics(self, request: metrics_pb2.ReportMetricsRequest) -> Message:  # noqa: N802
        await self.call(request)
        return metrics_pb2.ReportMetricsResponse()

    async def CollectMetrics(  # noqa: N802
        self, request: metrics_pb2.CollectMetricsRequest
    ) -> metrics_pb2.CollectMetricsResponse:
        await self.call(request.report if request.HasField("report") else None)
        return metrics_pb2.CollectMetricsResponse(values=self.store.values(with_tenants=request.with_tenants))


def reporter(scheduler: Scheduler, gateway_id: str = "a") -> MetricsReporter:
    client: Any = SimpleNamespace(stub=scheduler, gateway_id=gateway_id)
    return MetricsReporter(RequestMetrics(MAX_MODEL_LEN), client)


def generated(values: metrics_pb2.MetricValues) -> float:
    return next(number.value for number in values.numbers if number.name == "generation_tokens")


@pytest.mark.parametrize("loss", ["request", "answer"])
async def test_what_is_lost_on_the_way_comes_again_and_counts_once(loss):
    scheduler = Scheduler()
    gateway = reporter(scheduler)
    gateway.counts.on_tokens(record(), 5, 1.0)
    scheduler.losses = [loss]
    with pytest.raises(ServiceUnavailableError):
        await gateway.report()
    gateway.counts.on_tokens(record(), 3, 1.0)
    await gateway.report()
    assert scheduler.store.counter("generation_tokens") == 8
    assert scheduler.store.histogram("inter_token_latency_seconds").count == 2


@pytest.mark.parametrize("loss", ["request", "answer"])
async def test_a_scrape_has_all_that_its_gateway_counted(loss):
    scheduler = Scheduler()
    gateway = reporter(scheduler)
    gateway.counts.on_tokens(record(), 5, 1.0)
    scheduler.losses = [loss]
    with pytest.raises(ServiceUnavailableError):
        await gateway.collect(with_tenants=False)
    gateway.counts.on_tokens(record(), 3, 1.0)
    assert generated(await gateway.collect(with_tenants=False)) == 8
    assert generated(await gateway.collect(with_tenants=False)) == 8, "nothing new was counted"


async def test_after_a_restart_of_the_scheduler_gateways_go_on():
    scheduler = Scheduler()
    gateways = [reporter(scheduler, name) for name in "ab"]
    for gateway in gateways:
        gateway.counts.on_tokens(record(), 5, 1.0)
        await gateway.report()
    assert scheduler.store.counter("generation_tokens") == 10
    # The answer to one is lost with the scheduler that has counted it.
    gateways[0].counts.on_tokens(record(), 7, 1.0)
    scheduler.losses = ["answer"]
    with pytest.raises(ServiceUnavailableError):
        await gateways[0].report()
    scheduler.store = MetricStore(MAX_MODEL_LEN)
    for gateway in gateways:
        gateway.counts.on_tokens(record(), 1, 1.0)
        await gateway.report()
    assert scheduler.store.counter("generation_tokens") == 7 + 2, "all that the old one did not acknowledge"


async def test_any_gateway_answers_for_all():
    scheduler = Scheduler()
    gateways = [reporter(scheduler, name) for name in "abc"]
    for number, gateway in enumerate(gateways):
        gateway.counts.on_tokens(record(), 10**number, 1.0)
        await gateway.report()
    assert {generated(await gateway.collect(with_tenants=False)) for gateway in gateways} == {111}


async def test_scrapes_at_the_same_time_count_once():
    scheduler = Scheduler()
    gateway = reporter(scheduler)
    gateway.counts.on_tokens(record(), 5, 1.0)
    answers = await asyncio.gather(*(gateway.collect(with_tenants=False) for _ in range(3)), gateway.report())
    assert [generated(answer) for answer in answers[:3]] == [5, 5, 5]


async def test_a_scheduler_that_hangs_is_not_waited_for():
    scheduler = Scheduler()
    scheduler.hangs = True
    gateway = reporter(scheduler)
    with pytest.raises(ServiceUnavailableError, match=r"has not answered in 0\.01 s"):
        await gateway.collect(with_tenants=False, timeout=0.01)
    scheduler.hangs = False
    gateway.counts.on_tokens(record(), 5, 1.0)
    assert generated(await gateway.collect(with_tenants=False)) == 5


async def test_what_is_left_is_reported_at_the_end():
    scheduler = Scheduler()
    gateway = reporter(scheduler)
    gateway.start()
    gateway.counts.on_tokens(record(), 5, 1.0)
    await gateway.close()
    assert scheduler.store.counter("generation_tokens") == 5
    gateway.counts.on_tokens(record(), 5, 1.0)
    scheduler.losses = ["request"]
    await gateway.close()  # says that they are lost, and ends
