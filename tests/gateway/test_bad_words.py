"""Texts → the token sequences that spell them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.gateway.bad_words import bad_word_sequences
from quire.gateway.tokenizer import ModelTokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _sequences(folder: Path, *words: str) -> tuple[ModelTokenizer, list[tuple[int, ...]]]:
    tokenizer = await ModelTokenizer.load(str(folder))
    return tokenizer, await bad_word_sequences(tokenizer, words)


async def test_a_word_is_banned_at_the_start_and_after_a_space(model_folder: Path) -> None:
    tokenizer, sequences = await _sequences(model_folder, " hello")
    spelled = {tuple(await tokenizer.encode(text)) for text in ("hello", " hello")}
    assert set(sequences) <= spelled
    assert all(any(ids[-len(one) :] == one for one in sequences) for ids in spelled)
    tokenizer.close()


async def test_what_a_shorter_sequence_prevents_is_left_out(model_folder: Path) -> None:
    """A byte that merges with nothing: with a space before it, it is banned already."""
    tokenizer, sequences = await _sequences(model_folder, "~", "~~", "x~")
    assert sequences == [tuple(await tokenizer.encode("~"))]
    tokenizer.close()


async def test_white_space_is_a_word_too(model_folder: Path) -> None:
    tokenizer, sequences = await _sequences(model_folder, "\n")
    assert tuple(await tokenizer.encode("\n")) in sequences
    tokenizer.close()
