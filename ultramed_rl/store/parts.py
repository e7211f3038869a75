"""A phase whose records are kept as they come, so that a killed run repeats only what it had not written yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ultramed_rl.store.artifacts import ArtifactFolder, read_json
from ultramed_rl.store.atomic import remove, write_json, write_whole
from ultramed_rl.store.digests import digest_inputs
from ultramed_rl.store.tables import read_records, table_of_records, write_table

T = TypeVar("T")
PART_RECORDS = 2000
PART_SECONDS = 60.0
INPUTS = "_inputs.json"  # readers of parquet folders pass over what begins so
_NUMBERED = "[0-9]*.parquet"  # and not what a kill left half written


class Parts(Generic[T]):
    """The parts of one phase in `NAME.parts/`: numbered files, and the digest of what they are made from."""

    def __init__(self, path: Path, kind: type[T], inputs: Sequence[Any]) -> None:
        self.path, self.kind = path, kind
        digest, known = digest_inputs(inputs), path / INPUTS
        if not known.is_file() or read_json(known)["inputs"] != digest:
            remove(path)
            path.mkdir(parents=True)
            write_json(known, {"inputs": digest})
        self._number = max((int(file.stem) for file in path.glob(_NUMBERED)), default=-1)

    def read(self) -> list[T]:
        """All records that were kept."""
        return [
            record for file in sorted(self.path.glob(_NUMBERED)) for record in read_records(self.kind, file)
        ]

    def keep(self, records: Sequence[T]) -> None:
        """One more part."""
        self.prepare(records)()

    def prepare(self, records: Sequence[T]) -> Callable[[], None]:
        """What writes one more part, the records turned into a table already: for a thread that needs no Python."""
        table = table_of_records(records, self.kind)
        number = self._number = self._number + 1
        path = self.path / f"{number:06d}.parquet"
        return lambda: write_whole(path, lambda file: write_table(table, file))

    def keep_as_they_come(self, batches: Iterable[Sequence[T]]) -> Iterator[T]:
        """Pass records on, and keep a part whenever there are many of them or it is long since the last one."""
        waiting: list[T] = []
        last = time.monotonic()
        try:
            for batch in batches:
                waiting += batch
                yield from batch
                if len(waiting) >= PART_RECORDS or time.monotonic() - last > PART_SECONDS:
                    self.keep(waiting)
                    waiting, last = [], time.monotonic()
        finally:
            if waiting:
                self.keep(waiting)


def phase_in_parts(
    folder: ArtifactFolder,
    name: str,
    compute: Callable[[set[str]], Iterable[Sequence[T]]],
    *inputs: Any,
    kind: type[T],
    key: Callable[[T], str],
    order: Sequence[str],
) -> list[T]:
    """Like `ArtifactFolder.phase`, for a phase that may take hours.

    Args:
        compute: given the keys that are done already, yields the others' records, whole keys at a time.
        key: what a record belongs to.
        order: every key, in the order in which their records are to stand.

    Raises:
        ValueError: like `phase`.
    """
    parts_path = folder.path / f"{name}.parts"

    def gather(*_: Any) -> list[T]:
        parts = Parts(parts_path, kind, inputs)
        found: dict[str, list[T]] = {}
        for record in parts.read():
            found.setdefault(key(record), []).append(record)
        done = set(found)
        for record in parts.keep_as_they_come(compute(done)) if len(done) < len(order) else ():
            assert key(record) not in done, f"{key(record)}: computed twice"
            found.setdefault(key(record), []).append(record)
        assert found.keys() == set(order), "keys lost or unasked for"
        return [record for k in order for record in found[k]]

    records = folder.phase(name, gather, *inputs, kind=kind)
    remove(parts_path)
    return records
