"""Chats without a model: runs that give what the test says, and the events that answers are written in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import Response

from quire.gateway.chat.deltas import ChatDelta, ChatFinishReason, ToolCallDelta
from quire.outputs import TokenLogprobs, Usage

USAGE = Usage(prompt_tokens=10, completion_tokens=7, cached_tokens=4)


class FakeRun:
    """Gives these deltas, each in a batch of its own, and then fails if there is an error. See ChatRun."""

    def __init__(self, deltas: Sequence[ChatDelta], error: Exception | None = None) -> None:
        self.usages: list[Usage] = []
        self.num_closed = 0
        self._deltas = deltas
        self._error = error

    async def batches(self) -> AsyncGenerator[Sequence[tuple[int, ChatDelta]], None]:
        for delta in self._deltas:
            yield [(0, delta)]
        if self._error is not None:
            raise self._error
        self.usages.append(USAGE)

    def close(self) -> None:
        self.num_closed += 1


def says(text: str, *, tokens: int = 1, logprobs: Sequence[TokenLogprobs] | None = None) -> ChatDelta:
    return ChatDelta(0, content=text, token_ids=[1] * tokens, logprobs=logprobs)


def thinks(text: str, *, tokens: int = 1) -> ChatDelta:
    return ChatDelta(0, reasoning_content=text, token_ids=[1] * tokens)


def calls(index: int, arguments: str = "", call_id: str | None = None, name: str | None = None) -> ChatDelta:
    return ChatDelta(0, tool_calls=[ToolCallDelta(index, arguments, call_id, name)], token_ids=[1])


def ends(reason: ChatFinishReason = "stop", stop_reason: str | int | None = None) -> ChatDelta:
    return ChatDelta(0, token_ids=[2], finish_reason=reason, stop_reason=stop_reason)


# A thought, words, and two calls.
WHOLE_TURN = [
    thinks("Let me "),
    thinks("see."),
    says("I will "),
    says("look."),
    calls(0, call_id="call_a", name="look"),
    calls(0, '{"where": '),
    calls(0, '"Paris"}'),
    calls(1, "{}", call_id="call_b", name="listen"),
    ends("tool_calls"),
]


async def body_of(response: Response) -> str:
    """What a response sends to a client that stays."""
    sent = bytearray()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    await response({"type": "http"}, receive, send)
    return sent.decode()


def named_events(text: str) -> list[dict[str, Any]]:
    """The data of named server-sent events; the name is that of the data's type."""
    assert text.endswith("\n\n")
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        parsed = json.loads(data.removeprefix("data: "))
        assert name == f"event: {parsed['type']}"
        events.append(parsed)
    return events
