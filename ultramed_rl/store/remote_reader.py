"""A run at a URL, for who only reads: what is small of it in a temporary folder."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ultramed_rl.store.remote import CONFIG, INDEX, Index, fetch_files
from ultramed_rl.store.remote_folder import WRITER, RemoteFolder

_REFRESH_S, _LOOKS = 5.0, 3
# Weights, states to go on from, samples as tokens, and what trackers and steps keep for themselves.
_LARGE = re.compile(r"(^|/)(states|best|work|wandb|tensorboard)/|\.(safetensors|bin|pt|pth|arrow|gguf)$")
_WORDS = (".json", ".jsonl", ".yaml")


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
    remote = RemoteFolder(str(place).rstrip("/"))
    with tempfile.TemporaryDirectory(prefix="ultramed_rl-") as scratch:
        folder = Path(scratch, remote.url.rpartition("/")[2])
        folder.mkdir()
        with remote.reached():
            _refresh(remote, folder, words)
        if not (empty or (folder / CONFIG).is_file()):
            raise ValueError(f"{place}: holds no run; give a URL such as s3://bucket/runs/NAME")
        over = threading.Event()

        def keep_fresh() -> None:
            while not over.wait(_REFRESH_S):
                with suppress(Exception):  # an outage is waited for
                    _refresh(remote, folder, words)

        thread = threading.Thread(target=keep_fresh, name="fetch", daemon=True)
        if follow:
            thread.start()
        try:
            yield folder
        finally:
            over.set()
            if follow:
                thread.join()


def _refresh(remote: RemoteFolder, folder: Path, words: bool) -> None:
    """Fetch what is new or has changed; what is gone goes."""
    for _ in range(_LOOKS):
        with suppress(FileNotFoundError):  # the index was replaced in between
            index = remote.read_json(INDEX, Index) or Index()
            names = {n for n in index.files if not _LARGE.search(n) and (n.endswith(_WORDS) or not words)}
            fetch_files(remote, index, folder, names)
            break
    with suppress(FileNotFoundError):  # nobody has written there yet
        remote.get(WRITER, folder / WRITER)
