"""A typed client of Quire's gRPC API, for plain code (`Client`) and for asyncio (`AsyncClient`).

    with Client("127.0.0.1:50051") as client:
        for delta in client.generate("The capital of France is", SamplingParams(max_tokens=8)):
            print(delta.text, end="")

Every call has a deadline. Only UNAVAILABLE is retried, with exponential back-off and jitter, and that is safe: each
generation carries a request id, so that a repeat joins the run that it began, and a seed, so that a server that
lost the run begins the same one again. What has been yielded before a retry is not yielded twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar, cast

from msgspec import structs

from quire.errors import DeadlineError, InvalidRequestError, ServiceUnavailableError
from quire.outputs import (
    CompletionDelta,
    GenerationDelta,
    RequestOutput,
    TokenLogprobs,
    Usage,
    finish_reason_from_proto,
)
from quire.rpc import errors_from_status, open_channel, open_sync_channel
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2, generate_pb2_grpc

T = TypeVar("T")

# A text, token ids, or chat messages (`role` and `content`).
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when an UNAVAILABLE call is repeated; times are in seconds.

    The wait before repeat k is random in [0, min(max_backoff, initial_backoff * multiplier^k)], so that clients
    that failed together do not come back together ("full jitter", Brooker 2015).
    """

    max_attempts: int = 5
    initial_backoff: float = 0.2
    max_backoff: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidRequestError("max_attempts must be at least 1", field="max_attempts")

    def backoff(self, repeat: int) -> float:
        """Seconds to wait before repeat number `repeat`, counted from 0."""
        limit = min(self.max_backoff, self.initial_backoff * self.multiplier**repeat)
        return random.uniform(0, limit)  # noqa: S311 (no secret)


@dataclass(slots=True)
class _Attempts:
    """One call's attempts against its deadline."""

    policy: RetryPolicy
    deadline: float
    num_failed: int = 0

    @property
    def timeout(self) -> float:
        """Seconds left. Raises DeadlineError if there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError("the deadline passed before the call succeeded")
        return left

    def delay_after(self, error: ServiceUnavailableError) -> float:
        """Seconds to wait before the next attempt; raises the error if there is none."""
        self.num_failed += 1
        delay = self.policy.backoff(self.num_failed - 1)
        if self.num_failed >= self.policy.max_attempts or time.monotonic() + delay >= self.deadline:
            raise error
        return delay


@dataclass(slots=True)
class _Progress:
    """How much of each continuation has been yielded, over all attempts."""

    num_characters: dict[int, int] = field(default_factory=dict)
    num_tokens: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)


class _Resume:
    """Drops from an attempt what earlier attempts have yielded; a repeat may cut the same output elsewhere."""

    def __init__(self, progress: _Progress) -> None:
        self._progress = progress
        self._skip_characters = dict(progress.num_characters)
        self._skip_tokens = dict(progress.num_tokens)

    def new_parts(self, response: generate_pb2.GenerateResponse) -> Iterator[CompletionDelta]:
        """What nobody has seen yet."""
        for message in response.deltas:
            part = self._new_part(_completion_delta(message))
            if part is not None:
                yield part

    def _new_part(self, part: CompletionDelta) -> CompletionDelta | None:
        index, progress = part.index, self._progress
        if index in progress.finished:
            return None
        characters = self._take(self._skip_characters, index, len(part.text))
        tokens = self._take(self._skip_tokens, index, len(part.token_ids))
        part = structs.replace(
            part,
            text=part.text[characters:],
            token_ids=part.token_ids[tokens:],
            logprobs=part.logprobs and part.logprobs[tokens:],
        )
        progress.num_characters[index] = progress.num_characters.get(index, 0) + len(part.text)
        progress.num_tokens[index] = progress.num_tokens.get(index, 0) + len(part.token_ids)
        if part.finish_reason is not None:
            progress.finished.add(index)
        return part if part.text or part.token_ids or part.finish_reason else None

    @staticmethod
    def _take(left: dict[int, int], index: int, wanted: int) -> int:
        taken = min(left.get(index, 0), wanted)
        left[index] = left.get(index, 0) - taken
        return taken


class Client:
    """For plain code. Close it, or use `with`; it may be shared between threads."""

    def __init__(
        self, address: str = "127.0.0.1:50051", *, timeout: float = 600.0, retry: RetryPolicy | None = None
    ) -> None:
        """`timeout`, in seconds, is the deadline of every call, its retries included."""
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._channel = open_sync_channel(address)
        self._stub = generate_pb2_grpc.GenerateServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._channel.close()

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, request_id: str | None = None
    ) -> Generator[CompletionDelta, None, None]:
        """Yields what is new in the continuations as it comes; closing the iterator early cancels the request.

        Raises InvalidRequestError, ContextLengthError, ServiceUnavailableError, DeadlineError and the other
        exceptions of quire.errors.
        """
        with contextlib.closing(self._deltas(_request(prompt, params, request_id))) as deltas:
            for delta in deltas:
                yield from delta.deltas

    def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, request_id: str | None = None
    ) -> RequestOutput:
        """The whole output. Raises as `generate` does."""
        request = _request(prompt, params, request_id)
        output = _empty_output(request)
        for delta in self._deltas(request):
            output.add(delta)
        return output

    def models(self) -> list[generate_pb2.Model]:
        """The models that the server serves."""
        request = generate_pb2.ListModelsRequest()
        return list(self._call(lambda timeout: self._stub.ListModels(request, timeout=timeout)).models)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        request = generate_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list(self._call(lambda timeout: self._stub.Tokenize(request, timeout=timeout)).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        request = generate_pb2.DetokenizeRequest(token_ids=token_ids)
        return self._call(lambda timeout: self._stub.Detokenize(request, timeout=timeout)).text

    def _deltas(self, request: generate_pb2.GenerateRequest) -> Generator[GenerationDelta, None, None]:
        attempts = self._attempts()
        progress = _Progress()
        while True:
            call = self._stub.Generate(request, timeout=attempts.timeout)
            resume = _Resume(progress)
            try:
                with errors_from_status("the server"):
                    for response in call:
                        yield GenerationDelta(list(resume.new_parts(response)), _usage(response))
                return
            except ServiceUnavailableError as error:
                time.sleep(attempts.delay_after(error))
            finally:
                call.cancel()

    def _call(self, call: Callable[[float], T]) -> T:
        attempts = self._attempts()
        while True:
            try:
                with errors_from_status("the server"):
                    return call(attempts.timeout)
            except ServiceUnavailableError as error:
                time.sleep(attempts.delay_after(error))

    def _attempts(self) -> _Attempts:
        return _Attempts(self._retry, time.monotonic() + self._timeout)


class AsyncClient:
    """For asyncio. Close it, or use `async with`; it belongs to one event loop."""

    def __init__(
        self, address: str = "127.0.0.1:50051", *, timeout: float = 600.0, retry: RetryPolicy | None = None
    ) -> None:
        """`timeout`, in seconds, is the deadline of every call, its retries included."""
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._channel = open_channel(address)
        self._stub = generate_pb2_grpc.GenerateServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and all calls on it."""
        await self._channel.close()

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[CompletionDelta, None]:
        """See Client.generate."""
        async with contextlib.aclosing(self._deltas(_request(prompt, params, request_id))) as deltas:
            async for delta in deltas:
                for part in delta.deltas:
                    yield part

    async def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, request_id: str | None = None
    ) -> RequestOutput:
        """See Client.complete."""
        request = _request(prompt, params, request_id)
        output = _empty_output(request)
        async for delta in self._deltas(request):
            output.add(delta)
        return output

    async def models(self) -> list[generate_pb2.Model]:
        """See Client.models."""
        request = generate_pb2.ListModelsRequest()
        return list((await self._call(lambda timeout: self._stub.ListModels(request, timeout=timeout))).models)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See Client.tokenize."""
        request = generate_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list((await self._call(lambda timeout: self._stub.Tokenize(request, timeout=timeout))).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See Client.detokenize."""
        request = generate_pb2.DetokenizeRequest(token_ids=token_ids)
        return (await self._call(lambda timeout: self._stub.Detokenize(request, timeout=timeout))).text

    async def _deltas(self, request: generate_pb2.GenerateRequest) -> AsyncGenerator[GenerationDelta, None]:
        attempts = self._attempts()
        progress = _Progress()
        while True:
            call = self._stub.Generate(request, timeout=attempts.timeout)
            resume = _Resume(progress)
            try:
                with errors_from_status("the server"):
                    async for response in call:
                        yield GenerationDelta(list(resume.new_parts(response)), _usage(response))
                return
            except ServiceUnavailableError as error:
                await asyncio.sleep(attempts.delay_after(error))
            finally:
                call.cancel()

    async def _call(self, call: Callable[[float], Awaitable[T]]) -> T:
        attempts = self._attempts()
        while True:
            try:
                with errors_from_status("the server"):
                    return await call(attempts.timeout)
            except ServiceUnavailableError as error:
                await asyncio.sleep(attempts.delay_after(error))

    def _attempts(self) -> _Attempts:
        return _Attempts(self._retry, time.monotonic() + self._timeout)


def _request(prompt: Prompt, params: SamplingParams | None, request_id: str | None) -> generate_pb2.GenerateRequest:
    params = params or SamplingParams()
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    request = generate_pb2.GenerateRequest(request_id=request_id or uuid.uuid4().hex, sampling_params=params.to_proto())
    if isinstance(prompt, str):
        request.text = prompt
        return request
    messages = [entry for entry in prompt if isinstance(entry, Mapping)]
    if messages:
        if len(messages) != len(prompt):
            raise InvalidRequestError("a prompt cannot mix messages and token ids", field="prompt")
        request.chat.messages.extend(generate_pb2.ChatMessage(**cast(Any, message)) for message in messages)
    else:
        request.token_ids.ids.extend(entry for entry in prompt if not isinstance(entry, Mapping))
    return request


def _empty_output(request: generate_pb2.GenerateRequest) -> RequestOutput:
    kind = request.WhichOneof("prompt")
    return RequestOutput.empty(
        request.request_id,
        prompt=request.text if kind == "text" else None,
        prompt_token_ids=list(request.token_ids.ids) if kind == "token_ids" else None,
        n=request.sampling_params.n if request.sampling_params.HasField("n") else 1,
    )


def _completion_delta(message: generate_pb2.CompletionDelta) -> CompletionDelta:
    logprobs = None
    if message.logprobs:
        pairs = zip(message.token_ids, message.logprobs, strict=True)
        logprobs = [TokenLogprobs.from_proto(token_id, position) for token_id, position in pairs]
    reason = message.WhichOneof("stop_reason")
    return CompletionDelta(
        index=message.index,
        text=message.text,
        token_ids=list(message.token_ids),
        logprobs=logprobs,
        finish_reason=finish_reason_from_proto(message.finish_reason),
        stop_reason=None if reason is None else getattr(message, reason),
        cumulative_logprob=message.cumulative_logprob if message.HasField("cumulative_logprob") else None,
    )


def _usage(response: generate_pb2.GenerateResponse) -> Usage | None:
    if not response.HasField("usage"):
        return None
    usage = response.usage
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
