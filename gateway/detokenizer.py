"""Token by token to text, never emitting half a character.

The texts of all pushes and of the flush, joined, are what the tokenizer decodes from all tokens at once. The cost
of a token does not depend on how many came before.
"""

from __future__ import annotations

import codecs
from typing import Protocol

from tokenizers import Tokenizer

from quire.gateway.vocabulary import Vocabulary, byte_of, decode_whole

# A character has at most four bytes, so what is still incomplete after this many tokens will stay so.
_MAX_HELD_TOKENS = 8
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """The text of one sequence."""

    def push(self, token_id: int) -> str:
        """The text that is certain now that this token has come; may be empty."""

    def flush(self) -> str:
        """What was held back; nothing may be pushed after it."""


def new_detokenizer(tokenizer: Tokenizer, vocabulary: Vocabulary, skipped: frozenset[int]) -> Detokenizer:
    """The detokenizer that suits the tokenizer's own decoder; `skipped` are tokens without text."""
    if vocabulary.is_byte_level:
        return ByteLevelDetokenizer(vocabulary, skipped)
    return WindowDetokenizer(tokenizer, skipped)


class ByteLevelDetokenizer:
    """For byte-level BPE, where the text is the UTF-8 decode of the tokens' bytes."""

    def __init__(self, vocabulary: Vocabulary, skipped: frozenset[int] = frozenset()) -> None:
        self._vocabulary = vocabulary
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # Whether the decoder holds the beginning of a character.
        self._is_inside = False

    def push(self, token_id: int) -> str:
        """See Detokenizer."""
        if token_id in self._skipped:
            return ""
        if not self._is_inside and (text := self._vocabulary.whole_text_of(token_id)) is not None:
            return text
        text = self._decoder.decode(self._vocabulary.bytes_of(token_id))
        self._is_inside = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """See Detokenizer."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other decoder (SentencePiece): decodes a short window of tokens with and without the newest ones.

    The window begins with tokens that have been emitted, so that rules for the beginning of a text (a stripped
    space) apply only there. A run of byte tokens that is not valid UTF-8 comes out as its valid characters and
    replacement signs, whereas the decoder, looking at the whole run, gives replacement signs alone.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        # Tokens whose text has been emitted, then tokens held back.
        self._window: list[int] = []
        self._num_emitted = 0
        self._emitted_text = ""

    def push(self, token_id: int) -> str:
        """See Detokenizer."""
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        num_held = len(self._window) - self._num_emitted
        if text.endswith(_REPLACEMENT) and num_held < _MAX_HELD_TOKENS and not self._ends_whole(num_held):
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """See Detokenizer."""
        return self._emit(self._decode(self._window))

    def _ends_whole(self, num_held: int) -> bool:
        """Whether what is held ends with the bytes of whole characters: a replacement sign is then one of them."""
        run = b""
        for token_id in reversed(self._window[-num_held:]):
            byte = byte_of(self._tokenizer.id_to_token(token_id))
            if byte is None:
                break
            run = byte + run
        return run != b"" and decode_whole(run) is not None

    def _emit(self, text: str) -> str:
        new = text[len(self._emitted_text) :]
        # A token without text of its own (a space that is stripped at the beginning) stays in the window.
        if new:
            self._window = self._window[self._num_emitted :]
            self._num_emitted = len(self._window)
            self._emitted_text = self._decode(self._window)
        return new

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
