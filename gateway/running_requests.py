"""The requests that one gateway has at its scheduler; takes a step's columns apart for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quire.columns import unpack_u32, unpack_u64
from quire.errors import QuireError
from quire.gateway.request_stream import RequestStream, SequenceEnd
from quire.internal.v1 import scheduler_pb2
from quire.outputs import TokenLogprobs, finish_reason_from_proto


class RunningRequests:
    """From their submission until their owners release them, in the order of their arrival."""

    def __init__(self, give_up: Callable[[RequestStream, QuireError], None]) -> None:
        """`give_up` ends a request whose outputs make no sense."""
        self._give_up = give_up
        self._streams: dict[int, RequestStream] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, stream: RequestStream) -> bool:
        return stream.key in self._streams

    def all(self) -> list[RequestStream]:
        """Those that run now."""
        return list(self._streams.values())

    def add(self, stream: RequestStream) -> None:
        self._streams[stream.key] = stream
        self._idle.clear()

    def remove(self, stream: RequestStream) -> None:
        """Forgets a request; what still arrives for it is dropped."""
        self._streams.pop(stream.key, None)
        stream.flow.forget()
        if not self._streams:
            self._idle.set()

    def has(self, key: int) -> bool:
        """Whether the request of this key runs."""
        return key in self._streams

    async def wait_idle(self) -> None:
        """Waits until no request runs."""
        await self._idle.wait()

    def take(self, message: scheduler_pb2.StepOutputs) -> None:
        """Hands a step's columns to the requests they belong to."""
        for started in message.started:
            if stream := self._current(started.request_key, started.attempt):
                stream.start(started.cached_tokens, started.queue_time_ns / 1e9)
        for entry in message.prompt_logprobs:
            if stream := self._current(entry.request_key, entry.attempt):
                try:
                    stream.add_prompt_logprobs(entry.start, entry.positions)
                except QuireError as error:
                    self._give_up(stream, error)
        for embedding in message.embeddings:
            if stream := self._current(embedding.request_key, embedding.attempt):
                stream.add_embedding(embedding.values)
        self._take_tokens(message)
        for end in message.finished:
            reason = finish_reason_from_proto(end.reason)
            stream = self._current(end.request_key, end.attempt)
            if stream is not None and reason is not None:
                stop_token_id = end.stop_token_id if end.HasField("stop_token_id") else None
                logprob = end.cumulative_logprob if end.HasField("cumulative_logprob") else None
                stream.add_end(end.sequence_index, SequenceEnd(reason, stop_token_id, logprob))
        for failed in message.failed:
            if stream := self._current(failed.request_key, failed.attempt):
                stream.fail(QuireError(failed.message))
                self.remove(stream)

    def _take_tokens(self, message: scheduler_pb2.StepOutputs) -> None:
        logprobs = {entry.row: entry.logprobs for entry in message.logprobs}
        rows = zip(
            unpack_u64(message.request_keys),
            unpack_u32(message.sequence_indices),
            unpack_u32(message.attempts),
            unpack_u32(message.positions),
            unpack_u32(message.token_ids),
            strict=True,
        )
        for row, (key, index, attempt, position, token_id) in enumerate(rows):
            stream = self._current(key, attempt)
            if stream is None:
                continue
            entry = logprobs.get(row)
            position_logprobs = None if entry is None else TokenLogprobs.from_proto(token_id, entry)
            try:
                stream.add_token(index, position, token_id, position_logprobs)
            except QuireError as error:
                self._give_up(stream, error)

    def _current(self, key: int, attempt: int) -> RequestStream | None:
        """The running request that an output belongs to, unless it was meant for an older attempt."""
        stream = self._streams.get(key)
        return stream if stream is not None and stream.attempt == attempt else None
