"""`truncation: auto`: a conversation that does not fit the context loses its oldest turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quire.errors import ContextLengthError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.engine import Engine
from quire.sampling_params import SamplingParams


async def truncated(engine: Engine, prompt: ChatPrompt, params: SamplingParams) -> ChatPrompt:
    """The prompt with as many of its last turns as leave room for max_tokens, or for one token.

    A turn is what lies between one message of the user's and the next, so that no result is parted from its call.
    The system's messages at the start stay. What does not fit even with the last turn alone is left for the
    validation to refuse. Takes a logarithm of the number of turns in renderings. Raises InvalidRequestError.
    """
    room = engine.limits.max_model_len - (params.max_tokens or 1)

    async def fits(candidate: ChatPrompt) -> bool:
        planned = engine.chat_format.plan(candidate, params).prompt
        try:
            return len(await engine.validator.encode(planned, field="input")) <= room
        except ContextLengthError:
            return False

    if await fits(prompt):
        return prompt
    head, starts = _turns(prompt.messages)
    if not starts:
        return prompt
    # The earliest start that fits, by bisection; the last one is taken as it is.
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(_from(prompt, head, starts[middle])):
            high = middle
        else:
            low = middle + 1
    return _from(prompt, head, starts[low])


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[int, list[int]]:
    """How many messages of the system's come first, and where turns begin that are not the first."""
    head = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    starts = [i for i, message in enumerate(messages) if message["role"] == "user" and i > head]
    return head, starts


def _from(prompt: ChatPrompt, head: int, start: int) -> ChatPrompt:
    return replace(prompt, messages=[*prompt.messages[:head], *prompt.messages[start:]])
