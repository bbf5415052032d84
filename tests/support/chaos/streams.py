"""Real clients of a server, whose whole answers can be compared.

An answer here is what the client was told, put together from all pieces: text, token ids, logprobs, finish reasons and
usage. Left out are the ids and times that each request has of its own, and `cached_tokens`: how much of a prompt the
cache holds depends on what ran before and on what a crash forgot, and is all that may differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from google.protobuf import json_format
from support.chaos.server import ChaosServer

from quire.v1 import generate_pb2, generate_pb2_grpc

Answer = Any
# Far beyond every pause: a stream that stands still fails instead of hanging.
CLIENT_TIMEOUT_S = 400.0
_OWN = frozenset(
    {"id", "created", "created_at", "request_id", "requestId", "system_fingerprint", "cached_tokens", "cachedTokens"}
)


@dataclass
class Progress:
    """What a client has seen of its stream so far."""

    # Between two pieces, in seconds. Measured, never asserted.
    pauses_s: list[float] = field(default_factory=list)
    last_at: float = field(default_factory=time.monotonic)

    def count(self) -> None:
        now = time.monotonic()
        self.pauses_s.append(now - self.last_at)
        self.last_at = now

    @property
    def pieces(self) -> int:
        return len(self.pauses_s)


Call = Callable[["Clients", Progress], Coroutine[Any, Any, Answer]]


class Clients:
    """Connections to one server, for asyncio. A context manager."""

    def __init__(self, server: ChaosServer, api_key: str | None = None) -> None:
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.AsyncClient(
            base_url=server.url, timeout=CLIENT_TIMEOUT_S, limits=limits, headers=self.headers, trust_env=False
        )
        self.channel = grpc.aio.insecure_channel(server.grpc_address)
        self.stub = generate_pb2_grpc.GenerateServiceStub(self.channel)
        self.metadata = [(name.lower(), value) for name, value in self.headers.items()]

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self.channel.close()


def rest(path: str, **body: Any) -> Call:
    """A call of the REST API; streamed if the body says so."""
    body = {"model": "quire-tiny", **body}

    async def call(clients: Clients, progress: Progress) -> Answer:
        if not body.get("stream"):
            response = await clients.http.post(path, json=body)
            assert response.status_code == 200, response.text
            progress.count()
            return _without_own(response.json())
        merged: dict[str, Any] = {}
        async for event in events(clients, path, body):
            progress.count()
            _merge(merged, event)
        return merged

    return call


async def events(clients: Clients, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The frames of a stream. Raises AssertionError for an error frame and for a stream that breaks off."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with clients.http.stream("POST", path, json={**body, **options}) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        is_done = False
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            assert not is_done, "a frame after [DONE]"
            if line == "data: [DONE]":
                is_done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            yield event
        assert is_done, "the stream broke off"


def generate(request: generate_pb2.GenerateRequest) -> Call:
    """A gRPC generation, streamed as all are. No retry hides a failure."""

    async def call(clients: Clients, progress: Progress) -> Answer:
        choices: dict[int, dict[str, Any]] = {}
        answer: dict[str, Any] = {"choices": choices}
        async for response in clients.stub.Generate(request, timeout=CLIENT_TIMEOUT_S, metadata=clients.metadata):
            progress.count()
            _merge_response(answer, response)
        assert "usage" in answer, "the stream broke off"
        return answer

    return call


def embed(request: generate_pb2.EmbedRequest) -> Call:
    """A gRPC embedding."""

    async def call(clients: Clients, progress: Progress) -> Answer:
        response = await clients.stub.Embed(request, timeout=CLIENT_TIMEOUT_S, metadata=clients.metadata)
        progress.count()
        return _without_own(json_format.MessageToDict(response))

    return call


def in_turn(calls: list[Call]) -> Call:
    """Several calls, each after the one before it: short ones that are to last as long as a stream."""

    async def call(clients: Clients, progress: Progress) -> Answer:
        return [await one(clients, progress) for one in calls]

    return call


@dataclass
class Running:
    """Streams under way."""

    tasks: dict[str, asyncio.Task[Answer]]
    progress: dict[str, Progress]

    async def answers(self) -> dict[str, Answer]:
        """All answers. Raises the first failure, once all have ended."""
        await asyncio.wait(self.tasks.values())
        return {name: task.result() for name, task in self.tasks.items()}

    @property
    def num_unfinished(self) -> int:
        return sum(not task.done() for task in self.tasks.values())

    @property
    def longest_pause_s(self) -> float:
        """Between two pieces of any of the streams; an answer that comes whole has none."""
        return max(max(progress.pauses_s[1:], default=0.0) for progress in self.progress.values())

    def pause_p99_s(self) -> float:
        """Of all pauses between two pieces of the streams, the first pieces left out."""
        pauses = sorted(pause for progress in self.progress.values() for pause in progress.pauses_s[1:])
        return pauses[int(len(pauses) * 0.99)]

    async def until_each_has(self, pieces: int) -> None:
        """Waits until every stream that gives pieces at all has given so many, or ended."""
        while not all(
            self.progress[name].pieces >= pieces or task.done() or name.endswith("(whole)")
            for name, task in self.tasks.items()
        ):
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(server: ChaosServer, calls: Mapping[str, Call]) -> AsyncIterator[Running]:
    """Begins all calls at once; at the end of the block none is left."""
    async with Clients(server) as clients:
        progress = {name: Progress() for name in calls}
        tasks = {name: asyncio.create_task(call(clients, progress[name]), name=name) for name, call in calls.items()}
        try:
            yield Running(tasks, progress)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)


async def answers(server: ChaosServer, calls: Mapping[str, Call]) -> dict[str, Answer]:
    """The answers of calls that run at the same time."""
    async with running(server, calls) as begun:
        return await begun.answers()


def check_equal(found: Mapping[str, Answer], expected: Mapping[str, Answer]) -> None:
    """Every answer is the expected one, to the last logprob. Raises AssertionError with the first difference."""
    assert found.keys() == expected.keys()
    for name in expected:
        difference = _difference(found[name], expected[name], name)
        assert difference is None, difference


def _difference(found: Any, expected: Any, path: str) -> str | None:
    """Where two answers part, for a message."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        pairs = ((_difference(found[key], expected[key], f"{path}.{key}")) for key in expected)
        return next((difference for difference in pairs if difference), None)
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = (_difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(found, expected, strict=True)))
        return next((difference for difference in pairs if difference), None)
    if found == expected and type(found) is type(expected):
        return None
    return f"{path}: {_brief(found)} instead of {_brief(expected)}"


def _brief(value: Any) -> str:
    text = repr(value)
    size = f" ({len(value)} entries)" if isinstance(value, list | dict | str) else ""
    return (text if len(text) < 300 else text[:150] + " … " + text[-150:]) + size


def _without_own(value: Any) -> Any:
    """A message without what each request has of its own."""
    if isinstance(value, dict):
        return {key: _without_own(entry) for key, entry in value.items() if key not in _OWN}
    if isinstance(value, list):
        return [_without_own(entry) for entry in value]
    return value


def _merge(merged: dict[str, Any], event: dict[str, Any]) -> None:
    """Adds a frame of /v1/completions or /v1/chat/completions to what came before."""
    choices = merged.setdefault("choices", {})
    for choice in event.get("choices", ()):
        _append(choices.setdefault(choice["index"], {}), _without_own(choice))
    if event.get("usage"):
        assert "usage" not in merged, "usage came twice"
        merged["usage"] = _without_own(event["usage"])


def _append(merged: dict[str, Any], new: dict[str, Any]) -> None:
    """Appends texts and lists; other values are set once, and stay."""
    for key, value in new.items():
        if value is None or key == "index":
            continue
        if isinstance(value, dict):
            _append(merged.setdefault(key, {}), value)
        elif isinstance(value, list):
            merged.setdefault(key, []).extend(value)
        elif key in ("finish_reason", "stop_reason", "role"):
            assert key == "role" or key not in merged, f"{key} came twice"
            merged[key] = value
        else:
            merged[key] = merged.get(key, "") + value


def _merge_response(answer: dict[str, Any], response: generate_pb2.GenerateResponse) -> None:
    for delta in response.deltas:
        choice = answer["choices"].setdefault(delta.index, {"text": "", "token_ids": [], "logprobs": []})
        assert "finish_reason" not in choice, "a delta after the finish reason"
        choice["text"] += delta.text
        choice["token_ids"] += delta.token_ids
        choice["logprobs"] += [json_format.MessageToDict(entry) for entry in delta.logprobs]
        if delta.finish_reason:
            choice["finish_reason"] = delta.finish_reason
            choice["stop_reason"] = str(getattr(delta, delta.WhichOneof("stop_reason") or "", None))
            choice["cumulative_logprob"] = delta.cumulative_logprob
    if response.HasField("usage"):
        answer["usage"] = _without_own(json_format.MessageToDict(response.usage))
    if response.prompt_token_ids:
        answer["prompt_token_ids"] = list(response.prompt_token_ids)
        answer["prompt_logprobs"] = [json_format.MessageToDict(entry) for entry in response.prompt_logprobs]
