from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models

from quire.config import BUNDLED_MODEL
from quire.gateway.detokenizer import Detokenizer, WindowDetokenizer, new_detokenizer
from quire.gateway.vocabulary import Vocabulary

TINY = tiny_tokenizer.train()
BUNDLED = BUNDLED_MODEL / "tokenizer.json"


def sentencepiece_like() -> Tokenizer:
    """As Llama 2's: words with ▁, byte tokens for what is not a word."""
    words = ["<unk>", "▁", "▁hello", "▁world", "lo", "é", "▁x"]
    pieces = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


SENTENCEPIECE = sentencepiece_like()


def stream(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


def text_of(tokenizer: Tokenizer, token_ids: list[int], *, skip: bool = True) -> list[str]:
    vocabulary = Vocabulary(tokenizer)
    return stream(
        new_detokenizer(tokenizer, vocabulary, vocabulary.special_token_ids if skip else frozenset()), token_ids
    )


# Ids past the end of the vocabulary too: a padded model can sample them.
@given(st.lists(st.integers(0, TINY.get_vocab_size() + 2)), st.booleans())
def test_any_byte_level_tokens_give_the_full_decode(token_ids: list[int], skip: bool) -> None:
    expected = TINY.decode(token_ids, skip_special_tokens=skip)
    assert "".join(text_of(TINY, token_ids, skip=skip)) == expected


@pytest.mark.skipif(not BUNDLED.exists(), reason="the bundled model has not been built")
def test_the_bundled_tokenizer_gives_the_full_decode() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED))

    @given(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1)), st.booleans())
    def check(token_ids: list[int], skip: bool) -> None:
        expected = tokenizer.decode(token_ids, skip_special_tokens=skip)
        assert "".join(text_of(tokenizer, token_ids, skip=skip)) == expected

    check()


@given(st.text())
def test_no_text_is_emitted_in_half_characters(text: str) -> None:
    pieces = text_of(TINY, TINY.encode(text, add_special_tokens=False).ids, skip=False)
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces) or "\ufffd" in text


def test_an_emoji_comes_with_its_last_byte() -> None:
    token_ids = [TINY.token_to_id(sign) for sign in ("ð", "Ł", "ĺ", "Ģ")]
    assert text_of(TINY, token_ids) == ["", "", "", "😀", ""]


def test_half_a_character_at_the_end_is_flushed_as_a_replacement_sign() -> None:
    token_ids = [TINY.token_to_id(sign) for sign in ("ð", "Ł")]
    assert text_of(TINY, token_ids) == ["", "", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_are_left_out_or_kept() -> None:
    token_ids = TINY.encode("<|im_start|>hello<é not special>").ids
    assert "".join(text_of(TINY, token_ids, skip=True)) == TINY.decode(token_ids, skip_special_tokens=True)
    assert "".join(text_of(TINY, token_ids, skip=False)).startswith("<|im_start|>hello")


words = st.integers(1, 6).map(lambda token_id: [token_id])
characters = st.characters(codec="utf-8").map(
    lambda character: [SENTENCEPIECE.token_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
)
special = st.sampled_from(["<s>", "</s>"]).map(lambda token: [SENTENCEPIECE.token_to_id(token)])


@given(st.lists(words | characters | special), st.booleans())
def test_sentencepiece_tokens_of_valid_text_give_the_full_decode(parts: list[list[int]], skip: bool) -> None:
    token_ids = [token_id for part in parts for token_id in part]
    expected = SENTENCEPIECE.decode(token_ids, skip_special_tokens=skip)
    assert "".join(text_of(SENTENCEPIECE, token_ids, skip=skip)) == expected


@given(st.lists(st.integers(0, SENTENCEPIECE.get_vocab_size() - 1), max_size=60))
def test_invalid_bytes_are_not_held_back_for_ever(token_ids: list[int]) -> None:
    detokenizer = WindowDetokenizer(SENTENCEPIECE)
    for token_id in token_ids:
        detokenizer.push(token_id)
        assert len(detokenizer._window) <= 24
    detokenizer.flush()


def test_tokens_alone_have_bytes_and_texts() -> None:
    vocabulary = Vocabulary(SENTENCEPIECE)
    assert vocabulary.bytes_of(SENTENCEPIECE.token_to_id("<0xF0>")) == b"\xf0"
    assert vocabulary.text_of(SENTENCEPIECE.token_to_id("▁hello")) == " hello"
    assert vocabulary.bytes_of(100_000) == b""
    assert Vocabulary(TINY).text_of(TINY.token_to_id("ð")) == "\N{REPLACEMENT CHARACTER}"
