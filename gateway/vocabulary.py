"""What each token of a vocabulary stands for, in bytes and in text."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# SentencePiece's sign for a space.
_METASPACE = "▁"


class Vocabulary:
    """The tokens of a `tokenizers` tokenizer, by id. Answers are kept: a token is looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        # Whether the full decode is no more than the UTF-8 decode of the tokens' bytes, one after the other.
        self.is_byte_level = _decoder_kinds(tokenizer) == ["ByteLevel"]
        # In characters of the text that a token stands for, or more.
        self.longest_token = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
        self._bytes: dict[int, bytes] = {}
        self._whole_texts: dict[int, str | None] = {}

    def id_of(self, token: str) -> int | None:
        """The id of a token that is written like this; None if there is none."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes a token adds to the output; empty for an id that the tokenizer does not know."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._to_bytes(self._tokenizer.id_to_token(token_id))
        return found

    def whole_text_of(self, token_id: int) -> str | None:
        """A token that begins and ends with a character, as text; None for any other."""
        try:
            return self._whole_texts[token_id]
        except KeyError:
            text = self._whole_texts[token_id] = decode_whole(self.bytes_of(token_id))
            return text

    def text_of(self, token_id: int) -> str:
        """A token alone, as text; U+FFFD stands for a part of a character."""
        return self.bytes_of(token_id).decode(errors="replace")

    def _to_bytes(self, token: str | None) -> bytes:
        if token is None:
            return b""
        if self.is_byte_level:
            # As the decoder does: a token with any sign outside the alphabet (an added token) is plain text.
            values = [self._byte_alphabet.get(sign) for sign in token]
            return token.encode() if None in values else bytes(value for value in values if value is not None)
        byte = byte_of(token)
        if byte is not None:
            return byte
        return token.replace(_METASPACE, " ").encode()

    @cached_property
    def _byte_alphabet(self) -> dict[str, int]:
        """Byte-level BPE's printable sign for each byte (Radford et al. 2019, GPT-2)."""
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        signs = {chr(byte): byte for byte in printable}
        return signs | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def byte_of(token: str | None) -> bytes | None:
    """The byte that a token of SentencePiece's byte fallback (`<0xE2>`) stands for; None for other tokens."""
    byte = None if token is None else _BYTE_TOKEN.fullmatch(token)
    return None if byte is None else bytes.fromhex(byte[1])


def decode_whole(data: bytes) -> str | None:
    """UTF-8 as text; None where it does not begin and end with a character, or is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _decoder_kinds(tokenizer: Tokenizer) -> list[str]:
    decoder: dict[str, Any] = json.loads(tokenizer.to_str())["decoder"] or {}
    parts: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return [part.get("type", "") for part in parts]
