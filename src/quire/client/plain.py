"""The client for plain code."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
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
from quire.rpc import errors_from_status, open_sync_channel
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2, generate_pb2_grpc, monitor_pb2, monitor_pb2_grpc

T = TypeVar("T")
M = TypeVar("M", bound=Message)
StreamMethod: TypeAlias = "grpc.UnaryStreamMultiCallable[Any, M]"


class Client:
    """For plain code. Close it, or use `with`; it may be shared between threads.

    Every method takes its own `timeout`, in seconds, and raises the exceptions of quire.errors alone:
    InvalidRequestError for what is wrong with its arguments (with `field`), ContextLengthError,
    ServiceUnavailableError, DeadlineError, RequestAbortedError where the client is closed meanwhile, …
    """

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
        self._timeout = check_timeout(timeout)
        self._retry = retry or RetryPolicy()
        target = Target.of(address, tls)
        self._channel = open_sync_channel(target.address, target.credentials)
        self._stub = generate_pb2_grpc.GenerateServiceStub(self._channel)
        self._monitor = monitor_pb2_grpc.MonitorServiceStub(self._channel)
        self._is_closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._is_closed = True
        self._channel.close()

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> Generator[CompletionDelta, None, None]:
        """Yields what is new in the continuations as it comes; closing the iterator early cancels the request."""
        request, attempts = generate_request(prompt, params, options), self._attempts(options.get("timeout"))

        def parts() -> Generator[CompletionDelta, None, None]:
            with contextlib.closing(self._deltas(request, attempts)) as deltas:
                for delta in deltas:
                    yield from delta.deltas

        return parts()

    def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> RequestOutput:
        """The whole output."""
        request, attempts = generate_request(prompt, params, options), self._attempts(options.get("timeout"))
        output = empty_output(request)
        for delta in self._deltas(request, attempts):
            output.add(delta)
        return output

    def embed(
        self,
        inputs: str | Iterable[str | Iterable[int]],
        params: PoolingParams | None = None,
        *,
        model: str = "",
        timeout: float | None = None,
    ) -> list[list[float]]:
        """The embeddings of one text, or of several texts or lists of token ids, in their order."""
        request = embed_request(inputs, params, model)
        answer = self._call(self._stub.Embed, request, timeout)
        return [list(embedding.values) for embedding in answer.embeddings]

    def models(self, *, timeout: float | None = None) -> list[generate_pb2.Model]:
        """The models that the server serves."""
        request = generate_pb2.ListModelsRequest()
        return list(self._call(self._stub.ListModels, request, timeout).models)

    def tokenize(
        self,
        prompt: Prompt,
        *,
        add_special_tokens: bool = True,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """The token ids of a text, or of the prompt that a chat makes."""
        request = tokenize_request(prompt, add_special_tokens, options)
        return list(self._call(self._stub.Tokenize, request, timeout).token_ids)

    def detokenize(self, token_ids: Iterable[int], *, timeout: float | None = None) -> str:
        """The text of token ids, special tokens included."""
        request = generate_pb2.DetokenizeRequest(token_ids=check_token_ids(token_ids, "token_ids"))
        return self._call(self._stub.Detokenize, request, timeout).text

    def loads(self, *, timeout: float | None = None) -> monitor_pb2.Loads:
        """How busy the server is. Raises PermissionDeniedError for a key that is not an operator's."""
        return self._call(self._monitor.GetLoads, monitor_pb2.GetLoadsRequest(), timeout)

    def watch(
        self, *, interval: float = 0.5, with_blocks: bool = False, timeout: float | None = None
    ) -> Generator[monitor_pb2.ServerState, None, None]:
        """The server's state, every `interval` seconds, until the iterator is closed; without `timeout` for ever.

        With `with_blocks` the map of the KV pool and block tables as well: see BlockMap in monitor.proto. Nothing is
        repeated: when the server goes, ServiceUnavailableError is raised.
        """
        request = monitor_pb2.WatchServerRequest(interval_s=interval, with_blocks=with_blocks)
        return self._follow(self._monitor.WatchServer, request, timeout)

    def kv_events(
        self, *, source: str = "", after_id: int = 0, timeout: float | None = None
    ) -> Generator[monitor_pb2.KvEventBatch, None, None]:
        """What happens to the prefix cache, as `watch` gives states; see StreamKvEventsRequest for where it begins."""
        request = monitor_pb2.StreamKvEventsRequest(source=source, after_id=after_id)
        return self._follow(self._monitor.StreamKvEvents, request, timeout)

    def _follow(self, method: StreamMethod[M], request: Message, timeout: float | None) -> Generator[M, None, None]:
        deadline = None if timeout is None else check_timeout(timeout)
        with self._errors():
            call = method(request, timeout=deadline, metadata=self._metadata)
        try:
            with self._errors():
                yield from call
        finally:
            call.cancel()

    def _deltas(
        self, request: generate_pb2.GenerateRequest, attempts: Attempts
    ) -> Generator[GenerationDelta, None, None]:
        progress = Progress()
        while True:
            resume = Resume(progress)
            with self._errors():
                call = self._stub.Generate(request, timeout=attempts.timeout, metadata=self._metadata)
            try:
                with self._errors():
                    for response in call:
                        yield resume.new_delta(response)
                return
            except ServiceUnavailableError as error:
                time.sleep(attempts.delay_after(error))
            finally:
                call.cancel()

    def _call(self, method: Callable[..., T], request: Message, timeout: float | None) -> T:
        attempts = self._attempts(timeout)
        while True:
            try:
                with self._errors():
                    return method(request, timeout=attempts.timeout, metadata=self._metadata)
            except ServiceUnavailableError as error:
                time.sleep(attempts.delay_after(error))

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout if timeout is None else check_timeout(timeout))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises what a failed call stands for."""
        if self._is_closed:
            raise QuireError("the client is closed")
        try:
            with errors_from_status("the server"):
                yield
        except QuireError as error:
            if self._is_closed:
                raise RequestAbortedError("the client was closed") from error
            raise
        except ValueError as error:  # grpc's word for a channel that is closed meanwhile
            if self._is_closed:
                raise RequestAbortedError("the client was closed") from error
            raise
