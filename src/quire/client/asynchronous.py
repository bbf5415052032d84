"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from quire.client.requests import (
    ChatOptions,
    Prompt,
    RequestOptions,
    call_metadata,
    embed_request,
    generate_request,
    tokenize_request,
)
from quire.client.responses import empty_output
from quire.client.resume import Progress, Resume
from quire.client.retry import Attempts, RetryPolicy, check_timeout
from quire.client.tls import Target, TlsArguments
from quire.errors import QuireError, RequestAbortedError, ServiceUnavailableError
from quire.outputs import CompletionDelta, GenerationDelta, RequestOutput
from quire.pooling_params import PoolingParams
from quire.prompts import check_token_ids
from quire.rpc import errors_from_status, open_channel
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2, generate_pb2_grpc, monitor_pb2, monitor_pb2_grpc

T = TypeVar("T")
M = TypeVar("M", bound=Message)
StreamCall: TypeAlias = "grpc.aio.UnaryStreamCall[Any, M]"


class AsyncClient:
    """For asyncio. Close it, or use `async with`; it belongs to the event loop of its first call. See Client."""

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        timeout: float = 600.0,
        retry: RetryPolicy | None = None,
        api_key: str | None = None,
        **tls: Unpack[TlsArguments],
    ) -> None:
        """`timeout`, in seconds, is the deadline of every call, its retries included. For `tls` see TlsArguments."""
        self._metadata = call_metadata(api_key)
        self._target = Target.of(address, tls)
        self._timeout = check_timeout(timeout)
        self._retry = retry or RetryPolicy()
        # Opened by the first call: a channel belongs to the loop that runs when it is made.
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close()

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncGenerator[CompletionDelta, None]:
        """See Client.generate."""
        request, attempts = generate_request(prompt, params, options), self._attempts(options.get("timeout"))

        async def parts() -> AsyncGenerator[CompletionDelta, None]:
            async with contextlib.aclosing(self._deltas(request, attempts)) as deltas:
                async for delta in deltas:
                    for part in delta.deltas:
                        yield part

        return parts()

    async def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> RequestOutput:
        """See Client.complete."""
        request, attempts = generate_request(prompt, params, options), self._attempts(options.get("timeout"))
        output = empty_output(request)
        async for delta in self._deltas(request, attempts):
            output.add(delta)
        return output

    async def embed(
        self,
        inputs: str | Iterable[str | Iterable[int]],
        params: PoolingParams | None = None,
        *,
        model: str = "",
        timeout: float | None = None,
    ) -> list[list[float]]:
        """See Client.embed."""
        request = embed_request(inputs, params, model)
        answer = await self._call(lambda stub: stub.Embed, request, timeout)
        return [list(embedding.values) for embedding in answer.embeddings]

    async def models(self, *, timeout: float | None = None) -> list[generate_pb2.Model]:
        """See Client.models."""
        request = generate_pb2.ListModelsRequest()
        answer = await self._call(lambda stub: stub.ListModels, request, timeout)
        return list(answer.models)

    async def tokenize(
        self,
        prompt: Prompt,
        *,
        add_special_tokens: bool = True,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """See Client.tokenize."""
        request = tokenize_request(prompt, add_special_tokens, options)
        answer = await self._call(lambda stub: stub.Tokenize, request, timeout)
        return list(answer.token_ids)

    async def detokenize(self, token_ids: Iterable[int], *, timeout: float | None = None) -> str:
        """See Client.detokenize."""
        request = generate_pb2.DetokenizeRequest(token_ids=check_token_ids(token_ids, "token_ids"))
        answer = await self._call(lambda stub: stub.Detokenize, request, timeout)
        return answer.text

    async def loads(self, *, timeout: float | None = None) -> monitor_pb2.Loads:
        """See Client.loads."""
        return await self._call(lambda _: self._monitor().GetLoads, monitor_pb2.GetLoadsRequest(), timeout)

    def watch(
        self, *, interval: float = 0.5, with_blocks: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[monitor_pb2.ServerState, None]:
        """See Client.watch."""
        request = monitor_pb2.WatchServerRequest(interval_s=interval, with_blocks=with_blocks)
        return self._follow(lambda: self._monitor().WatchServer, request, timeout)

    def kv_events(
        self, *, source: str = "", after_id: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[monitor_pb2.KvEventBatch, None]:
        """See Client.kv_events."""
        request = monitor_pb2.StreamKvEventsRequest(source=source, after_id=after_id)
        return self._follow(lambda: self._monitor().StreamKvEvents, request, timeout)

    async def _follow(
        self, method: Callable[[], Callable[..., StreamCall[M]]], request: Message, timeout: float | None
    ) -> AsyncGenerator[M, None]:
        deadline = None if timeout is None else check_timeout(timeout)
        with self._errors():
            call = method()(request, timeout=deadline, metadata=self._metadata)
        try:
            with self._errors():
                async for message in call:
                    yield message
        finally:
            call.cancel()

    async def _deltas(
        self, request: generate_pb2.GenerateRequest, attempts: Attempts
    ) -> AsyncGenerator[GenerationDelta, None]:
        progress = Progress()
        while True:
            resume = Resume(progress)
            with self._errors():
                call = self._stub().Generate(request, timeout=attempts.timeout, metadata=self._metadata)
            try:
                with self._errors():
                    async for response in call:
                        yield resume.new_delta(response)
                return
            except ServiceUnavailableError as error:
                await asyncio.sleep(attempts.delay_after(error))
            finally:
                call.cancel()

    async def _call(
        self,
        method: Callable[[generate_pb2_grpc.GenerateServiceAsyncStub], Callable[..., Awaitable[T]]],
        request: Message,
        timeout: float | None,
    ) -> T:
        attempts = self._attempts(timeout)
        while True:
            try:
                with self._errors():
                    return await method(self._stub())(request, timeout=attempts.timeout, metadata=self._metadata)
            except ServiceUnavailableError as error:
                await asyncio.sleep(attempts.delay_after(error))

    def _stub(self) -> generate_pb2_grpc.GenerateServiceAsyncStub:
        return generate_pb2_grpc.GenerateServiceStub(self._opened_channel())

    def _monitor(self) -> monitor_pb2_grpc.MonitorServiceAsyncStub:
        return monitor_pb2_grpc.MonitorServiceStub(self._opened_channel())

    def _opened_channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = open_channel(self._target.address, self._target.credentials)
        return self._channel

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout if timeout is None else check_timeout(timeout))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises what a failed call stands for; a cancellation of the caller's own goes on."""
        if self._is_closed:
            raise QuireError("the client is closed")
        try:
            with errors_from_status("the server"):
                yield
        except (asyncio.CancelledError, QuireError, grpc.aio.UsageError) as error:
            task = asyncio.current_task()
            if not self._is_closed or (task is not None and task.cancelling()):
                raise
            raise RequestAbortedError("the client was closed") from error
