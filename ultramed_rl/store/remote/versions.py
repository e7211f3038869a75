"""Files of a folder in the version in which they are there, and those of them that are at the URL."""

from __future__ import annotations

import json
import os
import secrets
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.store.atomic import write_whole

INDEX = ".published"
_LEFT_OUT = (".tmp-", ".lock", INDEX)
_ELSEWHERE = -1


@dataclass(frozen=True)
class Version:
    """Bytes and modification time of a file. Those that are at the URL alone, on purpose, have no time."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, state: os.stat_result) -> Version:
        return cls(state.st_size, state.st_mtime_ns)

    @classmethod
    def elsewhere(cls, size: int) -> Version:
        """Of a file that a machine goes without."""
        return cls(size, _ELSEWHERE)

    @property
    def is_elsewhere(self) -> bool:
        return self.mtime_ns == _ELSEWHERE


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
    return Version.of(state) if stat.S_ISREG(state.st_mode) else None


@contextmanager
def pinned(path: Path) -> Iterator[tuple[str, Version]]:
    """A name under which a file's bytes stay the same ones, whatever is put in its place; and their version.

    Raises:
        FileNotFoundError: it is gone.
    """
    with path.open("rb") as file:
        alias = f"/proc/self/fd/{file.fileno()}"
        yield alias if os.path.exists(alias) else str(path), Version.of(os.fstat(file.fileno()))


class Published:
    """Which version of each file is at the URL, as far as this folder knows; in a journal, so that a restart uploads
    nothing twice.

    `copy` names this folder's copy of the run. `head` is the copy that the URL was written from last when this one
    was begun from it, and `complete` whether all of that was pulled.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.path, self.url = folder / INDEX, url
        self.copy, self.head, self.complete = secrets.token_hex(8), "", False
        self.versions: Versions = {}
        self._lock = threading.Lock()
        self._read()

    def begin(self, versions: Mapping[str, Version], head: str, complete: bool) -> None:
        """Begin the journal anew."""
        self.versions, self.head, self.complete = dict(versions), head, complete
        first = {"url": self.url, "copy": self.copy, "head": head, "complete": complete}
        lines = [json.dumps(first), *(_line(name, version) for name, version in self.versions.items())]
        text = "".join(line + "\n" for line in lines)
        write_whole(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def add(self, name: str, version: Version) -> None:
        """This version of a file is at the URL."""
        self._note(name, version)

    def drop(self, name: str) -> None:
        """A file isn't at the URL any more."""
        self._note(name, None)

    def _note(self, name: str, version: Version | None) -> None:
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(_line(name, version) + "\n")
            self._apply(name, version)

    def _apply(self, name: str, version: Version | None) -> None:
        if version is None:
            self.versions.pop(name, None)
        else:
            self.versions[name] = version

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        if not lines:
            return
        first = _parse(lines[0])
        if not isinstance(first, dict) or first.get("url") != self.url:
            return
        self.copy, self.head, self.complete = first["copy"], first["head"], first["complete"]
        for entry in map(_parse, lines[1:]):
            if entry is not None:
                name, size, mtime_ns = entry
                self._apply(name, None if size is None else Version(size, mtime_ns))


def _line(name: str, version: Version | None) -> str:
    return json.dumps([name, version.size, version.mtime_ns] if version else [name, None, None])


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # the last line of a killed run
        return None
