"""One publication after the other: what a folder's files have become goes to its URL.

New files are uploaded beside those that the index names, then the index is replaced, then goes what it names no more.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ultramed_rl.store.remote.folder import RemoteFolder
from ultramed_rl.store.remote.index import REPLACED, Index, Published
from ultramed_rl.store.remote.local import Version, Versions, is_bound, pinned, take_snapshot

WORKERS = 8


@dataclass
class Publisher:
    """Publishes one folder, from `claim` on. `guard` raises when another process has taken over; `index` is the one at the
    URL."""

    folder: Path
    remote: RemoteFolder
    published: Published
    guard: Callable[[], None]
    index: Index = field(default_factory=Index)
    workers: int = WORKERS

    def claim(self) -> None:
        """Say at the URL that this folder goes on from what is there, before anything else is written."""
        if self.index.copy != self.published.copy:
            self._write_index(self.index.files)

    def publish(self) -> bool:
        """Bring the URL up to date; whether it is, or files have changed under way and it takes another time.

        A kill, or an error, at any place leaves a run there that can be taken up.
        """
        snapshot = take_snapshot(self.folder)
        if snapshot is None:
            return False
        uploaded = {entry: key for key, entry in self.published.objects.items()}
        files = {name: key for name, v in snapshot.items() if (key := uploaded.get((name, v))) is not None}
        files |= self._only_there(snapshot)
        left = self._unnamed(files)
        if files.keys() >= snapshot.keys() and files == self.index.files and not left:
            return True
        self.guard()
        self._each(self._remove, left)
        known = snapshot.keys() | self.index.files.keys()
        bound = {n: v for n, v in snapshot.items() if n not in files and is_bound(n, known)}
        new = self._name(snapshot.keys() - files.keys(), bound)
        if not all(self._each(lambda name: self._upload(name, new[name], bound.get(name)), new)):
            return False
        files |= {name: key for name, key in new.items() if key in self.published.objects}
        if files != self.index.files:
            self._write_index(files)
        self._each(self._remove, self._unnamed(files))
        return True

    def _write_index(self, files: Mapping[str, str]) -> None:
        self.guard()
        index = Index(self.published.copy, files=files)
        index.write(self.remote)
        self.index = index

    def _unnamed(self, files: Mapping[str, str]) -> set[str]:
        """What is at the URL and neither there in the index nor here."""
        return self.published.objects.keys() - {*self.index.files.values(), *files.values()}

    def _only_there(self, snapshot: Versions) -> dict[str, str]:
        """What a machine goes without stays there as long as its empty folder does here."""
        return {
            name: key
            for key, (name, version) in self.published.objects.items()
            if version is None and name not in snapshot and (self.folder / name).parent.is_dir()
        }

    def _name(self, names: Iterable[str], bound: Container[str]) -> dict[str, str]:
        """A name at the URL for each file: its own, unless another file has that there, or a folder has."""
        taken = self.published.objects.keys() | {
            str(folder) for key in self.published.objects for folder in PurePosixPath(key).parents[:-1]
        }
        found = {}
        for name in sorted(names):
            itself = name not in bound and self.index.files.get(name) == name
            inside = any(str(folder) in self.published.objects for folder in PurePosixPath(name).parents)
            free = itself or not (name in taken or inside)
            found[name] = name if free else f"{REPLACED}/{secrets.token_hex(4)}/{name}"
        return found

    def _upload(self, name: str, key: str, wanted: Version | None) -> bool:
        """Upload a file; False where it must be the wanted version, and isn't any more."""
        try:
            with pinned(self.folder / name) as (path, version):
                if wanted is not None and version != wanted:
                    return False
                self.remote.put(path, key)
        except FileNotFoundError:
            if (self.folder / name).exists():
                raise  # the store's
            return wanted is None
        self.published.add(key, name, version)
        return True

    def _remove(self, key: str) -> None:
        self.remote.delete(key)
        self.published.drop(key)

    def _each(self, action: Callable[[str], object], names: Iterable[str]) -> list[object]:
        """On several files at once; the first error ends it."""
        names = list(names)
        if self.workers == 1 or len(names) < 2:
            return [action(name) for name in names]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="publish") as pool:
            futures = [pool.submit(action, name) for name in names]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
