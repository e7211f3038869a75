"""In which order a folder's changes go to its URL, so that what is there is a run that can be taken up at any time.

A file of data goes before the manifest that names it, manifests in the order in which they were written, the commits of
rounds last. Before data of a finished artifact is replaced, its old manifest goes. What is deleted goes after the
manifests that say so. Inputs, the file that says what the parts beside it are made from, go before them and, where they
change, after the parts of before are gone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

from ultramed_rl.store.parts import INPUTS as PARTS_INPUTS
from ultramed_rl.store.remote.versions import Version, Versions, list_versions, version_of

COMMIT, STATUS = "commit.json", "status.json"
INPUTS = ("inputs.json", PARTS_INPUTS)
_LEDGER = ("rows.jsonl", "dead_letters.jsonl")


@dataclass(frozen=True)
class Snapshot:
    """A folder's files. `steady` are manifests that stayed the same while the other files were listed: all data that
    they name is among these. `settled`: all manifests were there at one instant."""

    files: Versions
    steady: frozenset[str]
    settled: bool


@dataclass(frozen=True)
class Plan:
    """Names of files in the order of the fields; of `manifests`, `withdraw` and `revoke` in their own order."""

    withdraw: tuple[str, ...]
    clear: tuple[str, ...]
    inputs: tuple[str, ...]
    data: tuple[str, ...]
    manifests: tuple[str, ...]
    revoke: tuple[str, ...]
    delete: tuple[str, ...]
    delete_inputs: tuple[str, ...]

    @property
    def empty(self) -> bool:
        return not any(getattr(self, field.name) for field in fields(self))


def take_snapshot(folder: Path, published: Mapping[str, Version]) -> Snapshot:
    """What is there now: manifests, then everything, then manifests again, twice."""
    before = list_versions(folder, ".json")
    files = list_versions(folder)
    names = {name for name in {*before, *files, *published} if name.endswith(".json")}
    after, again = _versions_of(folder, names), _versions_of(folder, names)
    files = {name: v for name, v in files.items() if not name.endswith(".json")} | after
    steady = frozenset(name for name in before if before[name] == after.get(name))
    same = all(after.get(n) == again.get(n) for n in names if PurePosixPath(n).name != STATUS)
    return Snapshot(files, steady, same)


def make_plan(folder: Path, snapshot: Snapshot, published: Mapping[str, Version]) -> Plan:
    """What is to be done so that the URL has what the snapshot has."""
    files = snapshot.files
    known = files.keys() | published.keys()
    changed = {name for name, version in files.items() if published.get(name) != version}
    gone = {n for n, version in published.items() if n not in files and not _spared(folder, n, version)}

    clear = _in_the_way(changed, published)
    manifests = {name for name in known if is_manifest(name, known)}
    data = ((changed - manifests) | (clear & files.keys())) - {n for n in changed if is_inputs(n)}
    withdraw = {
        c for n in data | clear for c in manifests_of(n) if c in published and published[c] != files.get(c)
    }
    withdraw |= {c for m in withdraw if (c := _beside(m, COMMIT)) in published}
    # What a new artifact has not, its manifest must not find there.
    clear |= {
        n
        for n in gone - manifests
        if any(c in files and (c in withdraw or c not in published) for c in manifests_of(n))
    }
    publish = (changed & manifests) | (withdraw & files.keys())
    deleted = gone - manifests - clear
    return Plan(
        withdraw=tuple(sorted(withdraw, key=lambda n: (not is_commit(n), n))),
        clear=tuple(sorted(clear)),
        inputs=tuple(sorted(n for n in changed if is_inputs(n))),
        data=tuple(sorted(data)),
        manifests=tuple(sorted(publish, key=lambda n: _publishing_order(n, files[n]))),
        revoke=tuple(sorted((gone & manifests) - withdraw, key=lambda n: _revoking_order(n, published[n]))),
        delete=tuple(sorted(n for n in deleted if not is_inputs(n))),
        delete_inputs=tuple(sorted(n for n in deleted if is_inputs(n))),
    )


def manifests_of(name: str) -> Iterator[str]:
    """The names that a manifest of this file would have: it may be one's artifact, or inside it."""
    path = PurePosixPath(name)
    if path.suffix == ".parquet":
        yield str(path.with_suffix(".json"))
    if path.name in _LEDGER:
        yield str(path.with_name("manifest.json"))
    for folder in path.parents[:-1]:
        yield f"{folder}.json"
        if folder.suffix == ".parquet":  # records in several files
            yield str(folder.with_suffix(".json"))


def is_manifest(name: str, known: Container[str]) -> bool:
    """Whether a file says that something is finished: JSON that is no part of an artifact itself."""
    if not name.endswith(".json") or PurePosixPath(name).name in (*INPUTS, STATUS):
        return False
    return not any(manifest in known for manifest in manifests_of(name))


def is_commit(name: str) -> bool:
    """Whether it is the commit of a round."""
    return PurePosixPath(name).name == COMMIT


def is_inputs(name: str) -> bool:
    """Whether it says what the parts in its folder are made from; the run's own, at its top, is data like any other."""
    return "/" in name and PurePosixPath(name).name in INPUTS


def is_bound(name: str, known: Container[str]) -> bool:
    """Whether a file belongs to a manifest or to inputs, and so must be the one that was listed beside these."""
    parents = PurePosixPath(name).parents[:-1]
    return any(m in known for m in manifests_of(name)) or any(
        f"{p}/{i}" in known for p in parents for i in INPUTS
    )


def _versions_of(folder: Path, names: Iterable[str]) -> Versions:
    return {name: version for name in names if (version := version_of(folder / name)) is not None}


def _in_the_way(changed: set[str], published: Mapping[str, Version]) -> set[str]:
    """What must be gone before anything new is uploaded: parts of other inputs, and files where a folder comes or the
    other way round."""
    renewed = {str(PurePosixPath(name).parent) for name in changed if is_inputs(name) and name in published}
    folders = {str(folder) for name in changed for folder in PurePosixPath(name).parents}
    return {
        name
        for name in published
        if name in folders
        or any(
            str(folder) in changed or (str(folder) in renewed and not is_inputs(name))
            for folder in PurePosixPath(name).parents
        )
    }


def _publishing_order(name: str, version: Version) -> tuple[bool, int, int, str]:
    """As they were written; where clocks are too coarse to tell, what is deeper before what sums it up."""
    return is_commit(name), version.mtime_ns, -name.count("/"), name


def _revoking_order(name: str, version: Version) -> tuple[bool, int, str]:
    return not is_commit(name), -version.mtime_ns, name


def _spared(folder: Path, name: str, version: Version) -> bool:
    """Of what is at the URL alone, an empty folder stays here as long as it is wanted there."""
    return version.is_elsewhere and (folder / name).parent.is_dir()


def _beside(name: str, other: str) -> str:
    return str(PurePosixPath(name).with_name(other))
