"""Test items whose vectors and lengths are near a row's: exact search in flat indexes, one for each band of lengths."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, log
from typing import Any

import numpy as np

from ultramed_rl.data.likeness import NearRule

_BAND = 1.1  # longest over shortest row of a band
_MARGIN = 1e-3  # by which float32 distances of unit vectors may be wrong, many times over


class NearItems:
    """All items within a squared L2 distance and a relative difference of lengths.

    An index (faiss's flat one, on all of OpenMP's threads) holds those items alone that rows of its band of lengths
    may be compared with, so nothing is missed and the most is never looked at. Indexes are built when first needed
    and not sent to workers.
    """

    def __init__(self, items: np.ndarray, lengths: np.ndarray, vectors: np.ndarray, rule: NearRule) -> None:
        """
        Args:
            items: [m] the items' numbers.
            lengths: [m] characters.
            vectors: [m, d] float32, of length 1.
        """
        order = np.argsort(lengths, kind="stable")
        self._items, self._lengths, self._vectors = items[order], lengths[order], vectors[order]
        self._rule = rule
        self._indexes: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": {}}

    def reaches(self, length: int) -> bool:
        """Whether any item's length comes near to this one."""
        first, last = self._window(length, length)
        return first < last

    def pairs(self, vectors: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int, float]]:
        """(row, item's number, squared L2 distance) of all near ones among rows [n, d] of lengths [n]."""
        bands = np.array([floor(log(length) / log(_BAND)) for length in lengths], dtype=np.int64)
        for band in np.unique(bands):
            rows = np.flatnonzero(bands == band)
            first, last = self._window(_BAND**band, _BAND ** (band + 1))
            if first == last:
                continue
            index = self._index(int(band), first, last)
            radius = self._rule.squared_l2 + _MARGIN
            limits, _, found = index.range_search(np.ascontiguousarray(vectors[rows]), radius)
            ours, theirs = np.repeat(rows, np.diff(limits.astype(np.int64))), first + found
            yield from self._check(vectors, lengths, ours, theirs)

    def _check(
        self, vectors: np.ndarray, lengths: np.ndarray, ours: np.ndarray, theirs: np.ndarray
    ) -> Iterator[tuple[int, int, float]]:
        """Distances anew in float64, so that they are the same in every block."""
        longer = np.maximum(lengths[ours], self._lengths[theirs])
        alike = np.abs(lengths[ours] - self._lengths[theirs]) <= self._rule.length * longer + 1e-9
        ours, theirs = ours[alike], theirs[alike]
        gaps = vectors[ours].astype(np.float64) - self._vectors[theirs]
        distances = np.einsum("nd,nd->n", gaps, gaps)
        for row, place, distance in zip(ours, theirs, distances, strict=True):
            if distance <= self._rule.squared_l2:
                yield int(row), int(self._items[place]), round(float(distance), 6)

    def _window(self, shortest: float, longest: float) -> tuple[int, int]:
        """The items that rows of such lengths may be compared with: a slice of the sorted ones."""
        low, high = shortest * (1.0 - self._rule.length), longest / (1.0 - self._rule.length)
        first = np.searchsorted(self._lengths, low - 1e-3, side="left")
        return int(first), int(np.searchsorted(self._lengths, high + 1e-3, side="right"))

    def _index(self, band: int, first: int, last: int) -> Any:
        if band not in self._indexes:
            import faiss

            index = faiss.IndexFlatL2(self._vectors.shape[1])
            index.add(np.ascontiguousarray(self._vectors[first:last]))
            self._indexes[band] = index
        return self._indexes[band]
