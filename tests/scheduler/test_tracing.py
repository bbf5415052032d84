"""Spans of the scheduler and its executors: what happened to a sequence, in order, and when."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from support.scheduling import Bench, Submitted

from quire.internal.v1 import executor_pb2
from quire.scheduler.step_loop import StepRecord
from quire.scheduler.step_plan import StepPlan
from quire.scheduler.step_times import StepTimes
from quire.scheduler.tracing import SchedulerTracing
from quire.v1 import generate_pb2

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SECOND = 10**9


class TracedBench(Bench):
    """A bench in which a step is planned, begins, ends and is received at times of its own."""

    def __init__(self, *, num_lanes: int = 1, **settings: Any) -> None:
        super().__init__(num_lanes=num_lanes, **settings)
        self.exporter = InMemorySpanExporter()
        self.now_ns = 1000 * SECOND
        tracers = []
        for name in ("scheduler", *(f"executor-{lane}" for lane in range(num_lanes))):
            provider = TracerProvider(resource=Resource({"service.instance.id": name}), shutdown_on_exit=False)
            provider.add_span_processor(SimpleSpanProcessor(self.exporter))
            tracers.append(provider.get_tracer("test"))
        self.tracing = SchedulerTracing(self.scheduler, tracers[0], tracers[1:])

    def tick(self) -> int:
        """The time; a millisecond has passed."""
        self.now_ns += 10**6
        return self.now_ns

    def trace(self, entry: Submitted) -> Submitted:
        """Has a request traced that was just submitted."""
        entry.request.trace_parent = f"00-{TRACE:032x}-{PARENT:016x}-01"
        entry.request.submitted_ns = self.tick()
        self.tracing.begin(entry.request)
        return entry

    def plan(self, lane: int = 0) -> StepPlan | None:
        plan = super().plan(lane)
        if plan is not None:
            self.tracing.planned(plan, self.tick())
        return plan

    def deliver(self, lane: int = 0) -> None:
        plan, result = self.lanes[lane].computed[0]
        result.started_ns, result.finished_ns = self.tick(), self.tick()
        record = StepRecord(plan.step, lane, 0, 0, result.started_ns - 1, self.tick())
        before = self.scheduler.update_from_output

        def update(plan: StepPlan, result: executor_pb2.StepResult) -> Any:
            events = before(plan, result)
            self.tracing.computed(plan, record, result, events)
            return events

        self.scheduler.update_from_output = update  # type: ignore[method-assign]
        try:
            super().deliver(lane)
        finally:
            self.scheduler.update_from_output = before  # type: ignore[method-assign]

    @property
    def spans(self) -> list[ReadableSpan]:
        """All so far, by their begin; of those that begin together the longest first."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: (span.start_time, -(span.end_time or 0)))

    def story(self, index: int | None = None) -> list[str]:
        """The scheduler's spans of a sequence, with their events."""
        return [
            " ".join([span.name, *(event.name for event in span.events)])
            for span in self.spans
            if span.resource.attributes["service.instance.id"] == "scheduler"
            and index in (None, (span.attributes or {})["quire.sequence_index"])
        ]

    def check(self) -> None:
        """Nothing is traced any more, all spans are of the one trace, and each lies in its parent."""
        assert self.tracing.is_idle
        by_id = {span.context.span_id: span for span in self.spans}
        for span in self.spans:
            assert span.parent is not None
            assert span.context.trace_id == TRACE
            if span.parent.span_id != PARENT:
                parent = by_id[span.parent.span_id]
                assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time


def test_a_request_has_three_phases_and_its_executor_one_span_for_each_chunk():
    bench = TracedBench(max_num_batched_tokens=8)
    bench.trace(bench.submit(list(range(20)), max_tokens=5))
    bench.drain()
    bench.check()
    assert bench.story() == ["queue", "prefill", "decode"]
    chunks = [span.attributes for span in bench.spans if span.name == "compute prefill"]
    assert [chunk["quire.num_tokens"] for chunk in chunks] == [8, 8, 4]
    assert [chunk["quire.start_position"] for chunk in chunks] == [0, 8, 16]
    (decode,) = [span.attributes for span in bench.spans if span.name == "compute decode"]
    assert decode["quire.num_steps"] == decode["quire.num_tokens"] == 4


def test_a_request_that_is_not_traced_leaves_nothing_behind():
    bench = TracedBench()
    bench.submit([1, 2, 3])
    bench.drain()
    assert bench.tracing.is_idle
    assert not bench.spans


def test_one_token_needs_no_decode():
    bench = TracedBench()
    bench.trace(bench.submit([1, 2, 3], max_tokens=1))
    bench.drain()
    bench.check()
    assert bench.story() == ["queue", "prefill"]


def test_each_continuation_has_its_own():
    bench = TracedBench()
    bench.trace(bench.submit([1, 2, 3, 4, 5], n=3, max_tokens=4))
    bench.drain()
    bench.check()
    for index in range(3):
        assert bench.story(index) == ["queue", "prefill", "decode"]


def test_what_was_cached_is_no_part_of_the_prefill():
    bench = TracedBench()
    bench.submit(list(range(12)))
    bench.drain()
    bench.trace(bench.submit(list(range(12))))
    bench.drain()
    bench.check()
    (prefill,) = [span.attributes for span in bench.spans if span.name == "prefill"]
    assert prefill["quire.num_cached_tokens"] == 8
    assert prefill["quire.num_prompt_tokens"] == 12


def test_a_preemption_is_an_event_and_begins_again():
    bench = TracedBench(num_blocks=12)
    for first in (0, 100):
        bench.trace(bench.submit([first + i for i in range(16)], max_tokens=16))
    bench.drain()
    bench.check()
    assert bench.scheduler.num_preemptions > 0
    stories = [span.attributes["gen_ai.request.id"] for span in bench.spans if span.name == "queue"]
    assert stories.count("request-0") == 1
    assert stories.count("request-1") == 1 + bench.scheduler.num_preemptions
    told = [story for story in bench.story() if "preempted" in story]
    assert len(told) == bench.scheduler.num_preemptions


def test_an_executor_that_is_lost_is_an_event_and_the_request_begins_again_elsewhere():
    bench = TracedBench(num_lanes=2)
    entry = bench.trace(bench.submit([1, 2, 3], max_tokens=8))
    for _ in range(3):
        bench.step(0)
    events = bench.lose(0)
    bench.tracing.fail(events.failed, bench.tick())
    bench.tracing.look("executor lost: gone", bench.tick())
    bench.drain()
    bench.check()
    assert bench.story() == ["queue", "prefill", "decode executor lost: gone", "queue", "prefill", "decode"]
    executors = [
        span.resource.attributes["service.instance.id"] for span in bench.spans if span.name.startswith("compute")
    ]
    assert executors == ["executor-0", "executor-0", "executor-1", "executor-1"]
    assert entry.outputs[0] == entry.truth(0)


def test_a_request_that_costs_too_many_executors_ends_with_an_error():
    bench = TracedBench()
    entry = bench.trace(bench.submit([1, 2, 3], max_tokens=8))
    while entry.failure is None:
        bench.plan()
        events = bench.lose(0)
        bench.tracing.fail(events.failed, bench.tick())
        bench.tracing.look("executor lost", bench.tick())
        bench.scheduler.regain_lane(0)
    bench.check()
    assert bench.spans[-1].status.status_code is StatusCode.ERROR


def test_an_abort_and_a_pause():
    bench = TracedBench()
    entry = bench.trace(bench.submit([1, 2, 3], max_tokens=30))
    for _ in range(3):
        bench.step()
    bench.scheduler.pause(entry.request.key)
    bench.tracing.look("paused", bench.tick())
    bench.scheduler.resume(entry.request.key)
    for _ in range(3):
        bench.step()
    bench.scheduler.abort(entry.request.key)
    bench.tracing.look("", bench.tick())
    bench.check()
    assert bench.story() == ["queue", "prefill", "decode paused", "queue", "prefill", "decode aborted"]


def test_a_request_that_never_ran():
    bench = TracedBench()
    entry = bench.trace(bench.submit([1, 2, 3]))
    bench.scheduler.abort(entry.request.key)
    bench.tracing.look("", bench.tick())
    bench.check()
    assert bench.story() == ["queue aborted"]


def test_an_embedding_ends_with_its_prefill():
    bench = TracedBench(max_num_batched_tokens=4)
    bench.trace(bench.submit([1, 2, 3, 4, 5, 6], pooling=generate_pb2.POOLING_TYPE_LAST))
    bench.drain()
    bench.check()
    assert bench.story() == ["queue", "prefill"]
    assert [span.name for span in bench.spans].count("compute prefill") == 2


def test_a_beam_search_is_told_by_its_first_beam():
    bench = TracedBench()
    bench.trace(bench.submit_beams([1, 2, 3, 4, 5], 3, max_tokens=6))
    bench.drain()
    bench.check()
    assert bench.story() == ["queue", "prefill", "decode"]


def test_times_of_a_host_with_another_clock_are_not_believed():
    sent, received = 50 * SECOND, 53 * SECOND
    record = StepRecord(1, 0, 0, 0, sent, received)

    def times(started: int, finished: int) -> StepTimes:
        return StepTimes.of(record, executor_pb2.StepResult(started_ns=started, finished_ns=finished))

    assert times(51 * SECOND, 52 * SECOND) == StepTimes(51 * SECOND, 52 * SECOND)
    assert times(7001 * SECOND, 7002 * SECOND) == StepTimes(52 * SECOND, 53 * SECOND)
    assert times(1 * SECOND, 2 * SECOND) == StepTimes(52 * SECOND, 53 * SECOND)
