"""A run's folder made what its URL has, so that a machine that has never seen the run goes on with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ultramed_rl.store.atomic import remove
from ultramed_rl.store.remote.lease import WRITER
from ultramed_rl.store.remote.place import TEMPORARY, RemoteFile, RemotePlace
from ultramed_rl.store.remote.plan import is_manifest, manifests_of
from ultramed_rl.store.remote.versions import Published, Version, Versions, list_versions, version_of

_WEIGHTS = re.compile(r"rounds/(\d+)/(?:checkpoint|reference_model)/")
_COMMIT = re.compile(r"rounds/(\d+)/commit\.json")
_WORKERS = 8

Listing = Mapping[str, RemoteFile]


def list_run(place: RemotePlace) -> dict[str, RemoteFile]:
    """A run's files at its URL, without what is half written and the lease."""
    return {
        name: file
        for name, file in place.list().items()
        if name != WRITER and not any(part.startswith(TEMPORARY) for part in name.split("/"))
    }


def remove_remote_leftovers(place: RemotePlace) -> None:
    """Delete what a killed process was uploading."""
    for name in place.list():
        if name.rpartition("/")[2].startswith(TEMPORARY):
            place.delete(name)


def pull(place: RemotePlace, folder: Path, published: Published, head: str) -> None:
    """Make the folder what is at the URL. The URL wins: what is here alone is deleted.

    Checkpoints of rounds that nobody needs any more stay at the URL, with an empty folder here in their place. A
    pull that was killed goes on where it was.

    Args:
        head: the copy that the URL was written from.

    Raises:
        RuntimeError: the disk is full.
    """
    listing = list_run(place)
    needless = needless_files(listing)
    kept = _kept(place, folder, published, listing, head)
    for name in sorted(list_versions(folder).keys() - kept.keys(), key=lambda n: not n.endswith(".json")):
        remove(folder / name)
    published.begin(kept, head, complete=False)
    missing = listing.keys() - kept.keys()

    def fetch(name: str) -> None:
        place.get(name, folder / name)
        version = version_of(folder / name)
        assert version is not None, name
        published.add(name, version)

    for name in missing & needless:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        published.add(name, Version.elsewhere(listing[name].size))
    wanted = sorted(missing - needless)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="pull") as pool:
        for batch in _in_order(wanted):
            list(pool.map(fetch, batch))
    published.begin(published.versions, head, complete=True)


def reconcile(place: RemotePlace, published: Published) -> None:
    """Correct what this folder knows of its URL by what is there: a killed run noted its last steps by halves."""
    listing = list_run(place)
    known = published.versions
    same = {n: v for n, v in known.items() if n in listing and listing[n].size == v.size}
    unknown = {name: Version(file.size, 0) for name, file in listing.items() if name not in same}
    published.begin(same | unknown, published.head, complete=True)


def needless_files(names: Iterable[str]) -> set[str]:
    """Weights of the rounds before the last checkpoint of a committed one, from which policy and reference go on."""
    names = set(names)
    committed = {int(match[1]) for name in names if (match := _COMMIT.fullmatch(name))}
    done = next(index for index in range(len(committed) + 1) if index not in committed)
    saved = [index for index in range(done) if f"rounds/{index:03d}/checkpoint.json" in names]
    return {name for name in names if saved and (match := _WEIGHTS.match(name)) and int(match[1]) < saved[-1]}


def _kept(place: RemotePlace, folder: Path, published: Published, listing: Listing, head: str) -> Versions:
    """Files here that needn't be fetched: those of a killed pull of the same, and artifacts of the same manifests."""
    here = {n: v for n, v in list_versions(folder).items() if n in listing and listing[n].size == v.size}
    pulled = published.versions if published.head == head and not published.complete else {}
    same = {n for n in here if is_manifest(n, here) and place.read(n) == (folder / n).read_bytes()}
    return {
        n: v
        for n, v in here.items()
        if pulled.get(n) == v or n in same or any(m in same for m in manifests_of(n))
    }


def _in_order(names: Iterable[str]) -> list[list[str]]:
    """Data before JSON."""
    names = list(names)
    return [[n for n in names if not n.endswith(".json")], [n for n in names if n.endswith(".json")]]
