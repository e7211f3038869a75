"""Two ways in which rows are alike: by shingles of words, and by vectors. Each names rows to compare, and compares.

Rows are numbered in the order in which they may stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import acos, pi, sqrt
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from ultramed_rl.data.factory.signatures import (
    SIGN_HASHES,
    Bands,
    differing_signs,
    sign_bands,
    sign_keys,
    word_bands,
)

Rule = Literal["exact", "words", "vector"]
Compared = tuple[np.ndarray, np.ndarray]  # rows, and their similarities
_DEVIATIONS = 4.0  # by which signs may differ from what is expected of an angle


class Likeness(Protocol):
    """A similarity between rows with a threshold."""

    rule: Rule
    threshold: float

    def keys(self) -> Iterator[np.ndarray]:
        """Band by band a uint64 for every row; rows with an equal one are to be compared."""
        ...

    def compare(self, row: int, others: np.ndarray) -> Compared:
        """Exact similarities of a row with others, [k] row numbers; the clearly unlike may be left out."""
        ...


class NearWords:
    """Jaccard similarity of shingles."""

    rule: Rule = "words"

    def __init__(self, keys: pa.Table, rows: np.ndarray, threshold: float) -> None:
        """
        Args:
            keys: what `DuplicateKeys` made, of all rows.
            rows: places in `keys`, [n].
        """
        self.threshold = threshold
        self._bands = word_bands(threshold)
        self._keys = _fixed_rows(keys["word_bands"], np.dtype(np.uint64), rows)
        self._shingles = _Looked(keys["shingles"], rows)

    def keys(self) -> Iterator[np.ndarray]:
        yield from self._keys.T

    def compare(self, row: int, others: np.ndarray) -> Compared:
        own = self._shingles.values(row)
        sets = [self._shingles.values(other) for other in others]
        sizes = np.array([len(one) for one in sets])
        joined = np.concatenate(sets)
        places = np.minimum(np.searchsorted(own, joined), len(own) - 1)
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        shared = np.add.reduceat((own[places] == joined).astype(np.int64), starts)
        return others, shared / (len(own) + sizes - shared)


class NearVectors:
    """Cosine of vectors; signs that differ too often for the threshold spare the look at a vector."""

    rule: Rule = "vector"

    def __init__(self, keys: pa.Table, rows: np.ndarray, threshold: float) -> None:
        """As `NearWords`."""
        self.threshold = threshold
        self._bands: Bands = sign_bands(threshold)
        self._signs = _fixed_rows(keys["signs"], np.dtype(np.uint8), rows)
        self._vectors = _Looked(keys["vector"], rows)
        expected = SIGN_HASHES * acos(threshold) / pi
        self._most = expected + _DEVIATIONS * sqrt(expected) + 1.0

    def keys(self) -> Iterator[np.ndarray]:
        for band in range(self._bands.count):
            yield sign_keys(self._signs, self._bands, band)

    def compare(self, row: int, others: np.ndarray) -> Compared:
        others = others[differing_signs(self._signs[row], self._signs[others]) <= self._most]
        own = self._vectors.values(row).astype(np.float64)
        theirs = np.array([self._vectors.values(other) for other in others], dtype=np.float64)
        theirs = theirs.reshape(len(others), len(own))
        lengths = np.sqrt((own @ own) * np.einsum("nd,nd->n", theirs, theirs))
        return others, (theirs @ own) / lengths


def _fixed_rows(column: pa.ChunkedArray, dtype: np.dtype, rows: np.ndarray) -> np.ndarray:
    """Byte strings of one width as [n, k] numbers, of the chosen rows."""
    width = column.type.byte_width // dtype.itemsize
    chunks = [_numbers(chunk, dtype) for chunk in column.chunks if len(chunk)]
    numbers = np.concatenate(chunks) if chunks else np.zeros(0, dtype=dtype)
    return numbers.reshape(-1, width)[rows]


def _numbers(chunk: pa.Array, dtype: np.dtype) -> np.ndarray:
    """A chunk of byte strings as the numbers in them, without a copy."""
    width = chunk.type.byte_width
    start = chunk.offset * width // dtype.itemsize
    count = len(chunk) * width // dtype.itemsize
    return np.frombuffer(chunk.buffers()[1], dtype=dtype)[start : start + count]


class _Looked:
    """Single rows of a column of lists or byte strings, read from where they lie."""

    def __init__(self, column: pa.ChunkedArray, rows: np.ndarray) -> None:
        self._rows = rows
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._bases = np.concatenate(([0], np.cumsum([len(chunk) for chunk in chunks])))
        self._chunks = [_chunk_views(chunk) for chunk in chunks]

    def values(self, row: int) -> np.ndarray:
        """The numbers of one row."""
        place = self._rows[row]
        number = int(np.searchsorted(self._bases, place, side="right")) - 1
        offsets, values = self._chunks[number]
        inside = place - self._bases[number]
        return values[offsets[inside] : offsets[inside + 1]]


def _chunk_views(chunk: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [n + 1] and numbers [m] of a chunk."""
    if isinstance(chunk, pa.LargeListArray):
        return chunk.offsets.to_numpy(), chunk.values.to_numpy()
    values = _numbers(chunk, np.dtype(np.int16))
    return np.arange(len(chunk) + 1) * (chunk.type.byte_width // 2), values
