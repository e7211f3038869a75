"""Instructions without repetition: the same words, nearly the same words, or near vectors.

rows, by blocks on many workers --> keys: digest, MinHash bands, shingles, signs, vector
keys of all rows --> rows that share a band --> compared exactly --> leaders, and what repeats them

A row is removed if it is alike to a row that stays, by the rule and to the degree that the report names; rows that
stay are never alike as far as bands tell (99 % of pairs right at the threshold, more above it). So cleaning again
removes nothing, and neither blocks nor workers change the result. A text without words repeats nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.config.factory import Deduplicate
from ultramed_rl.data.factory.likenesses import Likeness, NearVectors, NearWords, Rule


@dataclass(frozen=True)
class Repeated:
    """A row to remove, and the row that stays for it: `similarity` is Jaccard (words) or cosine (vector)."""

    record_id: str
    rule: Rule
    kept_id: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """What was found among so many records, in their order; `blank` of them hold no words and stay."""

    records: int
    blank: int
    repeated: tuple[Repeated, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Removed rows by rule."""
        return dict(Counter(one.rule for one in self.repeated))


@dataclass(frozen=True)
class _Led:
    """That a row repeats the row with number `leader`."""

    leader: int
    rule: Rule
    similarity: float


def find_duplicates(parts: Sequence[pa.Table], config: Deduplicate) -> Duplicates:
    """Which rows repeat others, from the keys of all blocks in input order, see `DuplicateKeys`.

    Memory is some 500 bytes a row; shingles and vectors are looked up in `parts`, which may be mapped from disk.

    Raises:
        ValueError: an id that stands twice.
    """
    keys = pa.concat_tables(parts)
    _check_ids(keys["id"])
    exact, priority = keys["exact"].to_numpy(), keys["priority"].to_numpy()
    order = np.lexsort((np.arange(len(exact)), -priority))
    copy_of = _exact_copies(exact, order)
    single = order[(copy_of[order] == order) & (exact[order] > 0)]
    near = _follow_leaders(len(single), _likenesses(keys, single, config))
    led = {
        int(single[row]): _Led(int(single[one.leader]), one.rule, one.similarity) for row, one in near.items()
    }
    for place in np.flatnonzero(copy_of != np.arange(len(copy_of))):
        original = int(copy_of[place])
        led[int(place)] = led.get(original, _Led(original, "exact", 1.0))
    return Duplicates(len(exact), int((exact == 0).sum()), _named(led, keys["id"]))


def _check_ids(ids: pa.ChunkedArray) -> None:
    if len(pc.unique(ids)) < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise ValueError(
            f"id {twice[0].as_py()!r} stands twice ({len(twice)} ids do); rows are removed by id, so give every row "
            "one of its own"
        )


def _exact_copies(exact: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For every row the first in `order` with the same words, perhaps itself; blank rows are on their own."""
    leader = np.arange(len(exact))
    by_words = order[np.argsort(exact[order], kind="stable")]
    by_words = by_words[exact[by_words] > 0]
    new = np.concatenate(([True], exact[by_words][1:] != exact[by_words][:-1]))[: len(by_words)]
    heads = np.maximum.accumulate(np.where(new, np.arange(len(by_words)), 0))
    leader[by_words] = by_words[heads]
    return leader


def _likenesses(keys: pa.Table, rows: np.ndarray, config: Deduplicate) -> list[Likeness]:
    likenesses: list[Likeness] = []
    if config.jaccard is not None:
        likenesses.append(NearWords(keys, rows, config.jaccard))
    if config.cosine is not None:
        likenesses.append(NearVectors(keys, rows, config.cosine))
    return likenesses


def _follow_leaders(rows: int, likenesses: Sequence[Likeness]) -> dict[int, _Led]:
    """Take rows in order: each follows the leader it is most alike to, or leads itself."""
    fields = [_Groups(likeness.keys(), rows) for likeness in likenesses]
    led: dict[int, _Led] = {}
    for row in np.unique(
        np.concatenate([np.zeros(0, dtype=np.int64), *(one.members for one in fields)])
    ).tolist():
        for likeness, groups in zip(likenesses, fields, strict=True):
            leader = _nearest(likeness, row, groups.leaders_near(row))
            if leader is not None:
                led[row] = leader
                break
        else:
            for groups in fields:
                groups.lead(row)
    return led


def _nearest(likeness: Likeness, row: int, leaders: np.ndarray) -> _Led | None:
    """The most alike leader, the first of several, if it is alike enough."""
    if not len(leaders):
        return None
    others, similarities = likeness.compare(row, leaders)
    if not len(others) or similarities.max() < likeness.threshold:
        return None
    best = int(np.argmax(similarities))
    return _Led(int(others[best]), likeness.rule, round(float(similarities[best]), 6))


class _Groups:
    """Rows that share a band with another, by group, and which of them lead."""

    def __init__(self, keys: Iterable[np.ndarray], rows: int) -> None:
        members, groups, count = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int32)], 0
        for band in keys:
            rows_of_band, group = _shared(band)
            members.append(rows_of_band.astype(np.int32))
            groups.append((group + count).astype(np.int32))
            count += int(group[-1]) + 1 if len(group) else 0
        everyone = np.concatenate(members)
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


def _shared(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose key another row has too, and numbers for the keys, both [m]."""
    order = np.argsort(keys, kind="stable")
    new = np.concatenate(([True], keys[order][1:] != keys[order][:-1]))[: len(order)]
    group = np.cumsum(new) - 1
    several = np.bincount(group)[group] > 1 if len(group) else np.zeros(0, dtype=bool)
    return order[several], np.unique(group[several], return_inverse=True)[1]


def _named(led: dict[int, _Led], ids: pa.ChunkedArray) -> tuple[Repeated, ...]:
    """In the order of the rows, by their ids."""
    places = sorted(led)
    names = ids.take(pa.array(places, pa.int64())).to_pylist()
    leaders = ids.take(pa.array([led[place].leader for place in places], pa.int64())).to_pylist()
    return tuple(
        Repeated(name, led[place].rule, leader, led[place].similarity)
        for place, name, leader in zip(places, names, leaders, strict=True)
    )
