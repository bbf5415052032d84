"""Requests to a fake scheduler, and all that came of them."""

from __future__ import annotations

import asyncio
from typing import Any

from quire.columns import pack_u32
from quire.gateway.request_stream import RequestStream, SequenceEnd, StepChunk
from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

# Seconds. Nothing waits so long unless it is broken.
PATIENCE_S = 60


def request(n: int = 1, max_tokens: int = 12, **params: Any) -> scheduler_pb2.SubmitRequest:
    return scheduler_pb2.SubmitRequest(
        prompt_token_ids=pack_u32(range(60, 80)),
        sequences=[scheduler_pb2.SequenceState(index=index) for index in range(n)],
        sampling_params=generate_pb2.SamplingParams(n=n, max_tokens=max_tokens, **params),
        eos_token_ids=pack_u32([2]),
    )


class Collected:
    """All that came of a request."""

    def __init__(self, n: int) -> None:
        self.token_ids: list[list[int]] = [[] for _ in range(n)]
        self.logprobs: list[list[Any]] = [[] for _ in range(n)]
        self.ends: list[SequenceEnd | None] = [None] * n
        self.prompt_logprobs: list[float] = []
        self.cached_tokens: list[int] = []

    def add(self, chunk: StepChunk) -> None:
        if chunk.cached_tokens is not None:
            self.cached_tokens.append(chunk.cached_tokens)
        self.prompt_logprobs += [entry.logprob for entry in chunk.prompt_logprobs]
        for index, part in chunk.sequences.items():
            self.token_ids[index] += part.token_ids
            self.logprobs[index] += part.logprobs
            assert part.end is None or self.ends[index] is None, "a sequence ends once"
            self.ends[index] = part.end or self.ends[index]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Collected) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


async def read(stream: RequestStream, n: int = 1) -> Collected:
    """Until every sequence has ended."""
    collected = Collected(n)
    async with asyncio.timeout(PATIENCE_S):
        while not all(collected.ends):
            collected.add(await stream.next_chunk())
    return collected


async def read_tokens(stream: RequestStream, collected: Collected, count: int) -> None:
    """Until there are so many tokens at least."""
    async with asyncio.timeout(PATIENCE_S):
        while collected.num_tokens < count:
            collected.add(await stream.next_chunk())


async def run(client: SchedulerClient, message: scheduler_pb2.SubmitRequest) -> Collected:
    """A request from its beginning to its end."""
    n = len(message.sequences)
    stream = await client.submit(message)
    collected = await read(stream, n)
    client.release(stream)
    return collected
