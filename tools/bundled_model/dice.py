"""Seeded choices for the corpus generator.

A tiny model that learns a flat distribution over forty names is left with forty nearly equal logits there,
and greedy decoding then hangs on rounding. So the generator draws most free choices with *skew*: the first
item of a list is about twice as likely as the second. The best token then leads the second-best clearly
nearly everywhere, while sampling still finds variety in the long tail.
"""

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Dice:
    """A source of reproducible choices, even, skewed, or skewed differently for each key."""

    def __init__(self, seed: int) -> None:
        """Start a stream of choices that the seed determines entirely."""
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """Return true with the given probability."""
        return self._random.random() < probability

    def number(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included, all equally likely."""
        return self._random.randint(low, high)

    def even(self, items: Sequence[Item]) -> Item:
        """Pick with equal chances: for questions, which come from outside and are never predicted."""
        return self._random.choice(items)

    def skewed(self, items: Sequence[Item]) -> Item:
        """Pick with Zipf weights (1, 1/2, 1/3, ...): for everything the model itself must come up with."""
        weights = [1.0 / rank for rank in range(1, len(items) + 1)]
        return self._random.choices(items, weights)[0]

    def keyed(self, key: str, items: Sequence[Item]) -> Item:
        """Pick with skew from a list rotated by the key, so that each key has its own favourite.

        Stories use this to tie, say, the treasure to the hero's name: greedy text then differs from name to
        name and is still confident at every step. The checksum stands in for `hash`, which differs between
        processes.
        """
        turn = zlib.crc32(key.encode()) % len(items)
        return self.skewed([*items[turn:], *items[:turn]])

    def several(self, items: Sequence[Item], count: int) -> list[Item]:
        """Pick some different items, in random order."""
        return self._random.sample(items, count)

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in random order."""
        return self._random.sample(items, len(items))

    def by_weight(self, items: Sequence[Item], weights: Sequence[float]) -> Item:
        """Pick with the given relative weights."""
        return self._random.choices(items, weights)[0]

    def strange_word(self) -> str:
        """Make up a word that means nothing, so that it can only be copied and never guessed."""
        syllables = [self.even("bdfgklmnprstvz") + self.even("aeiou") for _ in range(self.number(2, 4))]
        return "".join(syllables) + self.even(("", "n", "r", "s", "l"))
