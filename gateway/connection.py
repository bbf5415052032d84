"""A gateway's connection to its scheduler, which is made again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import grpc

from quire.errors import (
    DeadlineError,
    QuireError,
    RequestAbortedError,
    ServiceUnavailableError,
    StartupError,
    UnreachedError,
)
from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.rpc import errors_from_status, from_rpc_error, open_channel
from quire.v1 import monitor_pb2_grpc

logger = logging.getLogger(__name__)

# A live scheduler answers within milliseconds; this bounds how long a stopped one can hold a call.
CALL_TIMEOUT_S: Final = 30.0
# Between two calls of which the first found nobody.
RETRY_S: Final = 0.1
# From the loss of the scheduler until what runs is given up.
OUTAGE_LIMIT_S: Final = 120.0

# What a call raises where the scheduler is not there, or goes: one that ends cancels its calls.
UNREACHED: Final = (UnreachedError, RequestAbortedError, DeadlineError)

_Outputs: TypeAlias = "grpc.aio.UnaryStreamCall[scheduler_pb2.StreamOutputsRequest, scheduler_pb2.StepOutputs]"


class SchedulerConnection:
    """One channel, and one output stream after the other.

    A scheduler that a new stream leads to knows nothing of what was submitted before: it is another one, or it has
    aborted all that the old stream was for. So requests are restored each time a stream opens.
    """

    def __init__(
        self,
        address: str,
        *,
        receive: Callable[[scheduler_pb2.StepOutputs], None],
        restore: Callable[[], Awaitable[None]],
        give_up: Callable[[QuireError], None],
        on_change: Callable[[], None],
    ) -> None:
        """Use `open` next.

        Args:
            address: host:port or unix:/path.
            receive: takes a message of the stream. If it raises, the stream is given up.
            restore: submits again what runs. Raises one of UNREACHED if the scheduler is lost meanwhile, and
                ServiceUnavailableError.
            give_up: ends what runs: no scheduler has come back for a long time, or none ever will.
            on_change: called whenever `is_open` has changed.
        """
        self.address = address
        self._channel = open_channel(address)
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)
        self.monitor = monitor_pb2_grpc.MonitorServiceStub(self._channel)
        # The same to every scheduler, which aborts what it still runs for an older stream.
        self.gateway_id = secrets.token_hex(8)
        # Of the first scheduler; others that follow serve the same.
        self.description = scheduler_pb2.DescribeResponse()
        # Counts the streams.
        self.epoch = 0
        self.has_stream = False
        self._receive, self._restore, self._give_up, self._on_change = receive, restore, give_up, on_change
        self._opened = asyncio.Event()
        self._fatal: asyncio.Future[QuireError] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._outage_timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests can be submitted: there is a stream, and what ran before it has been submitted again."""
        return self._opened.is_set() and not self._fatal.done()

    def is_on(self, epoch: int) -> bool:
        """Whether it still is the stream of that number."""
        return self.has_stream and self.epoch == epoch

    async def open(self, timeout: float) -> None:
        """Waits up to `timeout` seconds for the scheduler to be ready, and stays connected. Raises StartupError."""
        try:
            async with asyncio.timeout(timeout):
                outputs = await self._connect()
                self._task = asyncio.create_task(self._stay_connected(outputs), name="scheduler connection")
                await self.wait_open()
        except TimeoutError as error:
            message = f"the scheduler at {self.address} is not ready after {timeout:g} s"
            raise StartupError(message, field="scheduler") from error

    async def wait_open(self) -> None:
        """Waits until requests can be submitted. Raises the error that ended the connection for good."""
        await self._opened.wait()
        if self._fatal.done():
            raise self._fatal.result()

    async def wait_fatal(self) -> QuireError:
        """Waits for what ends the connection for good."""
        return await asyncio.shield(self._fatal)

    def refuse(self, error: QuireError) -> None:
        """Ends the connection for good, for all who wait for it or will; calls that run are not cancelled."""
        if not self._fatal.done():
            self._fatal.set_result(error)
            self._opened.set()
            self._on_change()

    async def close(self) -> None:
        """Closes the channel; the scheduler aborts what still runs."""
        self._stop_outage_timer()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    async def _stay_connected(self, outputs: _Outputs) -> None:
        try:
            while True:
                reason = await self._serve(outputs)
                logger.warning("the connection to the scheduler is lost: %s", reason)
                self._start_outage_timer(reason)
                # A scheduler that is there, and ends every stream, is not asked without a pause.
                await asyncio.sleep(RETRY_S)
                outputs = await self._connect()
                logger.info("the scheduler is back")
        except StartupError as error:
            self.end(error)
        except Exception as error:  # whatever it is, nobody may wait for ever
            logger.exception("the connection to the scheduler failed")
            self.end(QuireError(f"the connection to the scheduler failed: {error}"))

    def end(self, error: QuireError) -> None:
        """Ends the connection for good, and with it what runs."""
        self._stop_outage_timer()
        self.refuse(error)
        self._give_up(error)

    async def _connect(self) -> _Outputs:
        """Tries until there is a stream. Raises StartupError where that is no use."""
        while True:
            try:
                with errors_from_status("the scheduler"):
                    request = scheduler_pb2.DescribeRequest()
                    description = await self.stub.Describe(request, wait_for_ready=True, timeout=CALL_TIMEOUT_S)
                    if self.epoch:
                        _check_same_model(self.description, description)
                    else:
                        self.description = description
                    return await self._open_stream()
            except (ServiceUnavailableError, *UNREACHED) as error:
                # It may listen before its executors are ready, or restart meanwhile.
                logger.debug("the scheduler is not ready: %s", error.message)
            except QuireError as error:
                if isinstance(error, StartupError) or not self.epoch:
                    raise StartupError(f"the scheduler at {self.address}: {error.message}") from error
                logger.warning("the scheduler cannot be asked what it serves: %s", error.message)
            await asyncio.sleep(RETRY_S)

    async def _open_stream(self) -> _Outputs:
        outputs = self.stub.StreamOutputs(scheduler_pb2.StreamOutputsRequest(gateway_id=self.gateway_id))
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                # The scheduler sends its metadata once it knows the gateway; only then may requests be submitted.
                await outputs.initial_metadata()
                if outputs.done():
                    await outputs.read()  # raises why
        except TimeoutError as error:
            outputs.cancel()
            raise DeadlineError("the scheduler does not answer") from error
        except BaseException:
            outputs.cancel()
            raise
        return outputs

    async def _serve(self, outputs: _Outputs) -> str:
        """The life of a stream; returns why it ended. What it gives is read while requests are restored."""
        self.epoch += 1
        self.has_stream = True
        reading = asyncio.create_task(self._read(outputs))
        restoring = asyncio.ensure_future(self._restore())
        try:
            await asyncio.wait((reading, restoring), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                restoring.result()
                self._stop_outage_timer()
                self._opened.set()
                self._on_change()
            return await reading
        except (ServiceUnavailableError, *UNREACHED) as error:
            return error.message
        finally:
            self.has_stream = False
            if not self._fatal.done():
                self._opened.clear()
            self._on_change()
            reading.cancel()
            restoring.cancel()
            await asyncio.gather(reading, restoring, return_exceptions=True)
            outputs.cancel()

    async def _read(self, outputs: _Outputs) -> str:
        try:
            async for message in outputs:
                self._receive(message)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).message
        except Exception as error:  # it would come with the next message too
            logger.exception("the scheduler sent a malformed message")
            return f"it sent a malformed message: {error}"
        return "it closed the output stream"

    def _start_outage_timer(self, reason: str) -> None:
        if self._outage_timer is None:
            self._outage_timer = asyncio.get_running_loop().call_later(OUTAGE_LIMIT_S, self._give_up_running, reason)

    def _stop_outage_timer(self) -> None:
        if self._outage_timer is not None:
            self._outage_timer.cancel()
            self._outage_timer = None

    def _give_up_running(self, reason: str) -> None:
        self._outage_timer = None
        message = f"the scheduler is lost ({reason}) and has not come back for {OUTAGE_LIMIT_S:g} s"
        self._give_up(ServiceUnavailableError(message))


def _check_same_model(known: scheduler_pb2.DescribeResponse, found: scheduler_pb2.DescribeResponse) -> None:
    """Raises StartupError if requests of the one scheduler would not go on alike at the other."""
    if _identity(known) != _identity(found):
        raise StartupError(f"it came back with another model ({found.model}, before: {known.model})")


def _identity(description: scheduler_pb2.DescribeResponse) -> tuple[set[bytes], int, int]:
    fingerprints = {executor.fingerprint for executor in description.executors}
    return fingerprints, description.vocab_size, description.max_model_len
