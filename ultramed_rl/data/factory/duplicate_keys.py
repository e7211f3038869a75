"""What a block of instructions is compared by when repetitions are looked for: short keys of every text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ultramed_rl.config.factory import Deduplicate
from ultramed_rl.data.factory.columns import named_instruction
from ultramed_rl.data.factory.hashing import Hashes, hash_words, mix, shingles
from ultramed_rl.data.factory.signatures import minhash_keys, quantize, sign_hashes, word_bands
from ultramed_rl.data.likeness import Embed, check_unit_vectors
from ultramed_rl.data.stems import read_words


@dataclass(frozen=True)
class DuplicateKeys:
    """A block of rows to what `find_duplicates` compares them by; a pure function that workers can be sent."""

    config: Deduplicate
    embed: Embed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """-> a table with a row each: id, exact, priority, and by config word_bands, shingles, signs, vector.

        Raises:
            ValueError: a row without id, instruction or, to keep the best, a number as its score.
        """
        named = [named_instruction(row, self.config.columns) for row in rows]
        plain = [" ".join(read_words(text)) for _, text in named]
        words = hash_words(plain)
        columns: dict[str, Any] = {
            "id": pa.array([name for name, _ in named], pa.string()),
            "exact": pa.array(_digests(words)),
            "priority": pa.array(self._priorities(rows, words)),
        }
        if self.config.jaccard is not None:
            sets = _as_sets(shingles(words, self.config.words))
            columns["word_bands"] = _binary(minhash_keys(sets, word_bands(self.config.jaccard)))
            columns["shingles"] = pa.LargeListArray.from_arrays(sets.starts, sets.values.astype(np.uint32))
        if self.config.cosine is not None:
            vectors = quantize(self._vectors(plain))
            columns["signs"], columns["vector"] = _binary(sign_hashes(vectors)), _binary(vectors)
        return pa.table(columns)

    def _priorities(self, rows: Sequence[Mapping[str, Any]], words: Hashes) -> np.ndarray:
        """Which of alike rows stays: the highest."""
        if self.config.keep == "best":
            return np.array([self._score(row) for row in rows], dtype=np.float64)
        return words.counts * float(self.config.keep == "longest")

    def _score(self, row: Mapping[str, Any]) -> float:
        score = row.get(self.config.score_column)
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ValueError(
                f"row {row[self.config.columns.id]}: {self.config.score_column!r} holds {score!r:.40}, not a number; "
                "score the rows first, or set keep=first"
            )
        return float(score)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Blank texts, whose vector would say nothing, get one that is near to none."""
        places = [place for place, text in enumerate(texts) if text]
        unit = check_unit_vectors(self.embed([texts[place] for place in places]), len(places))
        vectors = np.zeros((len(texts), unit.shape[1]), dtype=np.float32)
        vectors[places] = unit
        return vectors


def _digests(words: Hashes) -> np.ndarray:
    """uint64 [n]: the same for the same words in the same order, 0 for none. 410K texts collide with p = 5e-9."""
    digests = np.zeros(len(words.counts), dtype=np.uint64)
    some = np.flatnonzero(words.counts)
    place = np.arange(len(words.values)) - np.repeat(words.starts[:-1], words.counts)
    weighted = mix(words.values + mix(place.astype(np.uint64)))
    if len(some):
        digests[some] = np.maximum(mix(np.add.reduceat(weighted, words.starts[some])), np.uint64(1))
    return digests


def _as_sets(grams: Hashes) -> Hashes:
    """Each text's values once, in ascending order, by their lower 32 bits."""
    rows, values = grams.rows, grams.values & np.uint64(0xFFFFFFFF)
    both = np.unique((rows.astype(np.uint64) << np.uint64(32)) | values)
    counts = np.bincount((both >> np.uint64(32)).astype(np.int64), minlength=len(grams.counts))
    starts = np.concatenate(([0], np.cumsum(counts)))
    return Hashes(both & np.uint64(0xFFFFFFFF), starts)


def _binary(rows: np.ndarray) -> pa.Array:
    """[n, k] of any type as n byte strings."""
    width = rows.shape[1] * rows.itemsize
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, data])
