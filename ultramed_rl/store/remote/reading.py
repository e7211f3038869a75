"""A run at a URL for those who only read it: what they read is fetched into a temporary folder."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ultramed_rl.store.remote.copy import CONFIG
from ultramed_rl.store.remote.folder import RemoteFile, RemoteFolder
from ultramed_rl.store.remote.index import read_index
from ultramed_rl.store.remote.lease import WRITER

_EVERY_S = 5.0
_LOOKS = 3
_WORDS = (".json", ".jsonl", ".yaml")
# Weights, states to go on from, samples as tokens, parts of phases, and what trackers and steps keep for themselves.
_LARGE = re.compile(r"(^|/)(states|best|work|wandb|tensorboard|[^/]+\.parts|\.tmp-[^/]*)(/|$)|/\.tmp-")
_LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".arrow", ".gguf")


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
        copy = _Copy(str(place), Path(scratch), words)
        copy.remote.reach(copy.refresh)
        if not (empty or (copy.folder / CONFIG).is_file()):
            raise ValueError(f"{place}: holds no run; give a URL such as s3://bucket/runs/NAME")
        over = threading.Event()
        thread = threading.Thread(target=copy.keep_fresh, args=(over,), name="fetch", daemon=True)
        if follow:
            thread.start()
        try:
            yield copy.folder
        finally:
            over.set()
            if follow:
                thread.join()


class _Copy:
    """The small files of a URL in a folder of the run's name."""

    def __init__(self, url: str, scratch: Path, words: bool) -> None:
        self.remote = RemoteFolder(url.rstrip("/"))
        self.folder = scratch / url.rstrip("/").rpartition("/")[2]
        self.folder.mkdir()
        self.words = words
        self._fetched: dict[str, tuple[str, RemoteFile]] = {}

    def refresh(self) -> None:
        """Fetch what is new or has changed; what is gone goes. What sums up comes after what it sums up."""
        for _ in range(_LOOKS):
            keys, there = read_index(self.remote).files, self.remote.list()
            if there.keys() >= set(keys.values()):
                break  # else it was replaced in between
        keys = {**keys, WRITER: WRITER}
        listing = {n: (key, there[key]) for n, key in keys.items() if key in there and self._is_read(n)}
        for name in self._fetched.keys() - listing.keys():
            (self.folder / name).unlink(missing_ok=True)
            del self._fetched[name]
        for name in sorted(listing, key=lambda n: (n.endswith(".json"), -n.count("/"), n)):
            if self._fetched.get(name) != listing[name]:
                try:
                    self.remote.get(keys[name], self.folder / name)
                except FileNotFoundError:  # deleted since
                    continue
                self._fetched[name] = listing[name]

    def keep_fresh(self, over: threading.Event) -> None:
        """Until it is over; an outage is waited for."""
        while not over.wait(_EVERY_S):
            try:
                self.refresh()
            except Exception:
                continue

    def _is_read(self, name: str) -> bool:
        if name == WRITER:
            return True
        if _LARGE.search(name) or name.endswith(_LARGE_SUFFIXES):
            return False
        return name.endswith(_WORDS) or not self.words
