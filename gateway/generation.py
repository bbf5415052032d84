"""One running request: from the scheduler's tokens to text, with stop strings, until every continuation ends."""

from __future__ import annotations

from quire.errors import QuireError
from quire.gateway.detokenizer import Detokenizer
from quire.gateway.scheduler_client import RequestStream, SchedulerClient, SequenceChunk, SequenceEnd, StepChunk
from quire.gateway.stop_strings import StopStrings
from quire.gateway.tokenizer import ModelTokenizer
from quire.gateway.validation import ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, FinishReason, GenerationDelta, Usage


class SequenceText:
    """One continuation: takes its tokens, gives deltas."""

    def __init__(self, index: int, request: ValidRequest, detokenizer: Detokenizer) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._stops = StopStrings(request.params.stop_strings)
        self._min_tokens = request.min_tokens
        self._wants_logprobs = request.params.logprobs is not None
        self.num_tokens = 0
        self.finished = False

    def advance(self, chunk: SequenceChunk) -> CompletionDelta:
        """What a chunk adds. A stop string ends the continuation whatever the scheduler says of it."""
        end, token_ids = chunk.end, chunk.token_ids
        # The last token of a sequence that a token stopped ends the text and is no part of it.
        num_texts = len(token_ids) - 1 if end is not None and end.reason == "stop" else len(token_ids)
        text, num_taken, stop = "", 0, None
        for token_id in token_ids:
            num_taken += 1
            if num_taken <= num_texts:
                emitted, stop = self._watch(self._detokenizer.push(token_id), self.num_tokens + num_taken)
                text += emitted
                if stop is not None:
                    break
        self.num_tokens += num_taken
        if stop is None and end is not None:
            emitted, stop = self._watch(self._detokenizer.flush(), self.num_tokens)
            text += emitted + self._stops.flush()
        reason, stop_reason = _finish(end, stop)
        self.finished = reason is not None
        return CompletionDelta(
            index=self._index,
            text=text,
            token_ids=token_ids[:num_taken],
            logprobs=chunk.logprobs[:num_taken] if self._wants_logprobs else None,
            finish_reason=reason,
            stop_reason=stop_reason,
        )

    def _watch(self, piece: str, num_tokens: int) -> tuple[str, str | None]:
        """What may be emitted of a piece that ends after so many tokens, and the stop string that it completes."""
        if num_tokens <= self._min_tokens:
            return piece, None
        return self._stops.push(piece)


def _finish(end: SequenceEnd | None, stop: str | None) -> tuple[FinishReason | None, str | int | None]:
    if stop is not None:
        return "stop", stop
    return (None, None) if end is None else (end.reason, end.stop_token_id)


class Generation:
    """An asynchronous iterator over a request's deltas; the last one carries the usage.

    Leaving it early must end with `close`, which aborts the request; `async with` does so.
    """

    def __init__(
        self, request: ValidRequest, stream: RequestStream, client: SchedulerClient, tokenizer: ModelTokenizer
    ) -> None:
        self.request = request
        self._stream = stream
        self._client = client
        skip, shown = request.skip_special_tokens, request.shown_token_ids
        self._sequences = [
            SequenceText(index, request, tokenizer.detokenizer(skip_special_tokens=skip, shown=shown))
            for index in range(request.n)
        ]
        self._num_unfinished = request.n
        self._cached_tokens = 0
        self._closed = False

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> GenerationDelta:
        """Raises the QuireError that ended the request; tokens that arrived together come out together."""
        while not self._closed:
            try:
                chunk = await self._stream.next_chunk()
            except QuireError:
                self._closed = True  # whoever failed the stream has ended the request
                raise
            delta = self._advance(chunk)
            if delta.deltas:
                return delta
        raise StopAsyncIteration

    def close(self, reason: scheduler_pb2.AbortReason.ValueType = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED) -> None:
        """Aborts what still runs; does nothing after the end."""
        if not self._closed:
            self._closed = True
            self._client.abort(self._stream, reason)

    def _advance(self, chunk: StepChunk) -> GenerationDelta:
        if chunk.cached_tokens is not None:
            self._cached_tokens = chunk.cached_tokens
        deltas = [
            self._advance_sequence(index, new)
            for index, new in chunk.sequences.items()
            # A sequence that a stop string ended may still get tokens of steps in flight.
            if not self._sequences[index].finished
        ]
        if self._num_unfinished:
            return GenerationDelta(deltas)
        self._closed = True
        self._client.release(self._stream)
        return GenerationDelta(deltas, self._usage())

    def _advance_sequence(self, index: int, chunk: SequenceChunk) -> CompletionDelta:
        sequence = self._sequences[index]
        delta = sequence.advance(chunk)
        if sequence.finished:
            self._num_unfinished -= 1
            if chunk.end is None:
                self._client.abort_sequence(self._stream, index, scheduler_pb2.ABORT_REASON_STOP_STRING)
        return delta

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.request.prompt_token_ids),
            completion_tokens=sum(sequence.num_tokens for sequence in self._sequences),
            cached_tokens=self._cached_tokens,
        )
