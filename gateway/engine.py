"""The heart that REST, gRPC and the offline LLM class share: validates, submits, and gives deltas."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from functools import cached_property

from quire import __version__
from quire.columns import pack_u32
from quire.config import ChatOptions
from quire.errors import QuireError, ServiceUnavailableError
from quire.gateway.chat.format import ChatFormat
from quire.gateway.generation import Generation
from quire.gateway.monitor import Monitor
from quire.gateway.pooling import Embedder, Embedding, field_names, own_pooling
from quire.gateway.readiness import Readiness
from quire.gateway.request_record import Recorder, RequestObserver
from quire.gateway.scheduler_client import SchedulerClient
from quire.gateway.tenants import Tenant
from quire.gateway.tokenizer import ModelTokenizer
from quire.gateway.validation import ModelLimits, RequestContext, Validator, ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.outputs import GenerationDelta
from quire.pooling_params import Pooling, PoolingParams
from quire.process import in_daemon_thread

logger = logging.getLogger(__name__)


class Engine:
    """A served model: one tokenizer and one scheduler. Belongs to the event loop that started it."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        client: SchedulerClient,
        limits: ModelLimits,
        pooling: Pooling | None,
        chat_format: ChatFormat,
        watchdog_timeout: float,
    ) -> None:
        """Use `start`."""
        self.tokenizer = tokenizer
        self.limits = limits
        # Seconds since the epoch.
        self.created = int(time.time())
        self.validator = Validator(tokenizer, limits)
        self.chat_format = chat_format
        self.readiness = Readiness(client, watchdog_timeout)
        self.recorder = Recorder()
        self.monitor = Monitor(client.connection, limits.models[0])
        self._client = client
        self._embedder = Embedder(self.validator, client, limits, pooling, self.recorder)

    @classmethod
    async def start(
        cls,
        *,
        scheduler: str,
        model: str,
        revision: str | None = None,
        served_model_names: Sequence[str] = (),
        max_logprobs: int = 20,
        max_concurrent_requests: int | None = None,
        startup_timeout: float = 600.0,
        watchdog_timeout: float = 20.0,
        chat_options: ChatOptions | None = None,
    ) -> Engine:
        """Loads the tokenizer and connects to the scheduler, both at once.

        `model` is a folder or hub id, and the model's name unless others are given; timeouts are in
        seconds.
        Raises StartupError, and CheckpointError where the tokenizer cannot be loaded.
        """
        connecting = asyncio.create_task(SchedulerClient.connect(scheduler, startup_timeout, max_concurrent_requests))
        chat_options = chat_options or ChatOptions.load({})
        trust = chat_options.trust_request_chat_template
        try:
            pooling = await in_daemon_thread(lambda: own_pooling(model, revision))
            tokenizer = await ModelTokenizer.load(model, revision, trust_request_chat_template=trust)
        except BaseException:
            await _discard(connecting)
            raise
        try:
            client = await connecting
        except BaseException:
            tokenizer.close()
            raise
        description = client.description
        limits = ModelLimits(
            models=tuple(served_model_names) or (model,),
            root=model,
            max_model_len=description.max_model_len,
            vocab_size=description.vocab_size,
            max_num_seqs=description.max_num_seqs,
            max_logprobs=max_logprobs,
            hidden_size=description.executors[0].hidden_size,
        )
        return cls(tokenizer, client, limits, pooling, ChatFormat(tokenizer, chat_options), watchdog_timeout)

    @property
    def observers(self) -> list[RequestObserver]:
        """Are told of every request; add before the first one."""
        return self.recorder.observers

    @property
    def scheduler(self) -> SchedulerClient:
        """Where requests go."""
        return self._client

    @cached_property
    def fingerprint(self) -> str:
        """Names what outputs depend on besides the request: the code, the weights and their format."""
        executors = (executor.fingerprint for executor in self._client.description.executors)
        return "fp_" + hashlib.sha256(b"\0".join((__version__.encode(), *executors))).hexdigest()[:12]

    def check_load(self, tenant: Tenant) -> None:
        """Raises OverloadedError if `submit` would, most likely: before a request costs anything."""
        self._client.check_load(tenant.name)

    async def submit(self, request: ValidRequest) -> Generation:
        """Queues a request at the scheduler; the caller must exhaust or close what it gets.

        Raises OverloadedError, ServiceUnavailableError, ContextLengthError and what else the scheduler says of it.
        """
        params = request.params.to_proto()
        if request.needs_logprobs:
            params.logprobs = request.params.logprobs or 0
        keeper = self.recorder.begin(
            request.context,
            request.prompt or request.prompt_token_ids,
            len(request.prompt_token_ids),
            "chat" if request.is_chat else "text_completion",
            params,
            request.num_sequences,
        )
        message = scheduler_pb2.SubmitRequest(
            request_id=request.request_id,
            prompt_token_ids=pack_u32(request.prompt_token_ids),
            sequences=[scheduler_pb2.SequenceState(index=index) for index in range(request.num_sequences)],
            sampling_params=params,
            eos_token_ids=pack_u32(request.eos_token_ids),
            constraints=request.constraints,
            priority=request.context.priority,
            tenant=request.context.tenant.message,
            prompt_index=request.context.prompt_index,
            cache_salt=request.context.cache_salt.encode(),
            trace_parent=keeper.record.trace_parent,
        )
        try:
            stream = await self._client.submit(message)
        except QuireError as error:
            keeper.refused(error)
            raise
        except BaseException:  # the client has left
            keeper.end(["abort"])
            raise
        keeper.submitted()
        return Generation(request, stream, self._client, self.tokenizer, keeper)

    async def generate(self, request: ValidRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Submits a request and yields its deltas; closing the iterator early aborts it.

        Raises what `submit` raises, and ServiceUnavailableError when the scheduler is lost and does not come back.
        """
        async with await self.submit(request) as generation:
            async for delta in generation:
                yield delta

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        params: PoolingParams,
        context: RequestContext,
        *,
        fields: Sequence[str] | None = None,
    ) -> list[Embedding]:
        """See Embedder.embed; without other names inputs are called `input`. Also raises OverloadedError."""
        return await self._embedder.embed(inputs, params, context, fields or field_names("input", inputs))

    async def wait_lost(self) -> QuireError:
        """Waits until the scheduler is lost for good; returns why. The engine takes no requests after that."""
        return await self._client.wait_lost()

    def fail(self, error: QuireError) -> None:
        """Ends all requests, and takes no more: there will be no scheduler again."""
        self._client.lose(error)

    async def drain(self, answered: Awaitable[None], timeout: float) -> None:
        """Waits until all calls are answered, at most `timeout` seconds, then fails what still runs.

        Onlookers' streams, which have no end of their own, end at once.
        """
        self.monitor.end()
        try:
            async with asyncio.timeout(timeout):
                await answered
        except TimeoutError:
            logger.warning("requests still run %g s after the stop; they are aborted", timeout)
            self._fail_running()

    async def close(self) -> None:
        """Aborts what runs and leaves nothing behind."""
        self.monitor.end()
        self._fail_running()
        await self._client.close()
        await self.validator.close()
        self.tokenizer.close()

    def _fail_running(self) -> None:
        error = ServiceUnavailableError("the server is shutting down")
        self._client.fail_all(error, scheduler_pb2.ABORT_REASON_SHUTDOWN)


async def _discard(connecting: asyncio.Task[SchedulerClient]) -> None:
    """Ends an attempt to connect, or the connection it made."""
    connecting.cancel()
    result = (await asyncio.gather(connecting, return_exceptions=True))[0]
    if isinstance(result, SchedulerClient):
        await result.close()
