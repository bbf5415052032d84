"""How answers show tokens."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from quire.gateway.vocabulary import Vocabulary


class TokenView:
    """Tokens as one request wants to see them."""

    def __init__(self, vocabulary: Vocabulary, *, as_ids: bool = False, with_ids: bool = False) -> None:
        """`as_ids`: in logprobs, "token_id:7" in place of texts. `with_ids`: choices carry their token ids."""
        self._vocabulary = vocabulary
        self._as_ids = as_ids
        self.with_ids = with_ids

    def text_of(self, token_id: int) -> str:
        """A token's name in logprobs."""
        return f"token_id:{token_id}" if self._as_ids else self._vocabulary.text_of(token_id)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes a token adds to the output."""
        return self._vocabulary.bytes_of(token_id)

    def ids(self, token_ids: Sequence[int]) -> Sequence[int] | UnsetType:
        """`token_ids` of a choice, if asked for."""
        return token_ids if self.with_ids else UNSET
