"""Texts as hashed words: n-grams, vectors without a model, and keys, by array operations over whole blocks.

texts --> bytes --> a 64-bit number for every word --> n-grams --> shingles, overlaps
                                                              --> signed counts in 512 numbers: vectors
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


@dataclass(frozen=True)
class Hashes:
    """Numbers for what each of n texts holds: `values` uint64 [m], text i's are values[starts[i]:starts[i + 1]]."""

    values: np.ndarray
    starts: np.ndarray

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
    inside = ~_SPACES[data] if plain else _spelled(data)
    first = np.flatnonzero(inside & ~np.concatenate(([False], inside[:-1])))
    if not len(first):
        return Hashes(np.zeros(0, dtype=np.uint64), np.zeros(len(texts) + 1, dtype=np.int64))
    word = np.cumsum(np.bincount(first, minlength=len(data)))  # 1 for the first word's bytes, 0 before it
    place = np.arange(len(data)) - first[np.maximum(word - 1, 0)]
    weighted = np.where(inside, (data + np.uint64(1)) * _POWERS[place % _LONGEST], np.uint64(0))
    values = mix(np.add.reduceat(weighted, first))
    edges = np.concatenate(([0], np.cumsum(lengths)))
    return Hashes(values, np.searchsorted(first, edges))


def _spelled(data: np.ndarray) -> np.ndarray:
    """Which bytes words are made of: letters, digits, the point before a digit, the comma between two."""
    digit = _DIGITS[data]
    before, after = np.append(False, digit[:-1]), np.append(digit[1:], False)
    return _LETTERS[data] | ((data == ord(".")) & after) | ((data == ord(",")) & before & after)


def ngrams(words: Hashes, size: int) -> Hashes:
    """Every run of `size` words of each text, in order; a shorter text has none."""
    count = np.maximum(words.counts - size + 1, 0)
    starts = np.concatenate(([0], np.cumsum(count)))
    heads = np.arange(starts[-1]) + np.repeat(words.starts[:-1] - starts[:-1], count)
    return Hashes(_join(words.values, heads, size), starts)


def shingles(words: Hashes, size: int) -> Hashes:
    """As `ngrams`, but all words of a shorter text are its one shingle; a text without words has none."""
    counts = words.counts
    grams = ngrams(words, size)
    parts, rows = [grams.values], [grams.rows]
    for fewer in range(1, size):
        short = np.flatnonzero(counts == fewer)
        parts.append(_join(words.values, words.starts[:-1][short], fewer))
        rows.append(short)
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(counts)))))
    return Hashes(np.concatenate(parts)[order], starts)


def _join(values: np.ndarray, heads: np.ndarray, size: int) -> np.ndarray:
    """One number for the `size` values from each head on; order counts."""
    total = np.full(len(heads), size, dtype=np.uint64)
    for offset in range(size):
        total = total * _STEP + values[heads + offset]
    return mix(total)


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
        for size in (1, 2):
            grams = ngrams(words, size)
            column = (grams.values >> np.uint64(1)) % np.uint64(self.width)
            cells.append(grams.rows * self.width + column.astype(np.int64))
            signs.append(1.0 - 2.0 * (grams.values & np.uint64(1)))
        total = len(texts) * self.width
        counts = np.bincount(np.concatenate(cells), np.concatenate(signs), total).reshape(-1, self.width)
        damped = np.sign(counts) * np.log1p(np.abs(counts))
        norms = np.sqrt(np.einsum("nd,nd->n", damped, damped))[:, None]
        unit: np.ndarray = (damped / np.where(norms > 0, norms, 1.0)).astype(np.float32)
        return unit
