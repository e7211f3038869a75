"""Texts as numbers without a model: vectors of their words, and signatures of what they hold.

A signature is 25 bands of 5 MinHashes. Sets that share a part p of their values share a band with p ** 5, and any of the
bands with 99 % where p is 0.7: comparing those that share any finds the alike and few others. None of the constants are
drawn: all is the same in every process, and however texts are put into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from sklearn.feature_extraction import FeatureHasher
from sklearn.preprocessing import normalize

from ultramed_rl.data.likeness import read_words
from ultramed_rl.store.digests import key_number

_CELLS = 3  # numbers of a vector that a word or pair is counted in, so that no two are counted in the same
BANDS, BAND_HASHES = 25, 5
_ROWS = 256  # sets hashed together, so that their values stay in the processor's cache
_number = lru_cache(1 << 18)(key_number)


def hash_set(words: Iterable[str]) -> np.ndarray:
    """uint64 [n]: a number for each different word, in the order of the first ones."""
    return np.array([_number(word) for word in dict.fromkeys(words)], dtype=np.uint64)


@dataclass(frozen=True)
class HashedEmbedder:
    """Texts to unit vectors without a model: signed counts of hashed words and word pairs.

    They know spelling, not meaning: two texts are near if they share words in the same order. Feature hashing is
    that of arXiv 0902.2206; counts are damped to sign(c) log(1 + |c|). A text without letters or digits gives
    zeros, which are near to nothing. A text's vector doesn't depend on the others.
    """

    width: int = 512

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """-> float32 [n, width], rows of length 1."""
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        hasher = FeatureHasher(self.width, input_type="string", dtype=np.float32)
        counts = hasher.transform(map(_features, texts))
        counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
        unit: np.ndarray = normalize(counts).toarray()
        return unit


def _features(text: str) -> Iterator[str]:
    words = read_words(text)
    for gram in (*words, *map(" ".join, pairwise(words))):
        yield from (f"{cell} {gram}" for cell in range(_CELLS))


def minhash_keys(sets: Sequence[np.ndarray]) -> np.ndarray:
    """-> uint64 [n, `BANDS`], a number for every band of `BAND_HASHES` MinHashes; 0 for an empty set.

    A hash is the same for two sets with the probability of their Jaccard similarity (Broder 1997); it is the high half of
    a x + b, which is enough for values that are hashes already.
    """
    keys = np.zeros((len(sets), BANDS), dtype=np.uint64)
    factors, shifts = _mix(np.arange(1, 2 * BANDS * BAND_HASHES + 1, dtype=np.uint64)).reshape(2, -1)
    filled = [row for row, own in enumerate(sets) if len(own)]
    for rows in (filled[first : first + _ROWS] for first in range(0, len(filled), _ROWS)):
        values = np.concatenate([sets[row] for row in rows])
        starts = np.cumsum([0, *(len(sets[row]) for row in rows[:-1])])
        for place, (factor, shift) in enumerate(zip(factors | np.uint64(1), shifts, strict=True)):
            smallest = np.minimum.reduceat((values * factor + shift) >> np.uint64(32), starts)
            band = place // BAND_HASHES
            keys[rows, band] = _mix(keys[rows, band] * np.uint64(31) + smallest + np.uint64(1))
    return keys


def _mix(values: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one, every bit depending on all (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
