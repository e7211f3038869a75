"""Instructions that stand in a benchmark: as the same words, with many of an item's word runs, or nearly so.

item --> stem --> key, 13-grams, vector --+
                                          +--> exact | ngram | near, with the item and the distance
row  --> stem --> key, 13-grams, vector --+

The near rule is the paper's (arXiv 2406.03949): squared L2 distance of unit vectors at most 0.05 and lengths that
differ by at most 20 %. The paper looks at each row's one nearest item, which may fail by its length where another
item passes; here every item within the distance is looked at. Options are found by what they look like and never by
counting lines, so an open question keeps its words; a text without words is in no benchmark.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ultramed_rl.config.factory import Decontaminate
from ultramed_rl.data.factory.columns import named_instruction
from ultramed_rl.data.factory.hashing import hash_words, ngrams
from ultramed_rl.data.likeness import Embed, NearRule, check_unit_vectors, equal_keys, same_question
from ultramed_rl.data.stems import Stem, read_stem

Rule = Literal["exact", "ngram", "near"]
_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("rule", pa.string()),
        ("benchmark", pa.string()),
        ("item_id", pa.string()),
        ("distance", pa.float64()),
    ]
)
_BAND = 1.1  # longest over shortest row of a band
_MARGIN = 1e-3  # by which float32 distances of unit vectors may be wrong, many times over


@dataclass(frozen=True)
class BenchmarkItem:
    """A question of a test set, with its context and options in lettered lines."""

    benchmark: str
    item_id: str
    text: str


@dataclass(frozen=True)
class Contaminated:
    """A row to remove, the first rule that says so, and the item that it is alike to.

    `distance` is 0 (exact), 1 - the shared part of the item's n-grams (ngram), or squared L2 (near).
    """

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
        self._config, self._embed = config, embed
        self._rule = NearRule(config.squared_l2, config.length, config.least_words)
        self._by_key: dict[str, list[int]] = defaultdict(list)
        for place, stem in enumerate(self._stems):
            self._by_key[stem.key].append(place)
        self._grams = _ItemGrams(self._stems, config.ngram)
        long = [place for place, stem in enumerate(self._stems) if len(stem.words) >= self._rule.words]
        lengths = np.array([len(self._stems[place].key) for place in long])
        vectors = self._vectors([self._stems[place].text for place in long])
        self._near = NearItems(np.array(long, dtype=np.int64), lengths, vectors, self._rule)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """A block of rows -> a table of its contaminated ones, with the fields of `Contaminated`.

        Raises:
            ValueError: a row without an id or an instruction.
        """
        named = [named_instruction(row, self._config.columns) for row in rows]
        removals = self.search([name for name, _ in named], [text for _, text in named])
        return pa.Table.from_pylist([vars(one) for one in removals], schema=_SCHEMA)

    def search(self, ids: Sequence[str], texts: Sequence[str]) -> list[Contaminated]:
        """The contaminated ones of some texts, in order. A text's result doesn't depend on the others."""
        stems = [read_stem(text) for text in texts]
        hits: dict[int, tuple[Rule, int, float]] = {}
        self._find_exact(stems, hits)
        self._find_ngrams(stems, hits)
        self._find_near(stems, hits)
        result = []
        for row, (rule, place, distance) in sorted(hits.items()):
            item = self.items[place]
            result.append(Contaminated(ids[row], rule, item.benchmark, item.item_id, distance))
        return result

    def _find_exact(self, stems: Sequence[Stem], hits: dict[int, tuple[Rule, int, float]]) -> None:
        for row, stem in enumerate(stems):
            places = {place for key in equal_keys(stem) for place in self._by_key.get(key, ())}
            same = [place for place in places if same_question(self._stems[place], stem)]
            if same:
                hits[row] = ("exact", min(same), 0.0)

    def _find_ngrams(self, stems: Sequence[Stem], hits: dict[int, tuple[Rule, int, float]]) -> None:
        rows = [row for row in range(len(stems)) if row not in hits]
        for place, item, share in self._grams.overlaps([stems[row] for row in rows]):
            if share >= self._config.overlap:
                before = hits.get(rows[place])
                if before is None or (1.0 - share, item) < before[2:0:-1]:
                    hits[rows[place]] = ("ngram", item, 1.0 - share)

    def _find_near(self, stems: Sequence[Stem], hits: dict[int, tuple[Rule, int, float]]) -> None:
        rows = [
            row
            for row, stem in enumerate(stems)
            if row not in hits and len(stem.words) >= self._rule.words and self._near.reaches(len(stem.key))
        ]
        vectors = self._vectors([stems[row].text for row in rows])
        lengths = np.array([len(stems[row].key) for row in rows])
        for place, item, distance in self._near.pairs(vectors, lengths):
            row = rows[place]
            if same_question(self._stems[item], stems[row]):
                before = hits.get(row)
                if before is None or (distance, item) < before[2:0:-1]:
                    hits[row] = ("near", item, distance)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, 1), dtype=np.float32)
        return check_unit_vectors(self._embed(texts), len(texts))


class _ItemGrams:
    """The items' word n-grams, each once an item, in ascending order."""

    def __init__(self, stems: Sequence[Stem], size: int) -> None:
        self._size = size
        grams = ngrams(hash_words([stem.key for stem in stems]), size)
        pairs = np.unique(np.stack([grams.values, grams.rows.astype(np.uint64)]), axis=1)
        self._values, self._items = pairs[0], pairs[1].astype(np.int64)
        self._counts = np.bincount(self._items, minlength=len(stems))

    def overlaps(self, stems: Sequence[Stem]) -> list[tuple[int, int, float]]:
        """(row, item, share of the item's n-grams that the row holds) of all that share any."""
        grams = ngrams(hash_words([stem.key for stem in stems]), self._size)
        first = np.searchsorted(self._values, grams.values, side="left")
        count = np.searchsorted(self._values, grams.values, side="right") - first
        hits = np.repeat(np.arange(len(count)), count)
        offset = np.arange(len(hits)) - np.repeat(np.cumsum(count) - count, count)
        places = first[hits] + offset
        # A row that says an n-gram twice holds it once.
        seen = np.unique(np.stack([grams.rows[hits], places]), axis=1)
        pairs, shared = np.unique(np.stack([seen[0], self._items[seen[1]]]), axis=1, return_counts=True)
        shares = shared / self._counts[pairs[1]]
        return list(zip(pairs[0].tolist(), pairs[1].tolist(), shares.tolist(), strict=True))


def count_contaminated(tables: Iterable[pa.Table]) -> dict[tuple[str, str], int]:
    """Rows to remove by (benchmark, rule); each row is in one count."""
    counts: Counter[tuple[str, str]] = Counter()
    for table in tables:
        counts.update(zip(table["benchmark"].to_pylist(), table["rule"].to_pylist(), strict=True))
    return dict(counts)


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
            limits, _, hits = index.range_search(np.ascontiguousarray(vectors[rows]), radius)
            ours, theirs = np.repeat(rows, np.diff(limits.astype(np.int64))), first + hits
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
