"""The random numbers: known answers, and what the draw may depend on."""

from __future__ import annotations

import numpy as np
import pytest

from quire.kernels.philox import philox4x32, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_the_random123_distribution(counter: str, key: str, expected: str) -> None:
    """kat_vectors, philox4x32 10."""
    counters, keys = (
        np.array([[int(word, 16)] for word in words.split()], dtype=np.uint64) for words in (counter, key)
    )
    assert [f"{int(word):08x}" for word in philox4x32(counters, keys)[:, 0]] == expected.split()


def test_columns_are_independent() -> None:
    generator = np.random.default_rng(0)
    counters = generator.integers(0, 2**32, (4, 50), dtype=np.uint64)
    keys = generator.integers(0, 2**32, (2, 50), dtype=np.uint64)
    together = philox4x32(counters, keys)
    for i in range(50):
        assert np.array_equal(philox4x32(counters[:, i : i + 1], keys[:, i : i + 1])[:, 0], together[:, i])


def test_uniform_numbers_are_uniform() -> None:
    numbers = uniform(np.full(100_000, 2**63 + 5), np.arange(100_000), np.zeros(100_000, int))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    # Chi-squared with 99 degrees of freedom: 148 is its 99.9th percentile.
    assert ((counts - 1000) ** 2 / 1000).sum() < 148


def test_every_argument_matters() -> None:
    base = uniform([1], [2], [3])[0]
    others = [uniform([1 + 2**32], [2], [3])[0], uniform([1], [3], [3])[0], uniform([1], [2], [4])[0]]
    assert len({base, *others}) == 4
    assert uniform([1], [2], [3])[0] == base
