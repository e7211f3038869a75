"""A run's folder made what its URL has, so that a machine that has never seen the run goes on with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ultramed_rl.store.atomic import remove
from ultramed_rl.store.remote.folder import RemoteFolder
from ultramed_rl.store.remote.index import Index, Published, list_objects
from ultramed_rl.store.remote.local import (
    Version,
    Versions,
    is_manifest,
    list_versions,
    manifests_of,
    version_of,
)

_WEIGHTS = re.compile(r"rounds/(\d+)/(?:checkpoint|reference_model)/")
_COMMIT = re.compile(r"rounds/(\d+)/commit\.json")
_WORKERS = 8


def pull(remote: RemoteFolder, folder: Path, published: Published, index: Index) -> None:
    """Make the folder what is at the URL. The URL wins: what is here alone is deleted.

    Checkpoints of rounds that nobody needs any more stay at the URL, with an empty folder here in their place. A
    pull that was killed goes on where it was.

    Raises:
        RuntimeError: the disk is full.
    """
    listing = list_objects(remote)
    names = {name: key for name, key in index.files.items() if key in listing}
    kept = _kept(remote, folder, published, index, names, listing)
    for name in sorted(list_versions(folder).keys() - kept.keys(), key=lambda n: not n.endswith(".json")):
        remove(folder / name)
    strays = {key: (key, Version(size, 0)) for key, size in listing.items()}
    published.begin(
        strays | {names[n]: (n, v) for n, v in kept.items()}, begun_from=index.edition, complete=False
    )

    def fetch(name: str) -> None:
        remote.get(names[name], folder / name)
        published.add(names[name], name, version_of(folder / name))

    needless = needless_files(names)
    missing = names.keys() - kept.keys()
    for name in missing & needless:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        published.add(names[name], name, None)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="pull") as pool:
        for is_json in (False, True):  # data before what names it
            list(pool.map(fetch, sorted(n for n in missing - needless if n.endswith(".json") == is_json)))
    published.begin(published.objects, index.edition, complete=True)


def reconcile(remote: RemoteFolder, published: Published) -> None:
    """Correct what this folder knows of its URL by what is there: a killed run noted its last steps by halves."""
    listing, known = list_objects(remote), published.objects
    same = {
        key: (name, version)
        for key, (name, version) in known.items()
        if key in listing and (version is None or version.size == listing[key])
    }
    unknown = {key: (key, Version(size, 0)) for key, size in listing.items() if key not in same}
    published.begin(same | unknown, published.begun_from, complete=True)


def needless_files(names: Iterable[str]) -> set[str]:
    """Weights of the rounds before the last checkpoint of a committed one, from which policy and reference go on."""
    names = set(names)
    committed = {int(match[1]) for name in names if (match := _COMMIT.fullmatch(name))}
    done = next(index for index in range(len(committed) + 1) if index not in committed)
    saved = [index for index in range(done) if f"rounds/{index:03d}/checkpoint.json" in names]
    return {name for name in names if saved and (match := _WEIGHTS.match(name)) and int(match[1]) < saved[-1]}


def _kept(
    remote: RemoteFolder,
    folder: Path,
    published: Published,
    index: Index,
    names: Mapping[str, str],
    sizes: Mapping[str, int],
) -> Versions:
    """Files here that needn't be fetched: those of a killed pull of the same, and artifacts of the same manifests."""
    here = {n: v for n, v in list_versions(folder).items() if n in names and sizes[names[n]] == v.size}
    same_pull = published.begun_from == index.edition and not published.complete
    pulled = published.objects if same_pull else {}
    same = {n for n in here if is_manifest(n, here) and remote.read(names[n]) == (folder / n).read_bytes()}
    return {
        n: v
        for n, v in here.items()
        if pulled.get(names[n]) == (n, v) or n in same or any(m in same for m in manifests_of(n))
    }
