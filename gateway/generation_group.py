"""Several generations as one: the prompts of one REST request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from quire.gateway.engine import Engine
from quire.gateway.generation import Generation
from quire.gateway.validation import ValidRequest
from quire.outputs import CompletionDelta, GenerationDelta, TokenLogprobs, Usage

# (choice, what is new in it), for all choices that a step touched.
Batch = list[tuple[int, CompletionDelta]]


class GenerationGroup:
    """Choices are numbered over the prompts and, within a prompt, over its n continuations, as OpenAI does."""

    def __init__(self, generations: Sequence[Generation], *, prompts_only: bool = False) -> None:
        self._generations = generations
        self._prompts_only = prompts_only
        # One per prompt that has ended.
        self.usages: list[Usage] = []
        # By prompt, where asked for, from its first batch on.
        self.prompt_logprobs: dict[int, Sequence[TokenLogprobs | None]] = {}

    @classmethod
    async def submit(
        cls, engine: Engine, requests: Sequence[ValidRequest], *, prompts_only: bool = False
    ) -> GenerationGroup:
        """Submits every prompt; if one is refused its error is raised and none runs.

        `prompts_only`: their outputs, which have one token, are dropped.
        """
        generations: list[Generation] = []
        try:
            for request in requests:
                generations.append(await engine.submit(request))
        except BaseException:
            cls(generations).close()
            raise
        return cls(generations, prompts_only=prompts_only)

    @property
    def requests(self) -> Sequence[ValidRequest]:
        """One per prompt."""
        return [generation.request for generation in self._generations]

    @property
    def num_choices(self) -> int:
        """Over all prompts."""
        return sum(generation.request.n for generation in self._generations)

    def close(self) -> None:
        """Aborts what still runs."""
        for generation in self._generations:
            generation.close()

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """What is new, as it comes. Raises the QuireError that ends any of the generations."""
        if len(self._generations) == 1:
            async for delta in self._generations[0]:
                yield self._take(delta, 0, 0)
            return
        # With one place, a prompt's next delta waits until the last has been taken.
        queue: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(maxsize=1)
        pumps: list[asyncio.Task[None]] = []
        first = 0
        for prompt, generation in enumerate(self._generations):
            pumps.append(asyncio.create_task(self._pump(generation, prompt, first, queue)))
            first += generation.request.n
        try:
            running = len(pumps)
            while running:
                entry = await queue.get()
                if isinstance(entry, Exception):
                    raise entry
                if entry is None:
                    running -= 1
                else:
                    yield entry
        finally:
            for pump in pumps:
                pump.cancel()

    async def _pump(
        self, generation: Generation, prompt: int, first: int, queue: asyncio.Queue[Batch | Exception | None]
    ) -> None:
        """Ends with None or with the exception that ended the generation."""
        try:
            async for delta in generation:
                await queue.put(self._take(delta, prompt, first))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    def _take(self, delta: GenerationDelta, prompt: int, first: int) -> Batch:
        """A prompt's batch, whose choices are numbered from `first`."""
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs[prompt] = delta.prompt_logprobs
        if (usage := delta.usage) is not None:
            self.usages.append(replace(usage, completion_tokens=0) if self._prompts_only else usage)
        if self._prompts_only:
            return [(first + part.index, CompletionDelta(part.index, finish_reason="length")) for part in delta.deltas]
        return [(first + part.index, part) for part in delta.deltas]
