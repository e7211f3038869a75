"""A run's files on this machine: each in the version in which it is there, and what belongs to what."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ultramed_rl.store.parts import INPUTS as PARTS_INPUTS

JOURNAL = ".published"
_LEFT_OUT = (".tmp-", ".lock", JOURNAL)
_INPUTS = ("inputs.json", PARTS_INPUTS)
_STATUS = "status.json"
_RECORD_LOG = ("rows.jsonl", "dead_letters.jsonl")


@dataclass(frozen=True)
class Version:
    """Bytes and modification time of a file."""

    size: int
    mtime_ns: int


Versions = dict[str, Version]


def list_versions(folder: Path, suffix: str = "") -> Versions:
    """Every plain file under a folder whose name ends so, without what is half written, locks, links and sockets."""
    found: Versions = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(_LEFT_OUT))
        for name in names:
            if name.endswith(suffix) and not name.startswith(_LEFT_OUT):
                path = Path(place, name)
                version = version_of(path)
                if version is not None:
                    found[path.relative_to(folder).as_posix()] = version
    return found


def version_of(path: Path) -> Version | None:
    """A plain file's version; None where there is none."""
    try:
        state = path.lstat()
    except OSError:
        return None
    return Version(state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else None


def take_snapshot(folder: Path) -> Versions | None:
    """What is there at one instant; None where manifests changed meanwhile.

    All data that a manifest names is there before the manifest is, and as long: it is listed between two looks at these.
    """
    before, files = list_versions(folder, ".json"), list_versions(folder)
    manifests = {n for n in before.keys() | files.keys() if n.endswith(".json") and n != _STATUS}
    same = all(before.get(n) == files.get(n) == version_of(folder / n) for n in manifests)
    return files if same else None


@contextmanager
def pinned(path: Path) -> Iterator[tuple[str, Version]]:
    """A name under which a file's bytes stay the same ones, whatever is put in its place; and their version.

    Raises:
        FileNotFoundError: it is gone.
    """
    with path.open("rb") as file:
        alias, state = f"/proc/self/fd/{file.fileno()}", os.fstat(file.fileno())
        yield alias if os.path.exists(alias) else str(path), Version(state.st_size, state.st_mtime_ns)


def manifests_of(name: str) -> Iterator[str]:
    """The names that a manifest of this file would have: it may be one's artifact, or inside it."""
    path = PurePosixPath(name)
    if path.suffix == ".parquet":
        yield str(path.with_suffix(".json"))
    if path.name in _RECORD_LOG:
        yield str(path.with_name("manifest.json"))
    for folder in path.parents[:-1]:
        yield f"{folder}.json"
        if folder.suffix == ".parquet":  # records in several files
            yield str(folder.with_suffix(".json"))


def is_manifest(name: str, known: Container[str]) -> bool:
    """Whether a file says that something is finished: JSON that is no part of an artifact itself."""
    if not name.endswith(".json") or PurePosixPath(name).name in (*_INPUTS, _STATUS):
        return False
    return not any(manifest in known for manifest in manifests_of(name))


def is_bound(name: str, known: Container[str]) -> bool:
    """Whether a file must be the one that was listed beside others: manifests, inputs, and what belongs to these. Others, as
    logs, are published as they are when their turn comes."""
    if name.endswith(".json"):
        return name != _STATUS
    parents = PurePosixPath(name).parents[:-1]
    return any(m in known for m in manifests_of(name)) or any(
        f"{p}/{i}" in known for p in parents for i in _INPUTS
    )
