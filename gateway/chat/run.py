"""One running chat: a generation whose text is taken apart as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from quire.gateway.chat.deltas import ChatDelta
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.engine import Engine
from quire.gateway.generation import Generation
from quire.gateway.validation import RequestContext, ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, TokenLogprobs, Usage
from quire.sampling_params import SamplingParams


class ChatRun:
    """The n choices of one chat. Whoever leaves it early must `close` it, which aborts it."""

    def __init__(self, generation: Generation) -> None:
        """Use `submit`."""
        self._generation = generation
        # Its only one, once it has ended.
        self.usages: list[Usage] = []
        # The same, if asked for, from its first batch on.
        self.prompt_logprobs: dict[int, Sequence[TokenLogprobs | None]] = {}

    @classmethod
    async def submit(
        cls,
        engine: Engine,
        prompt: ChatPrompt,
        params: SamplingParams,
        context: RequestContext,
        *,
        field: str = "messages",
    ) -> ChatRun:
        """Validates a chat and queues it; `field` is what the client calls its messages. Raises QuireError."""
        valid = await engine.validator.validate(prompt, params, context, field=field)
        return cls(await engine.submit(valid))

    @property
    def requests(self) -> Sequence[ValidRequest]:
        """Its only one."""
        return [self._generation.request]

    @property
    def num_choices(self) -> int:
        return self._generation.request.n

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        return self._generation.request.prompt_token_ids

    async def batches(self) -> AsyncGenerator[Sequence[tuple[int, ChatDelta]], None]:
        """(choice, what is new in it), as it comes, for all choices that a step touched.

        Raises the QuireError that ends the run.
        """
        async for delta in self._generation:
            if delta.prompt_logprobs is not None:
                self.prompt_logprobs[0] = delta.prompt_logprobs
            if delta.usage is not None:
                self.usages.append(delta.usage)
            yield [(part.index, _text_only(part)) for part in delta.deltas]

    def close(self, reason: scheduler_pb2.AbortReason.ValueType = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED) -> None:
        """Aborts what still runs."""
        self._generation.close(reason)


def _text_only(part: CompletionDelta) -> ChatDelta:
    return ChatDelta(
        index=part.index,
        content=part.text,
        token_ids=part.token_ids,
        logprobs=part.logprobs,
        finish_reason=part.finish_reason,
        stop_reason=part.stop_reason,
    )
