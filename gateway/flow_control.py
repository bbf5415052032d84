"""Back-pressure: what waits for slow readers in one gateway is bounded.

A reader takes all that waits for it at once, and comes back when its client's connection has taken that. Where more
waits than a limit, the request is paused at the scheduler until its reader comes: it computes nothing meanwhile and
holds no KV blocks, so a reader that stops costs the others nothing.

Weights are in numbers kept: a token id is one, and so is each logprob. One takes about 40 bytes without logprobs, and
about 110 bytes with them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """How much may wait before requests are paused. A step or two, already in flight, may come on top."""

    # For one reader.
    per_request: int = 4096
    # For all readers of the gateway; beyond it, whoever has more than `fair_share` waiting is paused.
    total: int = 1 << 18
    fair_share: int = 64


class FlowControl:
    """All readers of one gateway."""

    def __init__(
        self,
        set_flow: Callable[[int, bool], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        limits: FlowLimits | None = None,
    ) -> None:
        """`set_flow` tells the scheduler whether a request, named by its key, is paused; `spawn` runs it aside."""
        self.limits = limits or FlowLimits()
        self.waiting = 0
        self.set_flow = set_flow
        self.spawn = spawn

    def new_reader(self, key: int) -> ReaderFlow:
        """The flow to one request's reader."""
        return ReaderFlow(self, key)


class ReaderFlow:
    """What waits for one reader."""

    __slots__ = ("_control", "_is_telling", "_key", "_told", "is_paused", "waiting")

    def __init__(self, control: FlowControl, key: int) -> None:
        self._control = control
        self._key = key
        self.waiting = 0
        self.is_paused = False
        # What the scheduler knows; None if nobody can say.
        self._told: bool | None = False
        self._is_telling = False

    def add(self, weight: int) -> None:
        """Something more waits."""
        control = self._control
        self.waiting += weight
        control.waiting += weight
        if self.is_paused:
            return
        limits = control.limits
        if self.waiting > limits.per_request or (control.waiting > limits.total and self.waiting > limits.fair_share):
            self._set(paused=True)

    def take(self) -> None:
        """The reader has taken all that waited."""
        self.forget()
        if self.is_paused:
            self._set(paused=False)

    def forget(self) -> None:
        """Nothing waits any more; the request has ended, or its reader was here."""
        self._control.waiting -= self.waiting
        self.waiting = 0

    def restart(self) -> None:
        """The request was submitted again, so it runs; a call that is still on its way may say otherwise."""
        self._told = None if self._is_telling else False
        if self.is_paused:
            self._set(paused=True)

    def _set(self, *, paused: bool) -> None:
        self.is_paused = paused
        if not self._is_telling:
            self._is_telling = True
            self._control.spawn(self._tell())

    async def _tell(self) -> None:
        """One call at a time, since two might overtake each other."""
        try:
            while self._told != self.is_paused:
                self._told = is_paused = self.is_paused
                await self._control.set_flow(self._key, is_paused)
        finally:
            self._is_telling = False
