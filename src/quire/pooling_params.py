"""How texts become vectors: `PoolingParams`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from quire.errors import InvalidRequestError
from quire.v1 import generate_pb2

# last: the last token's state is the embedding. mean: the mean of all tokens' states.
Pooling = Literal["last", "mean"]

_TO_PROTO: Final[dict[Pooling, generate_pb2.PoolingType.ValueType]] = {
    "last": generate_pb2.POOLING_TYPE_LAST,
    "mean": generate_pb2.POOLING_TYPE_MEAN,
}
_FROM_PROTO: Final[dict[int, Pooling]] = {number: pooling for pooling, number in _TO_PROTO.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """How inputs become vectors. Raises InvalidRequestError, with `field`, for what is out of range.

    pooling: None for the model's own.
    dimensions: keep the first so many, and scale the vector to length 1 again; None for all.
    truncate_prompt_tokens: keep the last so many tokens of an input; -1 for as many as fit, None to refuse others.
    """

    pooling: Pooling | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in _TO_PROTO:
            message = f'pooling must be "last" or "mean", not {self.pooling!r}'
            raise InvalidRequestError(message, field="pooling")
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidRequestError(f"dimensions must be at least 1, not {self.dimensions}", field="dimensions")
        kept = self.truncate_prompt_tokens
        if kept is not None and kept != -1 and kept < 1:
            message = f"truncate_prompt_tokens must be -1 or at least 1, not {kept}"
            raise InvalidRequestError(message, field="truncate_prompt_tokens")


def pooling_to_proto(pooling: Pooling) -> generate_pb2.PoolingType.ValueType:
    """The enum's number."""
    return _TO_PROTO[pooling]


def pooling_from_proto(number: int) -> Pooling | None:
    """None for the model's own. Raises InvalidRequestError for a number that means nothing."""
    if number == generate_pb2.POOLING_TYPE_UNSPECIFIED:
        return None
    if number not in _FROM_PROTO:
        raise InvalidRequestError(f"pooling has no value {number}", field="pooling")
    return _FROM_PROTO[number]
