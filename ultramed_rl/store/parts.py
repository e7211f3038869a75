"""The files of a phase that is under way, so that a killed run repeats only what it had not written yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.atomic import remove, write_json, write_whole
from ultramed_rl.store.digests import digest_inputs
from ultramed_rl.store.tables import read_records, table_of_records, write_table

T = TypeVar("T")
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
