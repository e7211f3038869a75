"""A run at a URL for those who only read it: what they read is fetched into a temporary folder."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ultramed_rl.store.remote.copy import CONFIG, INDEX, Index, Stored
from ultramed_rl.store.remote.folder import WRITER, RemoteFolder

_EVERY_S = 5.0
_LOOKS = 3
_WORDS = (".json", ".jsonl", ".yaml")
# Weights, states to go on from, samples as tokens, and what trackers and steps keep for themselves.
_LARGE = re.compile(r"(^|/)(states|best|work|wandb|tensorboard)/|\.(safetensors|bin|pt|pth|arrow|gguf)$")


@contextmanager
def at_hand(
    place: str | Path, *, words: bool = False, follow: bool = False, empty: bool = False
) -> Iterator[Path]:
    """A folder to read a run from: its own, or one with what is at its URL, without weights and states.

    Args:
        words: fetch JSON and YAML alone, which is all that a status takes.
        follow: go on fetching what changes.
        empty: there may be no run yet.

    Raises:
        ValueError: no run there, or nothing opens such a URL.
        RuntimeError: the store cannot be read.
    """
    if "://" not in str(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="ultramed_rl-") as scratch:
        folder = Path(scratch, str(place).rstrip("/").rpartition("/")[2])
        copy = _Copy(RemoteFolder(str(place).rstrip("/")), folder, words)
        copy.remote.reach(copy.refresh)
        if not (empty or (folder / CONFIG).is_file()):
            raise ValueError(f"{place}: holds no run; give a URL such as s3://bucket/runs/NAME")
        over = threading.Event()
        thread = threading.Thread(target=copy.keep_fresh, args=(over,), name="fetch", daemon=True)
        if follow:
            thread.start()
        try:
            yield folder
        finally:
            over.set()
            if follow:
                thread.join()


class _Copy:
    """The small files of a URL in a folder."""

    def __init__(self, remote: RemoteFolder, folder: Path, words: bool) -> None:
        self.remote, self.folder, self.words = remote, folder, words
        self._fetched: dict[str, Stored] = {}
        folder.mkdir()

    def refresh(self) -> None:
        """Fetch what is new or has changed; what is gone goes."""
        for _ in range(_LOOKS):
            with suppress(FileNotFoundError):  # the index was replaced in between
                self._fetch(self.remote.read_json(INDEX, Index) or Index())
                break
        with suppress(FileNotFoundError):  # nobody has written there yet
            self.remote.get(WRITER, self.folder / WRITER)

    def _fetch(self, index: Index) -> None:
        wanted = {
            name: stored
            for name, stored in index.files.items()
            if not _LARGE.search(name) and (name.endswith(_WORDS) or not self.words)
        }
        for name in self._fetched.keys() - wanted.keys():
            (self.folder / name).unlink(missing_ok=True)
            del self._fetched[name]
        # What sums up comes after what it sums up.
        for name in sorted(wanted, key=lambda n: (n.endswith(".json"), -n.count("/"), n)):
            if self._fetched.get(name) != wanted[name]:
                self.remote.get(wanted[name].key, self.folder / name)
                self._fetched[name] = wanted[name]

    def keep_fresh(self, over: threading.Event) -> None:
        """Until it is over; an outage is waited for."""
        while not over.wait(_EVERY_S):
            with suppress(Exception):
                self.refresh()
