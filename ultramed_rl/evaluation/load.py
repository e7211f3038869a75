"""A benchmark's rows become its items.

rows --> a task's items --> counted, named, sampled
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random

from ultramed_rl.data.chats import FittingRows
from ultramed_rl.data.likeness import normalise_text
from ultramed_rl.data.sources import list_sources
from ultramed_rl.evaluation.items import Item, Task
from ultramed_rl.learning.seeds import derive_seed

MISFITS_ALLOWED = 0.05  # share of a file's rows


@dataclass(frozen=True)
class Loaded:
    """Items, and counts of what became of the rows: before a limit took its sample.

    rows; misfit and misfit_NAME: not usable; left_out: of another subject or type; duplicate: dropped;
    repeated: as good as the same as an earlier item, but kept; same_options: kept with two options that say
    the same; items: the rest.
    """

    items: tuple[Item, ...]
    counts: dict[str, int]


def load_items(
    task: Task, uri: str | Sequence[str] | None = None, limit: int | None = None, seed: int = 0
) -> Loaded:
    """The task's items from `uri`, or from where the task's rows are by default, in file order.

    Every item has an id of its own: the data's, else 16 hexadecimal digits that its texts give. Where a
    benchmark has the same question twice, both are asked, as its published numbers count both; only
    `task.drops_repeats` says otherwise.

    Args:
        uri: a source of rows, or several that are read in turn; "offline" stands for the installed package's.
        limit: draw so many items, evenly over the whole set; the same ones for the same seed.

    Raises:
        ValueError: one line. No source known, an unreadable one, over 5 % misfits in a file, or no item at all.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"task {task.name!r}: limit={limit}, but at least 1 item must be asked; raise it")
    counts = Counter(
        dict.fromkeys(("rows", "misfit", "left_out", "duplicate", "repeated", "same_options"), 0)
    )
    read = _read_items(task, find_uris(task, uri), counts)
    items = tuple(_with_ids(_without_repeats(task, read, counts)))
    counts["items"] = len(items)
    if not items:
        raise ValueError(
            f"task {task.name!r}: none of {counts['rows']} rows is one of its questions; name another source"
        )
    if limit is not None and limit < len(items):
        places = Random(derive_seed("items", task.name, seed)).sample(range(len(items)), limit)
        items = tuple(items[place] for place in sorted(places))
    return Loaded(items, dict(counts))


def find_uris(task: Task, uri: str | Sequence[str] | None) -> Sequence[str]:
    """Where the task's rows are. Raises ValueError where no source is known."""
    if uri is None and not task.uris:
        raise ValueError(
            f"task {task.name!r}: uri=null, but no public source has its rows; get them where the task's authors give them "
            "out, and name the file as the task's uri"
        )
    if uri == "offline" and not task.offline:
        raise ValueError(
            f"task {task.name!r}: uri='offline', but no package holds its rows; name a file or a hub set as its uri"
        )
    if uri is None:
        return task.uris
    return [task.offline if uri == "offline" else uri] if isinstance(uri, str) else uri


def _read_items(task: Task, uris: Sequence[str], counts: Counter[str]) -> Iterator[Item]:
    sources = [source for uri in uris for source in list_sources(uri)]
    for source in sources:
        subject = Path(source).stem if task.subject_files and len(sources) > 1 else ""
        own: Counter[str] = Counter()
        unfit, fix = f"don't fit task {task.name!r}", "name another source, or repair it"
        fitting = 0
        for item in FittingRows(source, None, MISFITS_ALLOWED, unfit, fix, own).parse(task.read):
            fitting += 1
            yield item if item.subject else replace(item, subject=subject)
        counts.update(own)
        counts["left_out"] += own["rows"] - own["misfit"] - fitting


def _without_repeats(task: Task, items: Iterable[Item], counts: Counter[str]) -> Iterator[Item]:
    seen: set[tuple[str, ...]] = set()
    for item in items:
        options = tuple(map(normalise_text, item.options))
        identity = (normalise_text(item.question), normalise_text(item.context), *options)
        repeats = identity in seen
        seen.add(identity)
        if repeats and task.drops_repeats and not item.subject:
            counts["duplicate"] += 1
            continue
        counts["repeated"] += repeats
        counts["same_options"] += len(set(options)) < len(options)
        yield item


def _with_ids(items: Iterable[Item]) -> Iterator[Item]:
    """The items with ids that differ: one that is taken gains "-2", "-3", ..."""
    taken: set[str] = set()
    for item in items:
        first = item.item_id or _digest(item)
        item_id = first
        for number in count(2):
            if item_id not in taken:
                break
            item_id = f"{first}-{number}"
        taken.add(item_id)
        yield replace(item, item_id=item_id)


def _digest(item: Item) -> str:
    text = "\x1f".join((item.question, item.context, *item.options))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
