"""Instructions without repetition: the same words, or words that differ in nothing that carries content.

rows, by blocks on many workers --> keys: digest of the words, MinHash bands of the content, the text
keys of all rows --> rows that share a band --> `same_question` --> leaders, and what repeats them

A row is removed if it asks the same as a row that stays, by the rule that the report names; rows that stay don't, as far
as bands tell. So cleaning again removes nothing, and neither blocks nor workers change the result. A text without words
repeats nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.config.factory import Deduplicate
from ultramed_rl.data.content import read_tokens
from ultramed_rl.data.factory.hashing import BANDS, hash_set, minhash_keys
from ultramed_rl.data.factory.instructions import named_instruction
from ultramed_rl.data.likeness import Stem, content_marks, read_stem, same_question
from ultramed_rl.store.digests import key_number

Rule = Literal["exact", "near"]
_LONGEST_ANSWER = 10  # words
_PAUSES = ",/.;:?!\n"
_LONG = 20  # different words of a text
_SHARED = 0.4  # their part that two long texts that ask the same share at least
_TEXTS = 1 << 14  # read ones that are kept while rows are compared


# -- keys of a block ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DuplicateKeys:
    """A block of rows to what `find_duplicates` compares them by; a pure function that workers can be sent."""

    config: Deduplicate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """-> a table with a row each: id, exact, priority, text, answer, bands.

        Raises:
            ValueError: a row without id, instruction or, to keep the best, a number as its score.
        """
        named = [named_instruction(row, self.config.columns) for row in rows]
        stems = [read_stem(text) for _, text in named]
        plain = [_plain(text) for _, text in named]
        if self.config.keep == "best":
            priority = [self._score(row) for row in rows]
        else:
            priority = [float(len(text.split())) * (self.config.keep == "longest") for text in plain]
        near = stems if self.config.near else []
        marks = [hash_set(content_marks(stem.content, *stem.option_contents)) for stem in near]
        bands = minhash_keys(marks) if near else np.zeros((len(rows), BANDS), dtype=np.uint64)
        return pa.table(
            {
                "id": pa.array([name for name, _ in named], pa.string()),
                # 410K texts collide with p = 5e-9; 0 of a text without words.
                "exact": pa.array([key_number(text) if text else 0 for text in plain], pa.uint64()),
                "priority": pa.array(priority, pa.float64()),
                "text": pa.array([text for _, text in named], pa.large_string()),
                "answer": pa.array([_short_text(row.get("answer")) for row in rows], pa.string()),
                "bands": pa.FixedSizeListArray.from_arrays(pa.array(bands.ravel()), BANDS),
            }
        )

    def _score(self, row: Mapping[str, Any]) -> float:
        score = row.get(self.config.score_column)
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ValueError(
                f"row {row[self.config.columns.id]}: {self.config.score_column!r} holds {score!r:.40}, not a number; "
                "score the rows first, or set keep=first"
            )
        return float(score)


def _plain(text: str) -> str:
    """Words, numbers and signs, parted by spaces."""
    return " ".join(token for token in read_tokens(text) if token[-1] not in _PAUSES)


def _short_text(answer: Any) -> str:
    """A key or a short answer; other texts say the same in other words."""
    return answer if isinstance(answer, str) and len(answer.split()) <= _LONGEST_ANSWER else ""


# -- the search --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeated:
    """A row to remove, and the row that stays for it."""

    record_id: str
    rule: Rule
    kept_id: str


def find_duplicates(parts: Sequence[pa.Table], config: Deduplicate) -> list[Repeated]:
    """The rows that repeat others, in order, from the keys of all blocks in input order, see `DuplicateKeys`.

    Memory is some 300 bytes a row; texts are looked up in `parts`, which may be mapped from disk.

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
    near = _follow_leaders(keys, single) if config.near else {}
    names = keys["id"].to_pylist()
    led = dict[int, tuple[int, Rule]](
        (place, (int(original[place]), "exact")) for place in np.flatnonzero(original != everyone).tolist()
    )
    led.update((row, (leader, "near")) for row, leader in near.items())
    return [
        Repeated(names[row], rule, names[near.get(leader, leader)])
        for row, (leader, rule) in sorted(led.items())
    ]


def _follow_leaders(keys: pa.Table, rows: np.ndarray) -> dict[int, int]:
    """Take `rows`, places in `keys`, in order: each follows the first leader that asks the same, or leads itself."""
    texts, answers = keys["text"], keys["answer"]

    @lru_cache(maxsize=_TEXTS)
    def stem_of(place: int) -> Stem:
        return read_stem(texts[place].as_py(), answers[place].as_py())

    @lru_cache(maxsize=_TEXTS)
    def words_of(place: int) -> frozenset[str]:
        return frozenset(texts[place].as_py().casefold().split())

    def may_be_same(a: int, b: int) -> bool:
        """Long texts meet in a band by chance: among many rows most of those that do, and reading them takes long."""
        fewer = min(len(words_of(a)), len(words_of(b)))
        return fewer < _LONG or len(words_of(a) & words_of(b)) >= _SHARED * fewer

    bands = keys["bands"].combine_chunks().flatten().to_numpy().reshape(-1, BANDS)
    shared = np.zeros(bands.shape, dtype=bool)  # whether another of the rows has the same band
    for number, band in enumerate(bands[rows].T):
        _, places, counts = np.unique(band, return_inverse=True, return_counts=True)
        shared[rows, number] = (counts[places] > 1) & (band > 0)
    leaders: dict[tuple[int, int], list[int]] = defaultdict(list)  # by band, in order
    order = {place: number for number, place in enumerate(rows.tolist())}
    led: dict[int, int] = {}
    for place in order:
        own = [(number, int(bands[place, number])) for number in np.flatnonzero(shared[place]).tolist()]
        near = {leader for band in own for leader in leaders.get(band, ())}
        for leader in sorted(near, key=order.__getitem__):
            if may_be_same(leader, place) and same_question(stem_of(leader), stem_of(place)):
                led[place] = leader
                break
        else:
            for band in own:
                leaders[band].append(place)
    return led
