"""Texts as numbers, by array operations over whole blocks: hashed words, n-grams, vectors without a model, signatures.

texts --> bytes --> a 64-bit number for every word --> n-grams --> shingles --> MinHash bands
                                                              --> signed counts in 512 numbers: vectors --> sign bands

Signatures are many hashes that two texts share with a probability p, their likeness; they share a band of r hashes
with p ** r, so comparing those that share any band finds the alike and few others. None of the constants are drawn:
all is the same in every process, and however texts are put into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import acos, pi

import numpy as np

_SPACES = np.array([byte in b"\0\t\n\v\f\r " for byte in range(256)])
_DIGITS = np.array([byte in b"0123456789" for byte in range(256)])
_LETTERS = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
_BASE, _STEP = 0x9E3779B97F4A7C15, np.uint64(0xD6E8FEB86659FD93)
_LONGEST = 64  # bytes of a word after which the powers repeat
_POWERS = np.array([pow(_BASE, 1 + i, 2**64) for i in range(_LONGEST)], dtype=np.uint64)
_ROWS = 256  # texts that become vectors together
WORD_HASHES, SIGN_HASHES = 128, 1536
_RECALL = 0.99
_SCALE = 4096  # vectors as whole numbers: their sums are exact in float32, whatever the block
_GRAMS = 1 << 16  # shingles hashed together, so that they stay in the processor's cache


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


def ngrams(words: Hashes, size: int, *, short: bool = False) -> Hashes:
    """Every run of `size` words of each text as one number, in order. A shorter text has none, or with `short` one: all
    of its words. A text without words has none."""
    runs = np.maximum(words.counts - size + 1, (words.counts > 0) & short)
    grams = Hashes.by_count(np.repeat(np.minimum(words.counts, size), runs), runs)
    lengths, values = grams.values, grams.values.astype(np.uint64)
    heads = np.arange(len(values)) + np.repeat(words.starts[:-1] - grams.starts[:-1], runs)
    for offset in range(size):
        following = values * _STEP + words.values[np.minimum(heads + offset, len(words.values) - 1)]
        values = np.where(offset < lengths, following, values)
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


# -- signatures: MinHash for words, signs for vectors --------------------------------------------------


@dataclass(frozen=True)
class Bands:
    """`hashes` hashes cut into bands such that texts exactly at the threshold share one with 99 %.

    `agreement` is the probability that one hash is the same for two texts at the threshold.
    """

    hashes: int
    agreement: float

    @cached_property
    def rows(self) -> int:
        """Hashes of a band: as many as that recall allows, for they keep unlike texts apart."""
        recall = {
            r: 1.0 - (1.0 - self.agreement**r) ** (self.hashes // r)
            for r in range(1, min(64, self.hashes) + 1)
        }
        return max((r for r, share in recall.items() if share >= _RECALL), default=1)

    @property
    def count(self) -> int:
        """How many bands."""
        return self.hashes // self.rows


def word_bands(jaccard: float) -> Bands:
    """MinHash: a hash is the same for two sets with the probability of their Jaccard similarity (Broder 1997)."""
    return Bands(WORD_HASHES, jaccard)


def sign_bands(cosine: float) -> Bands:
    """Signs of projections: the same with 1 - angle / pi (Charikar 2002, section 3)."""
    return Bands(SIGN_HASHES, 1.0 - acos(cosine) / pi)


def minhash_keys(shingles: Hashes, bands: Bands) -> np.ndarray:
    """-> uint64 [n, bands], a number for every band of MinHashes; 0 for texts without shingles.

    Each hash is the high half of a x + b, which is enough for values that are mixed already.
    """
    keys = np.zeros((len(shingles.counts), bands.count), dtype=np.uint64)
    factors, shifts = _constants(2, bands.count * bands.rows)
    rows = np.flatnonzero(shingles.counts)
    per_pass = max(1, int(_GRAMS // max(1.0, shingles.counts[rows].mean() if len(rows) else 1.0)))
    for chosen in (rows[first : first + per_pass] for first in range(0, len(rows), per_pass)):
        low, high = shingles.starts[chosen[0]], shingles.starts[chosen[-1] + 1]
        values, starts = shingles.values[low:high], shingles.starts[chosen] - low
        for place, (factor, shift) in enumerate(zip(factors | np.uint64(1), shifts, strict=True)):
            smallest = np.minimum.reduceat((values * factor + shift) >> np.uint64(32), starts)
            band = place // bands.rows
            keys[chosen, band] = mix(keys[chosen, band] * np.uint64(31) + smallest + np.uint64(1))
    return keys


def quantize(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors float32 [n, d] -> int16 [n, d], 4,096 for 1."""
    return np.rint(vectors * _SCALE).astype(np.int16)


def sign_hashes(quantized: np.ndarray) -> np.ndarray:
    """int16 [n, d] -> the signs of 1,536 projections, packed: uint8 [n, 192]."""
    projected = quantized.astype(np.float32) @ _projections(quantized.shape[1])
    return np.packbits(projected > 0, axis=1)


def sign_keys(packed: np.ndarray, bands: Bands, band: int) -> np.ndarray:
    """One band of the signs as uint64 [n]."""
    first = band * bands.rows
    last = first + bands.rows
    bits = np.unpackbits(packed[:, first // 8 : -(-last // 8)], axis=1)[:, first % 8 :][:, : bands.rows]
    padded = np.zeros((len(packed), 64), dtype=np.uint8)
    padded[:, 64 - bands.rows :] = bits
    return np.packbits(padded, axis=1).view(">u8").astype(np.uint64).ravel()


@lru_cache(maxsize=4)
def _constants(kinds: int, count: int) -> np.ndarray:
    return mix(np.arange(1, kinds * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).reshape(
        kinds, count
    )


@lru_cache(maxsize=2)
def _projections(width: int) -> np.ndarray:
    """[d, 1536] of -1 and 1."""
    numbers = _constants(1, width * SIGN_HASHES // 64)
    bits = np.unpackbits(np.ascontiguousarray(numbers.ravel()).astype("<u8").view(np.uint8))
    return (2.0 * bits.reshape(width, SIGN_HASHES) - 1.0).astype(np.float32)
