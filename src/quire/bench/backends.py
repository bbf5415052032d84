"""How a request is put to each kind of server, and its answer recorded: one class each, all with `send`."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from quire.bench.http_client import HttpClient
from quire.bench.prompts import BenchRequest
from quire.bench.settings import ServeBenchSettings
from quire.bench.sse import EventReader
from quire.bench.timeline import Timeline
from quire.client.tls import Target
from quire.errors import QuireError, RequestAbortedError, ServiceUnavailableError
from quire.rpc import errors_from_status, open_channel
from quire.v1 import generate_pb2, generate_pb2_grpc


class BenchBackend(Protocol):
    """A server under load."""

    async def list_models(self) -> list[str]:
        """Names of the models that are served. Raises ServiceUnavailableError."""

    async def send(self, request: BenchRequest) -> Timeline:
        """Runs a request to its end; a failed one has its `error` set."""

    async def close(self) -> None:
        """Ends the connections."""


def open_backend(settings: ServeBenchSettings, model: str) -> BenchBackend:
    """The backend that the settings name."""
    backends: dict[str, Callable[[ServeBenchSettings, str], BenchBackend]] = {
        "openai": CompletionsBackend,
        "openai-chat": ChatBackend,
        "grpc": GrpcBackend,
    }
    return backends[settings.backend](settings, model)


class _PromptTokensDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptTokensDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_output(self) -> bool:
        """Whether a token came: not with a chat's first message, which only names the role, nor with a bare end.

        A completion's text may be empty although a token came: half a character is held back.
        """
        if self.delta is not None:
            return bool(self.delta.content or self.delta.reasoning_content)
        return bool(self.text) or (self.text is not None and self.finish_reason is None)

    @property
    def output(self) -> str:
        """The text of that token, or of several."""
        if self.delta is not None:
            return self.delta.content or self.delta.reasoning_content or ""
        return self.text or ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class _Answer:
    """Reads one streamed answer into a timeline."""

    _decoder = msgspec.json.Decoder(_Chunk)

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._events = EventReader()
        self._finished = False
        self._usage: _Usage | None = None
        self.raw = b""  # of an answer that is no event stream: an error

    def on_body(self, piece: bytes, now: float) -> None:
        """Takes a piece of the body in."""
        if not self._timeline.arrived and len(self.raw) < 4096:
            self.raw += piece
        for data in self._events.feed(piece):
            if data != b"[DONE]":
                self._on_chunk(self._decoder.decode(data), now)

    def _on_chunk(self, chunk: _Chunk, now: float) -> None:
        if len(chunk.error):
            self._timeline.error = bytes(chunk.error).decode()
        for choice in chunk.choices:
            if choice.has_output:
                self._timeline.arrived.append(now)
                self._timeline.pieces.append(choice.output)
                self._timeline.ended = now
            self._finished = self._finished or choice.finish_reason is not None
        if chunk.usage is not None:
            self._usage = chunk.usage

    def finish(self, status: int) -> None:
        """Checks and completes the timeline when the answer has ended."""
        timeline = self._timeline
        if status != 200:
            timeline.error = f"HTTP {status}: {self.raw.decode(errors='replace')}"
        elif not timeline.error:
            timeline.error = self._whats_missing()
        if self._usage is not None:
            details = self._usage.prompt_tokens_details
            timeline.output_len = self._usage.completion_tokens
            timeline.prompt_len = self._usage.prompt_tokens
            timeline.cached_len = (details.cached_tokens or 0) if details else 0

    def _whats_missing(self) -> str:
        if not self._finished:
            return "the stream ended without a finish reason"
        if self._usage is None:
            return "the server sent no usage, which says how many tokens there were"
        return "" if self._timeline.arrived else "the answer has no text"


class _OpenAIBackend:
    """What the two kinds of completion have in common."""

    _path: str

    def __init__(self, settings: ServeBenchSettings, model: str) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        self._client = HttpClient(
            settings.base_url, {"authorization": f"Bearer {key}"} if key else {}, settings.ssl_ca_certs
        )
        self._common: dict[str, Any] = {
            "model": model,
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if settings.ignore_eos else {}),
        }

    async def list_models(self) -> list[str]:
        """See BenchBackend."""
        status, body = await self._client.get("/v1/models")
        if status != 200:
            raise ServiceUnavailableError(f"GET /v1/models: HTTP {status}")
        return [model["id"] for model in msgspec.json.decode(body)["data"]]

    async def send(self, request: BenchRequest) -> Timeline:
        """See BenchBackend."""
        body = msgspec.json.encode({**self._common, **self._own_fields(request)})
        timeline = Timeline(time.perf_counter(), len(request.prompt))
        answer = _Answer(timeline)
        try:
            answer.finish(await self._client.post(self._path, body, answer.on_body))
        except QuireError as error:
            timeline.error = error.message
        return timeline

    async def close(self) -> None:
        """See BenchBackend."""
        self._client.close()

    def _own_fields(self, request: BenchRequest) -> dict[str, Any]:
        raise NotImplementedError


class CompletionsBackend(_OpenAIBackend):
    """POST /v1/completions with the token ids themselves."""

    _path = "/v1/completions"

    def _own_fields(self, request: BenchRequest) -> dict[str, Any]:
        return {"prompt": request.prompt, "max_tokens": request.output_len}


class ChatBackend(_OpenAIBackend):
    """POST /v1/chat/completions.

    Messages are text, and no tokeniser is at hand: each token id becomes one short word that depends on it. How many
    tokens these are, with the chat template, is what the server's usage says.
    """

    _path = "/v1/chat/completions"

    def _own_fields(self, request: BenchRequest) -> dict[str, Any]:
        words = " ".join(map(_word, request.prompt))
        return {"messages": [{"role": "user", "content": words}], "max_completion_tokens": request.output_len}


class GrpcBackend:
    """Quire's GenerateService, by its stub: no retries and no bookkeeping for them."""

    def __init__(self, settings: ServeBenchSettings, model: str) -> None:
        target = Target.of(settings.base_url, {"ssl_ca_certs": settings.ssl_ca_certs})
        self._channel = open_channel(target.address, target.credentials)
        self._stub = generate_pb2_grpc.GenerateServiceStub(self._channel)
        self._model = model
        self._settings = settings

    async def list_models(self) -> list[str]:
        """See BenchBackend."""
        with errors_from_status("the server"):
            answer = await self._stub.ListModels(generate_pb2.ListModelsRequest(), timeout=10)
        return [model.id for model in answer.models]

    async def send(self, request: BenchRequest) -> Timeline:
        """See BenchBackend."""
        message = generate_pb2.GenerateRequest(
            model=self._model,
            request_id=uuid.uuid4().hex,
            token_ids=generate_pb2.TokenIds(ids=request.prompt),
            sampling_params=generate_pb2.SamplingParams(
                max_tokens=request.output_len,
                temperature=self._settings.temperature,
                ignore_eos=self._settings.ignore_eos,
            ),
        )
        timeline = Timeline(time.perf_counter(), len(request.prompt))
        try:
            with errors_from_status("the server"):
                async for response in self._stub.Generate(message, timeout=self._settings.request_timeout):
                    _record(response, timeline, time.perf_counter())
            if not timeline.arrived:
                raise RequestAbortedError("the answer has no tokens")
        except QuireError as error:
            timeline.error = error.message
        return timeline

    async def close(self) -> None:
        """See BenchBackend."""
        await self._channel.close()


def _record(response: generate_pb2.GenerateResponse, timeline: Timeline, now: float) -> None:
    tokens = sum(len(delta.token_ids) for delta in response.deltas)
    if tokens:
        timeline.arrived.append(now)
        timeline.ended = now
        timeline.output_len += tokens
    if response.HasField("usage"):
        timeline.cached_len = response.usage.cached_tokens


def _word(token_id: int) -> str:
    """A word of two to five letters, always the same for the same id."""
    rng = random.Random(token_id)  # noqa: S311 (no secret)
    return "".join(rng.choices("aeioulnrst", k=rng.randint(2, 5)))
