"""Logprobs as chats and responses have them: an object per token."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from quire.gateway.openai.frames import finite
from quire.gateway.openai.tokens import TokenView
from quire.outputs import TokenLogprobs


class TopLogprob(Struct):
    """One token of a position's distribution."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobFrame(Struct):
    """One position."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


def logprob_frames(positions: Sequence[TokenLogprobs], tokens: TokenView) -> list[TokenLogprobFrame]:
    """Positions as they are sent."""

    def entry(token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        return tokens.text_of(token_id), finite(logprob), list(tokens.bytes_of(token_id))

    return [
        TokenLogprobFrame(
            *entry(position.token_id, position.logprob),
            [TopLogprob(*entry(token_id, logprob)) for token_id, logprob in position.top],
        )
        for position in positions
    ]
