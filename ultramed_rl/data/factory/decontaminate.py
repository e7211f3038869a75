"""Instructions that stand in a benchmark: as the same words, with many of an item's word runs, or nearly so.

item --> stem --> key, 13-grams, vector, content --------+
                                                        +--> exact | ngram | near, with the item and the distance
row  --> stem --> key, 13-grams, vector, content --------+

Near is the paper's rule (arXiv 2406.03949): squared L2 distance of unit vectors at most 0.05 and lengths that differ by
at most 20 %; and as much of the content in common, which a paraphrase or a cut leaves and a vector may not show. Short
texts that differ by a number, a name or a negation are not near. The paper looks at each row's one nearest item, which
may fail by its length where another item passes; here every item within the distance is looked at. Options are found by what they look like and never by
counting lines, so an open question keeps its words; a text without words is in no benchmark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from ultramed_rl.config.factory import Decontaminate
from ultramed_rl.data.factory.hashing import hash_set
from ultramed_rl.data.factory.instructions import named_instruction
from ultramed_rl.data.likeness import (
    Embed,
    NearRule,
    Stem,
    check_unit_vectors,
    content_marks,
    equal_keys,
    options_meet,
    read_stem,
    shared_content,
)

Rule = Literal["exact", "ngram", "near"]
FindHits = Callable[[Sequence[Stem]], Iterator[tuple[int, float, int]]]
_TEXTS = ("record_id", "rule", "benchmark", "item_id")
_SCHEMA = pa.schema({**dict.fromkeys(_TEXTS, pa.string()), "distance": pa.float64()})
_FEW, _SOME, _MOST = 16, 0.4, 0.6  # of few marks, and of more, what a cut, other forms and slips leave
_LONGER = 3  # times as many marks as the shorter text's that a text may have
_ROWS = 256  # compared with items together
_MARGIN = 1e-3  # by which float32 distances of unit vectors may be wrong, many times over


@dataclass(frozen=True)
class BenchmarkItem:
    """A question of a test set, with its context and options in lettered lines."""

    benchmark: str
    item_id: str
    text: str


@dataclass(frozen=True)
class Contaminated:
    """A row to remove, the first rule that says so, and the item that it is alike to. `distance` is 0 (exact), 1 - the
    shared part of the item's n-grams (ngram), or squared L2 or 1 - the shared part of the content, whichever is less
    (near)."""

    record_id: str
    rule: Rule
    benchmark: str
    item_id: str
    distance: float


class Decontaminator:
    """Test items, and the search for them in blocks of rows; workers can be sent one."""

    def __init__(self, items: Iterable[BenchmarkItem], config: Decontaminate, embed: Embed) -> None:
        """
        Args:
            embed: texts to float32 unit vectors [n, d], of stems without options.

        Raises:
            ValueError: no item with words in it, or `embed` gives other than one unit vector a text.
        """
        read = [(item, read_stem(item.text)) for item in items]
        self.items = [item for item, stem in read if stem.words]
        self._stems = [stem for _, stem in read if stem.words]
        if not self.items:
            raise ValueError(
                f"decontaminate: 0 of {len(read)} items of the test sets hold words; name a set that has questions"
            )
        self._config = config
        self._by_key: dict[str, list[int]] = defaultdict(list)
        for place, stem in enumerate(self._stems):
            self._by_key[stem.key].append(place)
        self._grams = _Held(self._ngrams(self._stems))
        self._marks = _Held(_marks(self._stems))
        rule = NearRule(config.squared_l2, config.length, config.least_words)
        self._near = NearItems(self._stems, embed, rule)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """A block of rows -> a table of its contaminated ones, with the fields of `Contaminated`. Raises ValueError: a row
        without an id or an instruction."""
        named = [named_instruction(row, self._config.columns) for row in rows]
        removals = self.search([name for name, _ in named], [text for _, text in named])
        return pa.Table.from_pylist([vars(one) for one in removals], schema=_SCHEMA)

    def search(self, ids: Sequence[str], texts: Sequence[str]) -> list[Contaminated]:
        """The contaminated ones of some texts, in order. A text's result doesn't depend on the others."""
        stems = [read_stem(text) for text in texts]
        hits: dict[int, tuple[Rule, float, int]] = {}
        rules: dict[Rule, FindHits] = {
            "exact": self._find_exact,
            "ngram": self._find_ngrams,
            "near": self._find_near,
        }
        for rule, find in rules.items():
            rows = [row for row in range(len(stems)) if row not in hits]
            for place, distance, item in find([stems[row] for row in rows]):
                hit = (rule, distance, item)
                hits[rows[place]] = min(hits.get(rows[place], hit), hit)
        return [
            Contaminated(ids[row], rule, self.items[item].benchmark, self.items[item].item_id, distance)
            for row, (rule, distance, item) in sorted(hits.items())
        ]

    # Each finds (place in `stems`, distance, item) of what its rule says; the least of a row counts.

    def _find_exact(self, stems: Sequence[Stem]) -> Iterator[tuple[int, float, int]]:
        for row, stem in enumerate(stems):
            for item in {item for key in equal_keys(stem) for item in self._by_key.get(key, ())}:
                if options_meet(self._stems[item], stem):
                    yield row, 0.0, item

    def _find_ngrams(self, stems: Sequence[Stem]) -> Iterator[tuple[int, float, int]]:
        for rows, items, shared, _ in self._grams.shared(self._ngrams(stems)):
            shares = shared / self._grams.sizes[items]
            enough = shares >= self._config.overlap
            gaps = (1.0 - shares[enough]).tolist()
            yield from zip(rows[enough].tolist(), gaps, items[enough].tolist(), strict=True)

    def _find_near(self, stems: Sequence[Stem]) -> Iterator[tuple[int, float, int]]:
        for row, item, distance in self._near.pairs(stems):
            if shared_content(self._stems[item], stems[row]):
                yield row, distance, item
        for near, items, shared, sizes in self._marks.shared(_marks(stems)):
            fewer, more = (
                np.minimum(sizes, self._marks.sizes[items]),
                np.maximum(sizes, self._marks.sizes[items]),
            )
            alike = shared >= np.where(fewer > _FEW, _MOST, _SOME) * fewer
            alike &= more <= _LONGER * fewer  # a few of an item's words stand in many a long text
            for number, item in zip(near[alike].tolist(), items[alike].tolist(), strict=True):
                share = shared_content(self._stems[item], stems[number])
                told = share == 1.0 or options_meet(self._stems[item], stems[number])
                if told and share >= self._config.content:
                    yield number, round(1.0 - share, 6), item

    def _ngrams(self, stems: Sequence[Stem]) -> list[np.ndarray]:
        """The hashed n-grams of each stem, each once: a row that says one twice holds it once."""
        size = self._config.ngram
        return [
            hash_set(" ".join(stem.words[i : i + size]) for i in range(len(stem.words) - size + 1))
            for stem in stems
        ]


def _marks(stems: Sequence[Stem]) -> list[np.ndarray]:
    """The hashed marks of each stem's content, each once."""
    return [hash_set(content_marks(stem.content)) for stem in stems]


class _Held:
    """The numbers that items hold, each once an item, and how many of them rows hold."""

    def __init__(self, items: Sequence[np.ndarray]) -> None:
        self.sizes = np.array([len(own) for own in items])
        self._known = np.unique(np.concatenate([np.zeros(1, dtype=np.uint64), *items]))
        self._items = self._matrix(items).T.tocsr()

    def _matrix(self, texts: Sequence[np.ndarray]) -> csr_array:
        """[texts, known numbers], 1 where a text holds a number."""
        numbers, rows = np.concatenate(texts), np.repeat(np.arange(len(texts)), [len(own) for own in texts])
        columns = np.minimum(np.searchsorted(self._known, numbers), len(self._known) - 1)
        known = self._known[columns] == numbers
        columns = columns[known]
        ones = np.ones(len(columns), dtype=np.int32)
        return csr_array((ones, (rows[known], columns)), shape=(len(texts), len(self._known)))

    def shared(self, texts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        """By blocks of rows: row, item, how many numbers both hold, where there are any, and how many the row has."""
        for first in range(0, len(texts), _ROWS):
            counts = (self._matrix(texts[first : first + _ROWS]) @ self._items).tocoo()
            rows, sizes = counts.row + first, np.array([len(own) for own in texts])
            yield rows, counts.col, counts.data, sizes[rows]


class NearItems:
    """Items, and all texts within a squared L2 distance and a relative difference of lengths. Both sides are taken in the
    order of their lengths, so that a block of rows is held against those items alone whose lengths come near to its own:
    nothing is missed, and the most is never looked at."""

    def __init__(self, items: Sequence[Stem], embed: Embed, rule: NearRule) -> None:
        """Raises ValueError where `embed` gives other than one unit vector a text."""
        self._items, self._embed, self._rule = items, embed, rule
        self._lengths, self._places = self._by_length(items)
        self._vectors = self._embedded(items, self._places)

    def pairs(self, rows: Sequence[Stem]) -> Iterator[tuple[int, int, float]]:
        """(row, item, squared L2 distance) of all near ones whose options meet. Rows that no item's length comes near to aren't
        embedded."""
        lengths, order = self._by_length(rows)
        reach = [self._window(length, length) for length in lengths]
        reached = np.array([near.start < near.stop for near in reach], dtype=bool)
        lengths, order = lengths[reached], order[reached]
        vectors = self._embedded(rows, order)
        least = 1.0 - (self._rule.squared_l2 + _MARGIN) / 2  # |a - b|^2 = 2 - 2 ab
        for first in range(0, len(order), _ROWS):
            block = slice(first, first + _ROWS)
            near = self._window(lengths[block][0], lengths[block][-1])
            ours, theirs = np.nonzero(vectors[block] @ self._vectors[near].T >= least)
            ours, theirs = ours + first, theirs + near.start
            longer = np.maximum(lengths[ours], self._lengths[theirs])
            alike = np.abs(lengths[ours] - self._lengths[theirs]) <= self._rule.length * longer + 1e-9
            ours, theirs = ours[alike], theirs[alike]
            # Anew in float64, so that distances are the same in every block.
            gaps = vectors[ours].astype(np.float64) - self._vectors[theirs]
            distances = np.einsum("nd,nd->n", gaps, gaps)
            for one, other, distance in zip(ours, theirs, distances, strict=True):
                row, item = int(order[one]), int(self._places[other])
                if distance <= self._rule.squared_l2 and options_meet(self._items[item], rows[row]):
                    yield row, item, round(float(distance), 6)

    def _by_length(self, stems: Sequence[Stem]) -> tuple[np.ndarray, np.ndarray]:
        """Of the stems that are long enough the characters, in their order, and the places."""
        long = [place for place, stem in enumerate(stems) if len(stem.words) >= self._rule.words]
        long.sort(key=lambda place: len(stems[place].key))
        return np.array([len(stems[place].key) for place in long]), np.array(long, dtype=np.int64)

    def _embedded(self, stems: Sequence[Stem], places: np.ndarray) -> np.ndarray:
        if not len(places):
            return np.zeros((0, 1), dtype=np.float32)
        return check_unit_vectors(self._embed([stems[place].text for place in places]), len(places))

    def _window(self, shortest: float, longest: float) -> slice:
        """The items that rows of such lengths may be compared with, of the sorted ones."""
        low, high = shortest * (1.0 - self._rule.length), longest / (1.0 - self._rule.length)
        first = np.searchsorted(self._lengths, low - 1e-3, side="left")
        return slice(int(first), int(np.searchsorted(self._lengths, high + 1e-3, side="right")))
