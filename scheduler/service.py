"""SchedulerService: from messages to the scheduler's own types and back."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from quire.columns import pack_u32, unpack_u32
from quire.errors import InvalidRequestError, UnreachedError
from quire.internal.v1 import metrics_pb2, scheduler_pb2, scheduler_pb2_grpc
from quire.rpc import errors_to_status
from quire.scheduler.admission import Admission
from quire.scheduler.kv_state import describe_kv_cache
from quire.scheduler.lane import Lane
from quire.scheduler.metrics import MetricStore
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.prefix_cache import extra_key_digest
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, RequestKey
from quire.scheduler.server_metrics import server_metrics
from quire.scheduler.step_loop import Work

if TYPE_CHECKING:
    from quire.scheduler.tracing import SchedulerTracing  # imports OpenTelemetry

logger = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class SchedulerService(scheduler_pb2_grpc.SchedulerServiceServicer):
    """What gateways call."""

    def __init__(
        self,
        description: scheduler_pb2.DescribeResponse,
        scheduler: Scheduler,
        admission: Admission,
        router: OutputRouter,
        work: Work,
        lanes: list[Lane],
        metrics: MetricStore,
        tracing: SchedulerTracing | None = None,
    ) -> None:
        self._description = description
        self._scheduler = scheduler
        self._admission = admission
        self._router = router
        self._work = work
        self._lanes = lanes
        self._tracing = tracing
        self._metrics = metrics

    async def Describe(  # noqa: N802
        self, request: scheduler_pb2.DescribeRequest, context: Context
    ) -> scheduler_pb2.DescribeResponse:
        description = scheduler_pb2.DescribeResponse()
        description.CopyFrom(self._description)
        for executor, lane in zip(description.executors, self._lanes, strict=True):
            executor.CopyFrom(lane.description)
        return description

    async def Submit(  # noqa: N802
        self, request: scheduler_pb2.SubmitRequest, context: Context
    ) -> scheduler_pb2.SubmitResponse:
        async with errors_to_status(context):
            if not self._router.is_open(request.gateway_id):
                raise UnreachedError(f"gateway {request.gateway_id} has no output stream")
            self._end_older_attempt(request)
            prompt = _token_ids(request.prompt_token_ids, "prompt_token_ids")
            outputs = {state.index: _token_ids(state.output_token_ids, "sequences") for state in request.sequences}
            if not request.attempt:
                self._admission.admit(request.tenant, len(prompt), is_first=not request.prompt_index)
            added = self._to_request(request, len(prompt))
            self._scheduler.add_request(added, prompt, outputs)
            if self._tracing is not None:
                self._tracing.begin(added)
            self._work.notify()
        return scheduler_pb2.SubmitResponse()

    async def Abort(  # noqa: N802
        self, request: scheduler_pb2.AbortRequest, context: Context
    ) -> scheduler_pb2.AbortResponse:
        reason = scheduler_pb2.AbortReason.Name(request.reason)
        logger.debug("gateway %s aborts request %d: %s", request.gateway_id, request.request_key, reason)
        self._scheduler.abort(RequestKey(request.gateway_id, request.request_key), request.sequence_indices)
        self._changed()
        return scheduler_pb2.AbortResponse()

    async def SetFlow(  # noqa: N802
        self, request: scheduler_pb2.SetFlowRequest, context: Context
    ) -> scheduler_pb2.SetFlowResponse:
        key = RequestKey(request.gateway_id, request.request_key)
        if request.paused:
            self._scheduler.pause(key)
        else:
            self._scheduler.resume(key)
        self._changed("paused")
        return scheduler_pb2.SetFlowResponse()

    async def StreamOutputs(  # noqa: N802
        self, request: scheduler_pb2.StreamOutputsRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.StepOutputs]:
        if self._router.is_open(request.gateway_id):
            # Its gateway gave up on the older stream, and submits again what it still wants.
            self._scheduler.abort_gateway(request.gateway_id)
            self._changed()
        outputs = self._router.open(request.gateway_id)
        try:
            # Tells the gateway that its stream is open, before it submits.
            await context.send_initial_metadata(())
            logger.info("gateway %s connected", request.gateway_id)
            while (message := await outputs.next_message()) is not None:
                yield message
        finally:
            if self._router.close(request.gateway_id, outputs):
                self._scheduler.abort_gateway(request.gateway_id)
                self._changed()
                logger.info("gateway %s disconnected", request.gateway_id)

    async def ReplaceExecutor(  # noqa: N802
        self, request: scheduler_pb2.ReplaceExecutorRequest, context: Context
    ) -> scheduler_pb2.ReplaceExecutorResponse:
        async with errors_to_status(context):
            if request.index >= len(self._lanes):
                raise InvalidRequestError(f"there are {len(self._lanes)} executors, from 0 on", field="index")
            if not request.address:
                raise InvalidRequestError("no address is given", field="address")
            await self._lanes[request.index].replace(request.address)
        return scheduler_pb2.ReplaceExecutorResponse()

    async def GetKvCacheState(  # noqa: N802
        self, request: scheduler_pb2.GetKvCacheStateRequest, context: Context
    ) -> scheduler_pb2.GetKvCacheStateResponse:
        return describe_kv_cache(self._scheduler, with_blocks=request.with_blocks)

    async def ListStepRecords(  # noqa: N802
        self, request: scheduler_pb2.ListStepRecordsRequest, context: Context
    ) -> scheduler_pb2.ListStepRecordsResponse:
        return scheduler_pb2.ListStepRecordsResponse(
            records=[
                scheduler_pb2.StepRecord(
                    step=record.step,
                    executor=record.executor,
                    num_prefill_tokens=record.num_prefill_tokens,
                    num_decode_tokens=record.num_decode_tokens,
                    plan_sent_ns=record.plan_sent_ns,
                    result_received_ns=record.result_received_ns,
                )
                for lane in self._lanes
                for record in lane.steps.records
            ]
        )

    async def ReportMetrics(  # noqa: N802
        self, request: metrics_pb2.ReportMetricsRequest, context: Context
    ) -> metrics_pb2.ReportMetricsResponse:
        self._metrics.add(request)
        return metrics_pb2.ReportMetricsResponse()

    async def CollectMetrics(  # noqa: N802
        self, request: metrics_pb2.CollectMetricsRequest, context: Context
    ) -> metrics_pb2.CollectMetricsResponse:
        if request.HasField("report"):
            self._metrics.add(request.report)
        values = server_metrics(self._metrics, self._scheduler, self._router, with_tenants=request.with_tenants)
        return metrics_pb2.CollectMetricsResponse(values=values)

    def _end_older_attempt(self, message: scheduler_pb2.SubmitRequest) -> None:
        """A gateway that has not heard of its submission submits again, and hears only of the latest attempt."""
        key = RequestKey(message.gateway_id, message.request_key)
        running = self._scheduler.requests.get(key)
        if running is not None and running.attempt < message.attempt:
            self._scheduler.abort(key)
            self._changed()

    def _changed(self, what: str = "") -> None:
        """Requests were ended, or `what` happened to some."""
        self._work.notify()
        if self._tracing is not None:
            self._tracing.look(what, time.monotonic_ns())

    def _to_request(self, message: scheduler_pb2.SubmitRequest, num_prompt_tokens: int) -> Request:
        return Request(
            key=RequestKey(message.gateway_id, message.request_key),
            request_id=message.request_id,
            attempt=message.attempt,
            submitted_ns=time.monotonic_ns(),
            trace_parent=message.trace_parent,
            params=message.sampling_params,
            eos_token_ids=frozenset(_token_ids(message.eos_token_ids, "eos_token_ids")),
            constraints=message.constraints,
            priority=message.priority,
            pooling=message.pooling,
            extra_key=self._extra_key(message, num_prompt_tokens),
            tenant=self._scheduler.tenants.of(message.tenant),
        )

    def _extra_key(self, message: scheduler_pb2.SubmitRequest, num_prompt_tokens: int) -> bytes:
        """What separates requests that may not share blocks: their tenants, their salts, and what their KV depends on.

        Two keys are equal only if all of these are, since each part but the last says how long it is.
        """
        model = self._description.executors[0]
        varies = model.HasField("length_independent_tokens") and num_prompt_tokens > model.length_independent_tokens
        if not (message.tenant.name or message.cache_salt or varies):
            return extra_key_digest(b"")
        name = message.tenant.name.encode()
        lengths = pack_u32([num_prompt_tokens if varies else 0, len(name)])
        return extra_key_digest(lengths + name + message.cache_salt)


def _token_ids(column: bytes, field: str) -> list[int]:
    try:
        return unpack_u32(column)
    except ValueError as error:
        raise InvalidRequestError(f"{field} is not a column of u32: {error}", field=field) from error
