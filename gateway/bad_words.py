"""Texts that are not to be generated, as the token sequences that would spell them."""

from __future__ import annotations

from collections.abc import Iterable

from quire.gateway.tokenizer import ModelTokenizer


async def bad_word_sequences(tokenizer: ModelTokenizer, words: Iterable[str]) -> list[tuple[int, ...]]:
    """Each word as it begins a text and as it follows a space, as in vLLM.

    A sequence that ends with another one of them is left out: the shorter one prevents it too.
    """
    sequences: set[tuple[int, ...]] = set()
    for word in words:
        # White space alone is a word as it stands.
        bare = word.lstrip() or word
        for text in (bare, " " + bare):
            sequences.add(tuple(await tokenizer.encode(text, add_special_tokens=False)))
    sequences.discard(())
    return sorted(one for one in sequences if not any(one[i:] in sequences for i in range(1, len(one))))
