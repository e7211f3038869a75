"""Instructions without repetition: the same words, nearly the same words, or near vectors.

rows, by blocks on many workers --> keys: digest, MinHash bands, shingles, signs, vector
keys of all rows --> rows that share a band --> compared exactly --> leaders, and what repeats them

A row is removed if it is alike to a row that stays, by the rule and to the degree that the report names; rows that
stay are never alike as far as bands tell (99 % of pairs right at the threshold, more above it). So cleaning again
removes nothing, and neither blocks nor workers change the result. A text without words repeats nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.config.factory import Deduplicate
from ultramed_rl.data.factory.columns import named_instruction
from ultramed_rl.data.factory.hashing import (
    Hashes,
    hash_words,
    minhash_keys,
    mix,
    ngrams,
    quantize,
    sign_bands,
    sign_hashes,
    sign_keys,
    word_bands,
)
from ultramed_rl.data.likeness import Embed, check_unit_vectors, read_words

Rule = Literal["exact", "words", "vector"]


# -- keys of a block ---------------------------------------------------------------------------------------


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
        if self.config.keep == "best":
            priority = np.array([self._score(row) for row in rows], dtype=np.float64)
        else:
            priority = words.counts * float(self.config.keep == "longest")
        columns: dict[str, Any] = {
            "id": pa.array([name for name, _ in named], pa.string()),
            "exact": pa.array(_digests(words)),
            "priority": pa.array(priority),
        }
        if self.config.jaccard is not None:
            sets = _as_sets(ngrams(words, self.config.words, short=True))
            columns["word_bands"] = _binary(minhash_keys(sets, word_bands(self.config.jaccard)))
            columns["shingles"] = pa.LargeListArray.from_arrays(sets.starts, sets.values.astype(np.uint32))
        if self.config.cosine is not None:
            places = [place for place, text in enumerate(plain) if text]
            unit = check_unit_vectors(self.embed([plain[place] for place in places]), len(places))
            vectors = np.zeros((len(plain), unit.shape[1]), dtype=np.float32)  # near to none where blank
            vectors[places] = unit
            integers = quantize(vectors)
            columns["signs"], columns["vector"] = _binary(sign_hashes(integers)), _binary(integers)
        return pa.table(columns)

    def _score(self, row: Mapping[str, Any]) -> float:
        score = row.get(self.config.score_column)
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ValueError(
                f"row {row[self.config.columns.id]}: {self.config.score_column!r} holds {score!r:.40}, not a number; "
                "score the rows first, or set keep=first"
            )
        return float(score)


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
    rows, low = grams.rows.astype(np.uint64), np.uint64(0xFFFFFFFF)
    both = np.unique((rows << np.uint64(32)) | (grams.values & low))
    counts = np.bincount((both >> np.uint64(32)).astype(np.int64), minlength=len(grams.counts))
    return Hashes.by_count(both & low, counts)


def _binary(rows: np.ndarray) -> pa.Array:
    """[n, k] of any type as n byte strings."""
    width = rows.shape[1] * rows.itemsize
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, data])


# -- the search --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeated:
    """A row to remove, and the row that stays for it: `similarity` is Jaccard (words) or cosine (vector)."""

    record_id: str
    rule: Rule
    kept_id: str
    similarity: float


class _Led(NamedTuple):
    """That a row repeats the row at place `leader`."""

    leader: int
    rule: Rule
    similarity: float


class _Likeness(NamedTuple):
    """A similarity between rows, which are numbered in the order in which they may stay.

    `bands` holds band by band a uint64 for every row; rows with an equal one are to be compared. `compare` takes a row
    and [k] others -> their exact similarities to it, [k].
    """

    rule: Rule
    threshold: float
    bands: Iterable[np.ndarray]
    compare: Callable[[int, np.ndarray], np.ndarray]


def find_duplicates(parts: Sequence[pa.Table], config: Deduplicate) -> list[Repeated]:
    """The rows that repeat others, in order, from the keys of all blocks in input order, see `DuplicateKeys`.

    Memory is some 500 bytes a row; shingles and vectors are looked up in `parts`, which may be mapped from disk.

    Raises:
        ValueError: an id that stands twice.
    """
    keys = pa.concat_tables(parts)
    ids = pc.value_counts(keys["id"])
    twice = ids.field("values").filter(pc.greater(ids.field("counts"), 1))
    if len(twice):
        raise ValueError(
            f"id {twice[0].as_py()!r} stands twice ({len(twice)} ids do); rows are removed by id, so give every row "
            "one of its own"
        )
    exact, priority = keys["exact"].to_numpy(), keys["priority"].to_numpy()
    everyone = np.arange(len(exact))
    order = np.lexsort((everyone, -priority))
    # For every row the first in `order` with the same words, perhaps itself; blank rows are on their own.
    _, first, words = np.unique(exact[order], return_index=True, return_inverse=True)
    original = np.empty_like(everyone)
    original[order] = order[first[words]]
    original[exact == 0] = everyone[exact == 0]
    single = order[(original[order] == order) & (exact[order] > 0)]
    led = _follow_leaders(keys, single, config)
    for place in np.flatnonzero(original != everyone).tolist():
        led[place] = led.get(int(original[place]), _Led(int(original[place]), "exact", 1.0))
    rows = sorted(led)
    names = keys["id"].take(pa.array(rows, pa.int64())).to_pylist()
    leaders = keys["id"].take(pa.array([led[row].leader for row in rows], pa.int64())).to_pylist()
    return [
        Repeated(name, led[row].rule, leader, led[row].similarity)
        for row, name, leader in zip(rows, names, leaders, strict=True)
    ]


def _follow_leaders(keys: pa.Table, rows: np.ndarray, config: Deduplicate) -> dict[int, _Led]:
    """Take `rows`, places in `keys`, in order: each follows the leader it is most alike to, or leads itself."""
    likenesses = [] if config.jaccard is None else [_near_words(keys, rows, config.jaccard)]
    likenesses += [] if config.cosine is None else [_near_vectors(keys, rows, config.cosine)]
    groups = [_Groups(likeness.bands, len(rows)) for likeness in likenesses]
    led: dict[int, _Led] = {}
    for row in sorted({member for one in groups for member in one.members.tolist()}):
        for likeness, own in zip(likenesses, groups, strict=True):
            leaders = own.leaders_near(row)
            similarities = likeness.compare(row, leaders) if len(leaders) else np.zeros(1)
            best = int(np.argmax(similarities))  # the first of several
            if similarities[best] >= likeness.threshold:
                leader, similarity = int(rows[leaders[best]]), round(float(similarities[best]), 6)
                led[int(rows[row])] = _Led(leader, likeness.rule, similarity)
                break
        else:
            for own in groups:
                own.lead(row)
    return led


class _Groups:
    """Rows that share a band with another, by group, and which of them lead."""

    def __init__(self, bands: Iterable[np.ndarray], rows: int) -> None:
        sharers, groups, count = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int32)], 0
        for band in bands:
            _, key, frequency = np.unique(band, return_inverse=True, return_counts=True)
            sharing = np.flatnonzero(frequency[key] > 1)
            shared, group = np.unique(key[sharing], return_inverse=True)
            sharers.append(sharing.astype(np.int32))
            groups.append((group + count).astype(np.int32))
            count += len(shared)
        everyone = np.concatenate(sharers)
        self._groups = np.concatenate(groups)[np.argsort(everyone, kind="stable")]
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(everyone, minlength=rows))))
        self.members = np.flatnonzero(np.diff(self._starts))
        self._leaders: dict[int, list[int]] = defaultdict(list)

    def _of(self, row: int) -> list[int]:
        groups: list[int] = self._groups[self._starts[row] : self._starts[row + 1]].tolist()
        return groups

    def leaders_near(self, row: int) -> np.ndarray:
        """Leaders that share a group with the row, in order."""
        leaders = {leader for group in self._of(row) for leader in self._leaders.get(group, ())}
        return np.array(sorted(leaders), dtype=np.int64)

    def lead(self, row: int) -> None:
        """The row stays: rows after it may follow it."""
        for group in self._of(row):
            self._leaders[group].append(row)


def _near_words(keys: pa.Table, rows: np.ndarray, threshold: float) -> _Likeness:
    """Jaccard similarity of shingles."""
    column = keys["shingles"]

    def shingles_of(row: int) -> np.ndarray:
        numbers: np.ndarray = column[int(rows[row])].values.to_numpy()
        return numbers

    def compare(row: int, others: np.ndarray) -> np.ndarray:
        own = shingles_of(row)
        jaccard = []
        for one in map(shingles_of, others):
            places = np.minimum(np.searchsorted(own, one), len(own) - 1)
            shared = np.count_nonzero(own[places] == one)
            jaccard.append(shared / (len(own) + len(one) - shared))
        return np.array(jaccard)

    return _Likeness("words", threshold, _fixed_rows(keys["word_bands"], np.uint64, rows).T, compare)


def _near_vectors(keys: pa.Table, rows: np.ndarray, threshold: float) -> _Likeness:
    """Cosine of vectors."""
    bands, column = sign_bands(threshold), keys["vector"]
    signs = _fixed_rows(keys["signs"], np.uint8, rows)

    def vector_of(row: int) -> np.ndarray:
        return np.frombuffer(column[int(rows[row])].as_buffer(), dtype=np.int16).astype(np.float64)

    def compare(row: int, others: np.ndarray) -> np.ndarray:
        own, theirs = vector_of(row), np.array([vector_of(other) for other in others])
        cosines: np.ndarray = (theirs @ own) / np.sqrt((own @ own) * np.einsum("nd,nd->n", theirs, theirs))
        return cosines

    keys_of_bands = (sign_keys(signs, bands, band) for band in range(bands.count))
    return _Likeness("vector", threshold, keys_of_bands, compare)


def _fixed_rows(column: pa.ChunkedArray, dtype: type[np.generic], rows: np.ndarray) -> np.ndarray:
    """Byte strings of one width as [n, k] numbers, of the chosen rows."""
    width = column.type.byte_width // np.dtype(dtype).itemsize
    strings = column.take(pa.array(rows, pa.int64())).to_pylist()
    return np.frombuffer(b"".join(strings), dtype=dtype).reshape(len(rows), width)
