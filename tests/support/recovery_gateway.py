"""A gateway as far as recovery depends on it, and its clients, who know what they must get.

Real: what outlives a scheduler (`RequestStream`), what takes outputs apart (`RunningRequests`), and what pauses a
request whose reader lags (`FlowControl`). The order of calls is that of `SchedulerClient`, which adds the waiting.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from support.fake_executor import true_embedding, true_hypotheses, true_output, true_prompt_logprobs

from quire.columns import unpack_u32
from quire.errors import QuireError
from quire.gateway.flow_control import FlowControl, FlowLimits
from quire.gateway.request_stream import RequestStream, SequenceChunk, StepChunk
from quire.gateway.running_requests import RunningRequests
from quire.internal.v1 import scheduler_pb2
from quire.scheduler.beam_search import BeamSearch
from quire.scheduler.outputs import GatewayOutputs

# So little that a reader who is away for a few steps is paused.
LIMITS = FlowLimits(per_request=6, total=12, fair_share=2)


@dataclass(eq=False)
class Client:
    """Asked for something, and checks every piece of the answer as it comes. Raises AssertionError."""

    request: scheduler_pb2.SubmitRequest
    stream: RequestStream
    outputs: dict[int, list[int]] = field(default_factory=dict)
    # Sequences that need nothing more: finished, or given up by the client.
    ended: set[int] = field(default_factory=set)
    prompt_logprobs: list[float] = field(default_factory=list)

    @property
    def prompt(self) -> list[int]:
        return unpack_u32(self.request.prompt_token_ids)

    @property
    def is_done(self) -> bool:
        return self.ended.issuperset(self.outputs)

    @functools.cached_property
    def truths(self) -> list[list[int]]:
        """What the model generates, by sequence index."""
        params = self.request.sampling_params
        stop = frozenset(params.stop_token_ids).union(unpack_u32(self.request.eos_token_ids))
        if params.use_beam_search:
            search = BeamSearch(
                params.best_of, stop, 0, params.max_tokens, params.length_penalty, params.early_stopping
            )
            return [list(hypothesis.token_ids) for hypothesis in true_hypotheses(self.prompt, search)]
        return [true_output(self.prompt, index, params.max_tokens, stop) for index in range(params.n)]

    @functools.cached_property
    def true_prompt_logprobs(self) -> list[float]:
        return true_prompt_logprobs(self.prompt)

    def take(self, chunk: StepChunk) -> None:
        self.prompt_logprobs += [position.logprob for position in chunk.prompt_logprobs]
        assert self.prompt_logprobs == self.true_prompt_logprobs[: len(self.prompt_logprobs)]
        if chunk.embedding is not None:
            assert chunk.embedding == true_embedding(self.prompt, self.request.pooling)
            self.ended.add(0)
        for index, part in chunk.sequences.items():
            self._take_part(index, part)

    def _take_part(self, index: int, part: SequenceChunk) -> None:
        output, truth = self.outputs[index], self.truths[index]
        output += part.token_ids
        if index in self.ended:  # given up, so it may have been ended anywhere
            assert output == truth[: len(output)]
        elif part.end is None:
            assert output == truth[: len(output)], f"{output} instead of {truth}"
        else:
            assert output == truth, f"ended with {output} instead of {truth}"
            at_stop = truth[-1] in {
                *self.request.sampling_params.stop_token_ids,
                *unpack_u32(self.request.eos_token_ids),
            }
            assert part.end.reason == ("stop" if at_stop else "length")
            self.ended.add(index)


class Gateway:
    """One gateway's requests and its stream from the scheduler, if it has one."""

    def __init__(
        self,
        gateway_id: str,
        set_flow: Callable[[int, bool], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.id = gateway_id
        self.outputs: GatewayOutputs | None = None
        self.flow = FlowControl(set_flow, spawn, LIMITS)
        self.running = RunningRequests(self._give_up)
        self.clients: list[Client] = []

    def accept(self, request: scheduler_pb2.SubmitRequest) -> Client:
        """A new request; it is for the caller to submit it."""
        stream = RequestStream(request, self.flow.new_reader(request.request_key))
        client = Client(request, stream, {sequence.index: [] for sequence in request.sequences})
        # Its own, since attempts change the other one.
        client.request = scheduler_pb2.SubmitRequest.FromString(request.SerializeToString())
        self.running.add(stream)
        self.clients.append(client)
        return client

    def release(self, client: Client) -> None:
        """Its client wants nothing more."""
        self.running.remove(client.stream)
        self.clients.remove(client)

    async def read(self, client: Client) -> bool:
        """A client takes what waits for it, if there is anything."""
        reading = asyncio.ensure_future(client.stream.next_chunk())
        await asyncio.sleep(0)
        if not reading.done():
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return False
        client.take(reading.result())
        if client.is_done:
            self.release(client)
        return True

    @staticmethod
    def _give_up(stream: RequestStream, error: QuireError) -> None:
        raise AssertionError(f"request {stream.key}: {error}")
