"""A stream that must not notice what others do to the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
from support.fake_scheduler import FakeScheduler, Pause
from support.gateway_fixtures import MODEL, Gateway

# Printable tokens of the tiny tokenizer.
_TOKENS = (70, 71, 72)
_WAIT_S = 60


class Bystander:
    """A stream whose tokens come when the test lets them."""

    def __init__(self, lines: AsyncIterator[str], turns: Sequence[asyncio.Event]) -> None:
        self._lines = lines
        self._turns = list(turns)

    async def gets_a_token(self) -> None:
        """The next token is made, and arrives."""
        self._turns.pop(0).set()
        assert '"choices"' in await self._event()

    async def _event(self) -> str:
        async with asyncio.timeout(_WAIT_S):
            async for line in self._lines:
                if line:
                    return line
        raise AssertionError("the stream has ended")

    async def ends_well(self) -> None:
        """All tokens that are left come, and the end."""
        while self._turns:
            await self.gets_a_token()
        while (event := await self._event()) != "data: [DONE]":
            assert "error" not in event


@asynccontextmanager
async def streaming(gateway: Gateway, scheduler: FakeScheduler) -> AsyncIterator[Bystander]:
    """A stream that has its first token; at the end of the block it must end well."""
    turns = [asyncio.Event() for _ in _TOKENS]
    scheduler.script = lambda request, index: [
        entry for turn, token in zip(turns, _TOKENS, strict=True) for entry in (Pause(turn), token)
    ]
    body = {"model": MODEL, "prompt": "x", "max_tokens": len(_TOKENS), "stream": True}
    async with (
        httpx.AsyncClient(base_url=gateway.url, timeout=_WAIT_S) as http,
        http.stream("POST", "/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        bystander = Bystander(answer.aiter_lines(), turns)
        await bystander.gets_a_token()
        yield bystander
        await bystander.ends_well()
