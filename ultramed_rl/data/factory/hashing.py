"""Texts as numbers, by array operations over whole blocks: hashed words, n-grams, vectors without a model, signatures.

texts --> bytes --> a 64-bit number for every word --> n-grams --> signed counts in 512 numbers: vectors
                                                   --> sets --> MinHash bands

Sets that share a part p of their values share a band of 5 hashes with p ** 5, and any of 25 bands with 99 % where p is
0.7: comparing those that share any finds the alike and few others. None of the constants are drawn: all is the same
in every process, and however texts are put into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SPACES = np.array([byte in b"\0\t\n\v\f\r " for byte in range(256)])
_DIGITS = np.array([byte in b"0123456789" for byte in range(256)])
_LETTERS = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
_BASE, _STEP = 0x9E3779B97F4A7C15, np.uint64(0xD6E8FEB86659FD93)
_LONGEST = 64  # bytes of a word after which the powers repeat
_POWERS = np.array([pow(_BASE, 1 + i, 2**64) for i in range(_LONGEST)], dtype=np.uint64)
_ROWS = 256  # texts that become vectors together
_CELLS = 3  # numbers of a vector that a word or pair is counted in, so that no two are counted in the same
BANDS, BAND_HASHES = 25, 5
_GRAMS = 1 << 16  # values hashed together, so that they stay in the processor's cache


@dataclass(frozen=True)
class Hashes:
    """Numbers for what each of n texts holds: `values` uint64 [m], text i's are values[starts[i]:starts[i + 1]]."""

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def by_count(cls, values: np.ndarray, counts: np.ndarray) -> Hashes:
        """From how many each text has, [n]."""
        return cls(values, np.concatenate(([0], np.cumsum(counts))))

    @property
    def counts(self) -> np.ndarray:
        """How many each text has, [n]."""
        return np.diff(self.starts)

    @property
    def rows(self) -> np.ndarray:
        """The text of every value, [m]."""
        return np.repeat(np.arange(len(self.starts) - 1), self.counts)


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one, every bit depending on all (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_words(texts: Sequence[str], *, plain: bool = True) -> Hashes:
    """The words of each text, in order: what spaces part in plain form, else letters and numbers."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    lengths = np.array([len(one) + 1 for one in encoded], dtype=np.int64)
    data = np.frombuffer(b"\0".join([*encoded, b""]), dtype=np.uint8)
    if plain:
        inside = ~_SPACES[data]
    else:  # words are made of letters, digits, the point before a digit, and the comma between two
        digit = _DIGITS[data]
        before, after = np.append(False, digit[:-1]), np.append(digit[1:], False)
        inside = _LETTERS[data] | ((data == ord(".")) & after) | ((data == ord(",")) & before & after)
    first = np.flatnonzero(inside & ~np.concatenate(([False], inside[:-1])))
    if not len(first):
        return Hashes(np.zeros(0, dtype=np.uint64), np.zeros(len(texts) + 1, dtype=np.int64))
    word = np.cumsum(np.bincount(first, minlength=len(data)))  # 1 for the first word's bytes, 0 before it
    place = np.arange(len(data)) - first[np.maximum(word - 1, 0)]
    weighted = np.where(inside, (data + np.uint64(1)) * _POWERS[place % _LONGEST], np.uint64(0))
    values = mix(np.add.reduceat(weighted, first))
    edges = np.concatenate(([0], np.cumsum(lengths)))
    return Hashes(values, np.searchsorted(first, edges))


def ngrams(words: Hashes, size: int) -> Hashes:
    """Every run of `size` words of each text as one number, in order. A shorter text has none."""
    runs = np.maximum(words.counts - size + 1, 0)
    grams = Hashes.by_count(np.full(runs.sum(), size, dtype=np.uint64), runs)
    values = grams.values
    heads = np.arange(len(values)) + np.repeat(words.starts[:-1] - grams.starts[:-1], runs)
    for offset in range(size):
        values = values * _STEP + words.values[heads + offset]
    return Hashes(mix(values), grams.starts)


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
        blocks = [texts[first : first + _ROWS] for first in range(0, len(texts), _ROWS)]
        empty = np.zeros((0, self.width), dtype=np.float32)
        return np.concatenate([empty, *(self._embed(block) for block in blocks)])

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        words = hash_words([text.casefold() for text in texts], plain=False)
        cells, signs = [], []
        for grams in (ngrams(words, 1), ngrams(words, 2)):
            for cell in range(_CELLS):
                values = mix(grams.values + np.uint64(cell))
                column = (values >> np.uint64(1)) % np.uint64(self.width)
                cells.append(grams.rows * self.width + column.astype(np.int64))
                signs.append(1.0 - 2.0 * (values & np.uint64(1)))
        total = len(texts) * self.width
        counts = np.bincount(np.concatenate(cells), np.concatenate(signs), total).reshape(-1, self.width)
        damped = np.sign(counts) * np.log1p(np.abs(counts))
        norms = np.sqrt(np.einsum("nd,nd->n", damped, damped))[:, None]
        unit: np.ndarray = (damped / np.where(norms > 0, norms, 1.0)).astype(np.float32)
        return unit


# -- signatures: MinHash ----------------------------------------------------------------------------------


def minhash_keys(sets: Hashes) -> np.ndarray:
    """-> uint64 [n, `BANDS`], a number for every band of `BAND_HASHES` MinHashes; 0 for texts with an empty set.

    A hash is the same for two sets with the probability of their Jaccard similarity (Broder 1997); it is the high half of
    a x + b, which is enough for values that are mixed already.
    """
    keys = np.zeros((len(sets.counts), BANDS), dtype=np.uint64)
    factors, shifts = mix(
        np.arange(1, 2 * BANDS * BAND_HASHES + 1, dtype=np.uint64) * np.uint64(_BASE)
    ).reshape(2, -1)
    rows = np.flatnonzero(sets.counts)
    per_pass = max(1, int(_GRAMS // max(1.0, sets.counts[rows].mean() if len(rows) else 1.0)))
    for chosen in (rows[first : first + per_pass] for first in range(0, len(rows), per_pass)):
        low, high = sets.starts[chosen[0]], sets.starts[chosen[-1] + 1]
        values, starts = sets.values[low:high], sets.starts[chosen] - low
        for place, (factor, shift) in enumerate(zip(factors | np.uint64(1), shifts, strict=True)):
            smallest = np.minimum.reduceat((values * factor + shift) >> np.uint64(32), starts)
            band = place // BAND_HASHES
            keys[chosen, band] = mix(keys[chosen, band] * np.uint64(31) + smallest + np.uint64(1))
    return keys
