"""One request as its gateway knows it: what was asked, and all that the scheduler has given for it so far.

That is what outlives the scheduler. `next_attempt` is the request as another scheduler, or the same one again, has to
be told of it so that it goes on where it was.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from quire.columns import unpack_u32
from quire.errors import QuireError
from quire.gateway.flow_control import ReaderFlow
from quire.internal.v1 import scheduler_pb2
from quire.outputs import FinishReason, TokenLogprobs
from quire.v1 import generate_pb2

# Bytes of an entry of a u32 column.
_ID_BYTES = 4
# More than it takes to be unlucky. A beam search gives nothing before its end.
MAX_LOSSES: Final = 25


@dataclass(frozen=True, slots=True)
class SequenceEnd:
    """How the scheduler ended a sequence."""

    reason: FinishReason
    stop_token_id: int | None = None
    # Of beam search.
    cumulative_logprob: float | None = None


@dataclass(slots=True)
class SequenceChunk:
    """What came for one sequence."""

    token_ids: list[int] = field(default_factory=list)
    # One per token if the request asked for them, else empty.
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: SequenceEnd | None = None


@dataclass(slots=True)
class StepChunk:
    """What came for one request since its reader last looked: one step's, or more if the reader was busy."""

    # By sequence index.
    sequences: dict[int, SequenceChunk] = field(default_factory=dict)
    # Prompt tokens found in the prefix cache, when the request first ran.
    cached_tokens: int | None = None
    # How long the scheduler's queue held it, in seconds; set with cached_tokens.
    queued_s: float = 0.0
    # Of the prompt's next tokens, from the second on; all of them come before the first token of the output.
    prompt_logprobs: list[generate_pb2.TokenLogprobs] = field(default_factory=list)
    # float32 column: of a pooling request, for which nothing else comes.
    embedding: bytes | None = None

    def of_sequence(self, index: int) -> SequenceChunk:
        """The part of one sequence, made if it is not there."""
        chunk = self.sequences.get(index)
        if chunk is None:
            chunk = self.sequences[index] = SequenceChunk()
        return chunk


class RequestStream:
    """A request and its outputs. Its owner must pass it to `SchedulerClient.release`.

    It has one reader. What comes before the reader looks again is one chunk; how large it may grow is for its flow.
    Whatever comes twice, since a request that is submitted again may be computed again, is dropped.
    """

    def __init__(self, request: scheduler_pb2.SubmitRequest, flow: ReaderFlow) -> None:
        """`request` becomes the stream's own. All is set but its attempt, and no sequence has outputs."""
        self.key = request.request_key
        self.flow = flow
        # Counts up when the request is submitted again; outputs of older attempts are dropped. -1: never submitted.
        self.attempt = -1
        # Whether a scheduler has answered that it has it.
        self.is_accepted = False
        self._request = request
        # Schedulers that were lost with it one after the other, none of which gave anything of it.
        self._num_losses = 0
        self._progress_at_loss = 0
        # Tokens that came, and whether no more will, by sequence index.
        self._outputs = [array("I") for _ in request.sequences]
        self._ended = [False] * len(self._outputs)
        # The position of the token of the prompt whose logprobs come next; the first has none.
        self._next_prompt_position = 1
        self._has_started = False
        self._pending: StepChunk | None = None
        self._error: QuireError | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether more is to come."""
        return self._error is None and not all(self._ended)

    @property
    def is_silent(self) -> bool:
        """Whether nothing is to be expected before its end (a beam search), or while its reader lags."""
        return self._request.sampling_params.use_beam_search or self.flow.is_paused

    async def next_chunk(self) -> StepChunk:
        """Waits for the next chunk. Raises the QuireError that ended the stream, after what came before it."""
        if self._pending is None and self._error is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        chunk, self._pending = self._pending, None
        if chunk is not None:
            self.flow.take()
            return chunk
        assert self._error is not None, "woken for nothing"
        raise self._error

    # What the scheduler gives

    def start(self, cached_tokens: int, queued_s: float) -> None:
        """The request runs. What the first attempt found in the prefix cache counts."""
        if not self._has_started:
            self._has_started = True
            chunk = self._chunk()
            chunk.cached_tokens, chunk.queued_s = cached_tokens, queued_s

    def add_token(self, index: int, position: int, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Adds a token, unless it came before. Raises QuireError if the one before it never came."""
        output = self._outputs[index]
        expected = len(output)
        if position < expected:
            return
        if position > expected:
            raise QuireError(f"the scheduler skipped tokens {expected} to {position - 1} of sequence {index}")
        output.append(token_id)
        chunk = self._chunk().of_sequence(index)
        chunk.token_ids.append(token_id)
        if logprobs is None:
            self.flow.add(1)
        else:
            chunk.logprobs.append(logprobs)
            self.flow.add(2 + len(logprobs.top))

    def add_prompt_logprobs(self, start: int, positions: Sequence[generate_pb2.TokenLogprobs]) -> None:
        """Adds those of `positions`, which begin at token `start` of the prompt, that did not come before.

        Raises QuireError if there are some between these and what came.
        """
        expected = self._next_prompt_position
        if start > expected:
            raise QuireError(f"the scheduler skipped the logprobs of prompt tokens {expected} to {start - 1}")
        new = positions[expected - start :]
        if new:
            self._next_prompt_position = expected + len(new)
            self._chunk().prompt_logprobs.extend(new)

    def add_embedding(self, values: bytes) -> None:
        """Adds what a pooling request is for, which ends it."""
        self._ended[0] = True
        self._chunk().embedding = values

    def add_end(self, index: int, end: SequenceEnd) -> None:
        """The scheduler has ended a sequence."""
        if not self._ended[index]:
            self._ended[index] = True
            self._chunk().of_sequence(index).end = end

    def fail(self, error: QuireError) -> None:
        """Ends the stream after what is pending; only the first error counts."""
        if self._error is None:
            self._error = error
            self._wake()

    # What becomes of it when it has to be submitted again

    def abandon(self, index: int) -> None:
        """Nobody wants more of a sequence: it is not submitted again."""
        self._ended[index] = True

    def end_complete(self, max_model_len: int) -> None:
        """Ends the sequences whose last token came without the message that says so, as the scheduler would have.

        It refuses to go on with them.
        """
        params = self._request.sampling_params
        if self._request.pooling or params.use_beam_search:
            return
        num_prompt_tokens = len(self._request.prompt_token_ids) // _ID_BYTES
        longest = min(params.max_tokens, max_model_len - num_prompt_tokens)
        end_of_sequence = set() if params.ignore_eos else set(unpack_u32(self._request.eos_token_ids))
        for index, output in enumerate(self._outputs):
            if not output:
                continue
            if (newest := output[-1]) in params.stop_token_ids:
                self.add_end(index, SequenceEnd("stop", newest))
            elif newest in end_of_sequence:
                self.add_end(index, SequenceEnd("stop"))
            elif len(output) >= longest:
                self.add_end(index, SequenceEnd("length"))

    def count_loss(self) -> None:
        """A scheduler that had it is gone. Raises QuireError if that is too many: it may be what ends them."""
        progress = sum(map(len, self._outputs)) + self._next_prompt_position
        self._num_losses = 1 if progress > self._progress_at_loss else self._num_losses + 1
        self._progress_at_loss = progress
        if self._num_losses > MAX_LOSSES:
            raise QuireError(f"{MAX_LOSSES} schedulers in a row were lost before they gave anything of this request")

    def next_attempt(self) -> scheduler_pb2.SubmitRequest:
        """The request as it is to be submitted now; from now on only outputs of this attempt are taken.

        A beam search, and a request for an embedding, begin again.
        """
        self.attempt += 1
        request = self._request
        request.attempt = self.attempt
        if not self.attempt:
            return request
        if self._next_prompt_position * _ID_BYTES >= len(request.prompt_token_ids):
            # Nothing of the prompt is to come, so its KV may come from the prefix cache.
            request.sampling_params.ClearField("prompt_logprobs")
        if not request.sampling_params.use_beam_search:
            del request.sequences[:]
            for index, output in enumerate(self._outputs):
                if not self._ended[index]:
                    request.sequences.add(index=index, output_token_ids=output.tobytes())
        return request

    def _chunk(self) -> StepChunk:
        """The chunk that the reader gets next; it runs once its waker is back in the event loop."""
        if self._pending is None:
            self._pending = StepChunk()
            self._wake()
        return self._pending

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
