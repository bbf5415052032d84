"""One running request: from the scheduler's tokens to text, with stop strings, until every continuation ends."""

from __future__ import annotations

from collections.abc import Sequence

from quire.errors import QuireError
from quire.gateway.detokenizer import Detokenizer
from quire.gateway.scheduler_client import RequestStream, SchedulerClient, SequenceEnd, StepChunk
from quire.gateway.stop_strings import StopStrings
from quire.gateway.tokenizer import ModelTokenizer
from quire.gateway.validation import ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, FinishReason, GenerationDelta, TokenLogprobs, Usage

Token = tuple[int, TokenLogprobs | None]


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

    def advance(self, tokens: Sequence[Token], end: SequenceEnd | None) -> CompletionDelta:
        """What these tokens add. A stop string ends the continuation whatever the scheduler says of it."""
        text: list[str] = []
        taken: list[Token] = []
        # The last token of a sequence that a token stopped ends the text and is no part of it.
        num_texts = len(tokens) - 1 if end is not None and end.reason == "stop" else len(tokens)
        stop: str | None = None
        for position, token in enumerate(tokens):
            taken.append(token)
            self.num_tokens += 1
            if position < num_texts:
                stop = self._add_text(self._detokenizer.push(token[0]), text)
            if stop is not None:
                break
        if stop is None and end is not None:
            stop = self._add_text(self._detokenizer.flush(), text)
            text.append(self._stops.flush())
        reason, stop_reason = _finish(end, stop)
        self.finished = reason is not None
        return CompletionDelta(
            index=self._index,
            text="".join(text),
            token_ids=[token_id for token_id, _ in taken],
            logprobs=[logprobs for _, logprobs in taken if logprobs] if self._wants_logprobs else None,
            finish_reason=reason,
            stop_reason=stop_reason,
        )

    def _add_text(self, piece: str, text: list[str]) -> str | None:
        """Appends what may be emitted of a piece; returns the stop string that it completes."""
        if self.num_tokens <= self._min_tokens:
            text.append(piece)
            return None
        emitted, stop = self._stops.push(piece)
        text.append(emitted)
        return stop


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
        skip = request.skip_special_tokens
        self._sequences = [
            SequenceText(index, request, tokenizer.detokenizer(skip_special_tokens=skip)) for index in range(request.n)
        ]
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
        tokens: dict[int, list[Token]] = {index: [] for index in chunk.ended}
        for index, token_id, logprobs in chunk.tokens:
            tokens.setdefault(index, []).append((token_id, logprobs))
        deltas = [
            self._advance_sequence(self._sequences[index], index, new, chunk.ended.get(index))
            for index, new in tokens.items()
            # A sequence that a stop string ended may still get tokens of steps in flight.
            if not self._sequences[index].finished
        ]
        if not all(sequence.finished for sequence in self._sequences):
            return GenerationDelta(deltas)
        self._closed = True
        self._client.release(self._stream)
        return GenerationDelta(deltas, self._usage())

    def _advance_sequence(
        self, sequence: SequenceText, index: int, tokens: Sequence[Token], end: SequenceEnd | None
    ) -> CompletionDelta:
        delta = sequence.advance(tokens, end)
        if sequence.finished and end is None:
            self._client.abort_sequence(self._stream, index, scheduler_pb2.ABORT_REASON_STOP_STRING)
        return delta

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.request.prompt_token_ids),
            completion_tokens=sum(sequence.num_tokens for sequence in self._sequences),
            cached_tokens=self._cached_tokens,
        )
