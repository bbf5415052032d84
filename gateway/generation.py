"""One running request: from the scheduler's tokens to text, with stop strings, until every continuation ends."""

from __future__ import annotations

from quire.errors import QuireError
from quire.gateway.best_of import BestOf
from quire.gateway.detokenizer import Detokenizer
from quire.gateway.request_record import RecordKeeper
from quire.gateway.request_stream import RequestStream, SequenceChunk, SequenceEnd, StepChunk
from quire.gateway.scheduler_client import SchedulerClient
from quire.gateway.stop_strings import StopStrings
from quire.gateway.tokenizer import ModelTokenizer
from quire.gateway.validation import ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, FinishReason, GenerationDelta, TokenLogprobs, Usage


class SequenceText:
    """One continuation: takes its tokens, gives deltas."""

    def __init__(self, index: int, request: ValidRequest, detokenizer: Detokenizer) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._include_stop = request.include_stop
        self._stops = StopStrings(request.params.stop_strings, include=request.include_stop)
        self._min_tokens = request.min_tokens
        self._wants_logprobs = request.needs_logprobs
        self.num_tokens = 0
        self.finished = False

    def advance(self, chunk: SequenceChunk) -> CompletionDelta:
        """What a chunk adds. A stop string ends the continuation whatever the scheduler says of it."""
        end, token_ids = chunk.end, chunk.token_ids
        # The last token of a sequence that a token stopped ends the text and is no part of it, unless asked for.
        ends_before = end is not None and end.reason == "stop" and not self._include_stop
        num_texts = len(token_ids) - 1 if ends_before else len(token_ids)
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
            cumulative_logprob=None if end is None else end.cumulative_logprob,
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
        self,
        request: ValidRequest,
        stream: RequestStream,
        client: SchedulerClient,
        tokenizer: ModelTokenizer,
        keeper: RecordKeeper,
    ) -> None:
        self.request = request
        self._keeper = keeper
        self._stream = stream
        self._client = client
        skip, shown = request.skip_special_tokens, request.shown_token_ids
        self._sequences = [
            SequenceText(index, request, tokenizer.detokenizer(skip_special_tokens=skip, shown=shown))
            for index in range(request.num_sequences)
        ]
        self._num_unfinished = request.num_sequences
        self._finish_reasons: list[FinishReason] = []
        self._best_of: BestOf | None = None
        if request.num_sequences > request.n:
            with_logprobs = request.params.logprobs is not None
            self._best_of = BestOf(request.num_sequences, request.n, with_logprobs=with_logprobs)
        self._cached_tokens = 0
        # Until they leave with the first tokens; None if they are not asked for, or have left.
        self._prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if request.params.prompt_logprobs is None else [None]
        )
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
            except QuireError as error:
                self._closed = True  # whoever failed the stream has ended the request
                self._end_record(error=error)
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
            self._end_record(num_aborted=self._num_unfinished)

    def _advance(self, chunk: StepChunk) -> GenerationDelta:
        if chunk.cached_tokens is not None:
            self._cached_tokens = chunk.cached_tokens
            self._keeper.started(chunk.cached_tokens, chunk.queued_s)
        if chunk.prompt_logprobs:
            self._keep_prompt_logprobs(chunk)
        deltas = [
            self._advance_sequence(index, new)
            for index, new in chunk.sequences.items()
            # A sequence that a stop string ended may still get tokens of steps in flight.
            if not self._sequences[index].finished
        ]
        if num_tokens := sum(len(delta.token_ids) for delta in deltas):
            self._keeper.tokens(num_tokens)
        if self._best_of is not None:
            self._best_of.add(deltas)
            deltas = [] if self._num_unfinished else self._best_of.best()
        if self._keeper.record.outputs is not None:
            for delta in deltas:
                self._keeper.text(delta.index, delta.text)
        prompt_logprobs = None
        if deltas and self._prompt_logprobs is not None:
            prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        if self._num_unfinished:
            return GenerationDelta(deltas, prompt_logprobs=prompt_logprobs)
        self._closed = True
        self._client.release(self._stream)
        self._end_record()
        return GenerationDelta(deltas, self._usage(), prompt_logprobs)

    def _keep_prompt_logprobs(self, chunk: StepChunk) -> None:
        known = self._prompt_logprobs
        if known is not None:
            token_ids = self.request.prompt_token_ids[len(known) :]
            known.extend(map(TokenLogprobs.from_proto, token_ids, chunk.prompt_logprobs))

    def _advance_sequence(self, index: int, chunk: SequenceChunk) -> CompletionDelta:
        sequence = self._sequences[index]
        delta = sequence.advance(chunk)
        if delta.finish_reason is not None:
            self._num_unfinished -= 1
            self._finish_reasons.append(delta.finish_reason)
            if chunk.end is None:
                self._client.abort_sequence(self._stream, index, scheduler_pb2.ABORT_REASON_STOP_STRING)
        return delta

    def _end_record(self, *, num_aborted: int = 0, error: QuireError | None = None) -> None:
        """`num_aborted`: sequences that did not end by themselves."""
        self._finish_reasons += ["abort"] * num_aborted
        self._keeper.record.num_attempts = max(1, self._stream.attempt + 1)
        lengths = [sequence.num_tokens for sequence in self._sequences]
        self._keeper.end(self._finish_reasons, lengths, error)

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.request.prompt_token_ids),
            completion_tokens=sum(sequence.num_tokens for sequence in self._sequences),
            cached_tokens=self._cached_tokens,
        )
