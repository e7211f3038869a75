"""Which files a run's copy consists of. At the URL `index.json` says it, and is replaced as one file: so what is there is at
every instant the run as it was at one instant. What this machine knows of it is in a journal.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ultramed_rl.store.atomic import write_whole
from ultramed_rl.store.remote.folder import TEMPORARY, RemoteFolder
from ultramed_rl.store.remote.lease import WRITER
from ultramed_rl.store.remote.local import JOURNAL, Version

INDEX = "index.json"
REPLACED = "replaced"  # the folder of files whose own name was still another one's


@dataclass(frozen=True)
class Index:
    """What is at a URL: files by their names in the run, each under the name that it has there.

    The two are the same but of files that were replaced: the old one stays as long as an index names it.
    `copy` is the folder that it was published from, see `Published`, and `edition` tells one index from the next.
    """

    copy: str = ""
    edition: str = field(default_factory=lambda: secrets.token_hex(8))
    files: Mapping[str, str] = field(default_factory=dict)

    def write(self, remote: RemoteFolder) -> None:
        """Make it the one that counts."""
        remote.write_json(INDEX, asdict(self))


def read_index(remote: RemoteFolder) -> Index:
    """The index at a URL; of a copy that has none, as older versions wrote them or where it was deleted, all
    files that are there.

    Raises:
        ValueError: it is not what was written.
    """
    found = remote.read_json(INDEX)
    if found is None:
        keys = sorted(key for key in list_objects(remote) if TEMPORARY not in key)
        replaced = {key.split("/", 2)[2]: key for key in keys if key.startswith(f"{REPLACED}/")}
        plain = {key: key for key in keys if not key.startswith(f"{REPLACED}/")}
        return Index(edition="", files=replaced | plain)
    try:
        return Index(**found)
    except TypeError:
        raise ValueError(f"{remote.url}/{INDEX}: not what was written; put it back from a copy") from None


def list_objects(remote: RemoteFolder) -> dict[str, int]:
    """Bytes of the files at a URL, without the lease and the index."""
    return {name: file.size for name, file in remote.list().items() if name not in (WRITER, INDEX)}


class Published:
    """What this folder knows of the files at the URL, in a journal, so that a restart uploads nothing twice.

    Attributes:
        objects: of each file there the name in the run and the version here; None where it is only there, on purpose.
        copy: names this folder's copy of the run.
        begun_from: the edition of the index that the folder was made from, and `complete` whether all of that was pulled.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.path, self.url = folder / JOURNAL, url
        self.copy, self.begun_from, self.complete = secrets.token_hex(8), "", False
        self.objects: dict[str, tuple[str, Version | None]] = {}
        self._lock = threading.Lock()
        self._read()

    def begin(
        self, objects: Mapping[str, tuple[str, Version | None]], begun_from: str, complete: bool
    ) -> None:
        """Begin the journal anew."""
        self.objects, self.begun_from, self.complete = dict(objects), begun_from, complete
        first = {"url": self.url, "copy": self.copy, "begun_from": begun_from, "complete": complete}
        lines = [json.dumps(first), *(_line(key, *entry) for key, entry in self.objects.items())]
        text = "".join(line + "\n" for line in lines)
        write_whole(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def add(self, key: str, name: str, version: Version | None) -> None:
        """This version of a file is at the URL under a name of its own, or one that is not kept here."""
        with self._lock:
            self.objects[key] = (name, version)
            self._append(_line(key, name, version))

    def drop(self, key: str) -> None:
        """A file isn't at the URL any more."""
        with self._lock:
            self.objects.pop(key, None)
            self._append(json.dumps([key]))

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        first = _parse(lines[0]) if lines else None
        if not isinstance(first, dict) or first.get("url") != self.url or "begun_from" not in first:
            return
        self.copy, self.begun_from, self.complete = first["copy"], first["begun_from"], first["complete"]
        for entry in map(_parse, lines[1:]):
            if entry is not None and len(entry) == 1:
                self.objects.pop(entry[0], None)
            elif entry is not None:
                key, name, version = entry
                self.objects[key] = (name, None if version is None else Version(*version))


def _line(key: str, name: str, version: Version | None) -> str:
    return json.dumps([key, name, version and [version.size, version.mtime_ns]])


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # the last line of a killed run
        return None
