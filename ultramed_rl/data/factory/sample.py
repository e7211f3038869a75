"""So many records of each set, drawn by seed."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from ultramed_rl.config.factory_rows import Sample
from ultramed_rl.data.factory.instructions import set_of
from ultramed_rl.data.factory.step import Row, name_of
from ultramed_rl.learning.seeds import seeded_number


def sample_sets(read: Callable[[], Iterable[Row]], config: Sample, counts: Counter[str]) -> Iterator[Row]:
    """The drawn records, in the order of the input; a set that has fewer than asked gives all.

    A record is drawn by its own id, whatever else there is. Memory holds a number for each drawn record.

    Args:
        read: opens the records; the same ones at each call.
        counts: gains the records by set, and SET_short (how many a set lacks to its size).
    """
    heaps: dict[str, list[int]] = {name: [] for name in config.sizes}
    for row in read():
        heap, size = heaps.get(set_of(row)), config.sizes.get(set_of(row), 0)
        if heap is not None and size:
            push = heapq.heappush if len(heap) < size else heapq.heappushpop
            push(heap, -_number(row, config))
    drawn = {name: {-number for number in heap} for name, heap in heaps.items()}
    for row in read():
        if _number(row, config) in drawn.get(set_of(row), ()):
            counts[set_of(row)] += 1
            yield row
    counts.update({f"{name}_short": size - counts[name] for name, size in config.sizes.items()})


def _number(row: Row, config: Sample) -> int:
    return seeded_number(config.seed, "sample", name_of(row))
