"""Several generations as one: the prompts of one REST request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from quire.gateway.engine import Engine
from quire.gateway.generation import Generation
from quire.gateway.validation import ValidRequest
from quire.outputs import CompletionDelta, GenerationDelta, Usage

# (choice, what is new in it), for all choices that a step touched.
Batch = list[tuple[int, CompletionDelta]]


class GenerationGroup:
    """Choices are numbered over the prompts and, within a prompt, over its n continuations, as OpenAI does."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations = generations
        # One per prompt that has ended.
        self.usages: list[Usage] = []

    @classmethod
    async def submit(cls, engine: Engine, requests: Sequence[ValidRequest]) -> GenerationGroup:
        """Submits every prompt; if one is refused its error is raised and none runs."""
        generations: list[Generation] = []
        try:
            for request in requests:
                generations.append(await engine.submit(request))
        except BaseException:
            cls(generations).close()
            raise
        return cls(generations)

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
                yield self._take(delta, 0)
            return
        # With one place, a prompt's next delta waits until the last has been taken.
        queue: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(maxsize=1)
        pumps: list[asyncio.Task[None]] = []
        first = 0
        for generation in self._generations:
            pumps.append(asyncio.create_task(self._pump(generation, first, queue)))
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

    async def _pump(self, generation: Generation, first: int, queue: asyncio.Queue[Batch | Exception | None]) -> None:
        """Ends with None or with the exception that ended the generation."""
        try:
            async for delta in generation:
                await queue.put(self._take(delta, first))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    def _take(self, delta: GenerationDelta, first: int) -> Batch:
        if delta.usage is not None:
            self.usages.append(delta.usage)
        return [(first + part.index, part) for part in delta.deltas]
