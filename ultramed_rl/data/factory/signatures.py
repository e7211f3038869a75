"""Short signatures whose equal bands tell which texts may be alike: MinHash for words, signs for vectors.

A signature is many hashes that two texts share with a probability p, their likeness; they share a band of r hashes
with p ** r, so comparing those that share any band finds the alike and few others. None of the constants are drawn:
signatures are the same in every process, and the same however texts are put into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import acos, pi

import numpy as np

from ultramed_rl.data.factory.hashing import Hashes, mix

WORD_HASHES, SIGN_HASHES = 128, 1536
_RECALL = 0.99
_SCALE = 4096  # vectors as whole numbers: their sums are exact in float32, whatever the block
_GRAMS = 1 << 16  # shingles hashed together, so that they stay in the processor's cache


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
        fits = [r for r in range(1, min(64, self.hashes) + 1) if self._recall(r) >= _RECALL]
        return max(fits, default=1)

    @property
    def count(self) -> int:
        """How many bands."""
        return self.hashes // self.rows

    def _recall(self, rows: int) -> float:
        return 1.0 - (1.0 - self.agreement**rows) ** (self.hashes // rows)


def word_bands(jaccard: float) -> Bands:
    """MinHash: a hash is the same for two sets with the probability of their Jaccard similarity (Broder 1997)."""
    return Bands(WORD_HASHES, jaccard)


def sign_bands(cosine: float) -> Bands:
    """Signs of projections: the same with 1 - angle / pi (Charikar 2002, section 3)."""
    return Bands(SIGN_HASHES, 1.0 - acos(cosine) / pi)


def minhash_keys(shingles: Hashes, bands: Bands) -> np.ndarray:
    """-> uint64 [n, bands], a number for every band of MinHashes; 0 for texts without shingles."""
    keys = np.zeros((len(shingles.counts), bands.count), dtype=np.uint64)
    rows = np.flatnonzero(shingles.counts)
    per_pass = max(1, int(_GRAMS // max(1.0, shingles.counts[rows].mean() if len(rows) else 1.0)))
    for first in range(0, len(rows), per_pass):
        chosen = rows[first : first + per_pass]
        low, high = shingles.starts[chosen[0]], shingles.starts[chosen[-1] + 1]
        starts = shingles.starts[chosen] - low
        keys[chosen] = _minhash(shingles.values[low:high], starts, bands)
    return keys


def _minhash(values: np.ndarray, starts: np.ndarray, bands: Bands) -> np.ndarray:
    """Each hash is the high half of a x + b, which is enough for values that are mixed already."""
    factors, shifts = _constants(2, bands.count * bands.rows)
    keys = np.zeros((len(starts), bands.count), dtype=np.uint64)
    for place, (factor, shift) in enumerate(zip(factors | np.uint64(1), shifts, strict=True)):
        smallest = np.minimum.reduceat((values * factor + shift) >> np.uint64(32), starts)
        band = place // bands.rows
        keys[:, band] = mix(keys[:, band] * np.uint64(31) + smallest + np.uint64(1))
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


def differing_signs(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Signs in which a packed signature [192] differs from others [k, 192] -> [k]."""
    return np.bitwise_count(one.view(np.uint64) ^ others.view(np.uint64)).sum(axis=1)


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
