"""A run's copy at a URL: what is finished in its folder is published there, and a fresh machine goes on from it.

folder -- publish --> URL        (a thread, every few seconds; files first, then the index that names them)
folder <--- fetch --- URL        (before a run is taken up, and for who only reads)

Only what is finished goes there: no parts of a phase that is under way, no database, nothing half written. `index.json` at the
URL says which files the run consists of, and is replaced as one file, so that what is there is at every instant the run as it
was at one instant.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ultramed_rl.kinds import VERDICT
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.atomic import remove, write_json
from ultramed_rl.store.remote_folder import TEMPORARY, WRITER, Lease, LostLease, RemoteFolder
from ultramed_rl.store.run_reader import CONFIG

INDEX = "index.json"
OWN = ".published"  # in the run's folder: the name of this copy of the run, and whether it is whole
WORKERS = 8  # files that are on their way at once
_REFRESH_S, _LOOKS = 5.0, 3
# What a reader goes without: weights, states, samples as tokens, and what trackers and steps keep for themselves.
_LARGE = re.compile(r"(^|/)(states|best|work|wandb|tensorboard)/|\.(safetensors|bin|pt|pth|arrow|gguf)$")
_WORDS = (".json", ".jsonl", ".yaml")
_REPLACED = "replaced"  # at the URL: the folder of files whose own name was still another one's
_LAST_PASSES = 5
_REPLIES = "work/replies.jsonl"  # of a data stage: what it paid for
# Files that change while they are looked at, and that no other file counts on.
_LOOSE = re.compile(rf"[^/]+\.(jsonl|log|html|md)|(status|verdict)\.json|{_REPLIES}|(wandb|tensorboard)/.*")
_WEIGHTS = re.compile(r"rounds/(\d+)/(?:checkpoint|reference_model)/")
_COMMIT = re.compile(r"rounds/(\d+)/commit\.json")


class Version(NamedTuple):
    """A file's bytes, and when it was modified."""

    size: int
    mtime_ns: int


class Stored(NamedTuple):
    """A file at the URL: the name that it has there, and which version of the run's file it is."""

    key: str
    version: Version


@dataclass(frozen=True)
class Index:
    """What is at a URL: its files by their names in the run, and the folder that it was published from."""

    copy: str = ""
    files: dict[str, Stored] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        return {stored.key for stored in self.files.values()}


def list_finished(folder: Path) -> dict[str, Version]:
    """The versions of the plain files under a folder that belong into a copy, by their names in it."""
    versions = {}
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = [n for n in folders if not (n.startswith(TEMPORARY) or n.endswith(".parts"))]
        for path in (inside / name for name in names if not name.startswith((TEMPORARY, ".lock", OWN))):
            version = version_of(folder / path)
            if version is not None and (path.parts[0] != "work" or path.as_posix() == _REPLIES):
                versions[path.as_posix()] = version
    return versions


def version_of(path: Path) -> Version | None:
    """A plain file's version; None where there is none, or a link or a socket."""
    with suppress(OSError):
        state = path.lstat()
        if stat.S_ISREG(state.st_mode):
            return Version(state.st_size, state.st_mtime_ns)
    return None


def needless_files(names: Iterable[str], best: str = "") -> set[str]:
    """Weights of the rounds before the last checkpoint of a committed one, from which policy and reference go on; not those of
    the `best` checkpoint, which is to be the run's."""
    names = set(names)
    committed = {int(match[1]) for name in names if (match := _COMMIT.fullmatch(name))}
    done = next(index for index in range(len(committed) + 1) if index not in committed)
    saved = [index for index in range(done) if f"rounds/{index:03d}/checkpoint.json" in names]
    return {
        name
        for name in names
        if saved
        and (match := _WEIGHTS.match(name))
        and int(match[1]) < saved[-1]
        and not (best and name.startswith(f"{best}/"))
    }


def fetch_files(remote: RemoteFolder, index: Index, folder: Path, wanted: Collection[str]) -> None:
    """Make a folder hold these files of an index, dated as it says. What is there in its version stays, and all else goes."""
    for path in list(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not (path.is_dir() or name in wanted or name in (".lock", OWN, WRITER)):
            remove(path)

    def fetch(name: str) -> None:
        remote.get(index.files[name].key, folder / name, index.files[name].version.mtime_ns)

    missing = [name for name in wanted if version_of(folder / name) != index.files[name].version]
    # What sums up comes after what it sums up.
    _each(fetch, sorted(missing, key=lambda name: (name.endswith(".json"), -name.count("/"), name)))


def _each(action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """On several files at once; the first error ends it."""
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="copy") as pool:
        return list(pool.map(action, items))


class RemoteCopy:
    """Keeps a run's copy at a URL: take it, pull what is there, start to publish, close. The folder's lock is the caller's.
    An upload that fails is tried again, then once more with every publication, and warned about; it never stops the run."""

    def __init__(self, url: str, folder: Path, every_s: float) -> None:
        """Take the URL's lease.

        Raises:
            ValueError: another process publishes there, or nothing can open such a URL.
            RuntimeError: the store cannot be reached.
        """
        self.folder, self.every_s, self.remote = folder, every_s, RemoteFolder(url)
        known = read_json(folder / OWN) if (folder / OWN).is_file() else {}
        known = known if known.get("url") == url else {}
        self.copy, self._whole = known.get("copy", secrets.token_hex(8)), known.get("whole", False)
        self._note(self._whole)
        self.problem: Exception | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._uploaded: dict[tuple[str, Version], str] = {}  # keys, of a publication that came to nothing
        with self.remote.reached():
            self.lease = Lease(self.remote, self.copy, every_s)
            try:
                self.index, self._keys = self._read_url()
            except BaseException:
                self.lease.release()
                raise

    def _read_url(self) -> tuple[Index, set[str]]:
        index, keys = self.remote.read_json(INDEX, Index) or Index(), self.remote.list() - {WRITER, INDEX}
        if not index.copy and any(TEMPORARY not in key for key in keys):
            raise ValueError(
                f"{self.remote.url}: has files, and no {INDEX} that says which are the run's; put it back, or choose "
                "another run.name"
            )
        # Without what somebody deleted there.
        there = {name: stored for name, stored in index.files.items() if stored.key in keys}
        return Index(index.copy, there), keys

    def take_up(self, check: Callable[[Path], None] = lambda config: None) -> None:
        """Make this folder a copy of what is at the URL, unless it is one already and may be ahead of it. `check`: raises
        where the run there, whose config it is given, is not the one to take up; before all of it is pulled. Raises
        RuntimeError: the store cannot be reached, or the disk is full."""
        # The URL has more than this folder where it was written from another one, or this one isn't whole.
        whole = self._whole and (self.folder / CONFIG).is_file()
        behind = not whole or self.index.copy not in (self.copy, "")
        with self.remote.reached():
            if behind and CONFIG in self.index.files:
                with tempfile.TemporaryDirectory() as scratch:
                    saved = Path(scratch, CONFIG)
                    saved.write_bytes(self.remote.read(self.index.files[CONFIG].key) or b"")
                    check(saved)
            if behind and self.index.files:
                self._note(whole=False)
                self._pull()
            self._note(whole=True)
            # Before anything else is written there, the URL says that this folder goes on from what is there.
            if self.index.copy != self.copy:
                self._write_index(self.index.files)

    def _pull(self) -> None:
        """Make the folder what is at the URL. The URL wins: what is here alone is deleted. Checkpoints that no round needs
        any more stay there, with an empty folder here. A pull that was killed goes on where it was: what it fetched has
        the versions of the index."""
        at_url = self.index.files
        verdict = self.remote.read(at_url[VERDICT].key) if VERDICT in at_url else None
        best = str(json.loads(verdict or b"{}").get("checkpoint", ""))
        needless = needless_files(at_url, best)
        absent = {n for n in needless if version_of(self.folder / n) != at_url[n].version}
        fetch_files(self.remote, self.index, self.folder, at_url.keys() - absent)
        for name in absent:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        # As this disk dates them.
        here = {name: version_of(self.folder / name) or stored.version for name, stored in at_url.items()}
        self.index = Index(self.index.copy, {n: Stored(at_url[n].key, v) for n, v in here.items()})

    def _note(self, whole: bool) -> None:
        write_json(self.folder / OWN, {"copy": self.copy, "url": self.remote.url, "whole": whole})

    def start(self) -> None:
        """Publish from now on."""
        self._thread = threading.Thread(target=self._keep_up, name="publish", daemon=True)
        self._thread.start()

    def close(self, failed: bool = False) -> None:
        """Publish what is left and give the lease back. `failed`: the run ends with an error of its own, so that a copy
        that isn't whole is only warned about. Raises RuntimeError: the copy isn't whole."""
        self._over.set()
        try:
            if self._thread is not None:
                self._thread.join()
                if not any(self._attempt() or self.problem for _ in range(_LAST_PASSES)):
                    self.problem = RuntimeError("its files go on changing")
        finally:
            try:
                self.lease.release()
            except Exception as error:  # it runs out by itself
                self.problem = self.problem or error
        if self.problem is None:
            return
        text = str(self.problem)
        if not isinstance(self.problem, LostLease):
            text = (
                f"{self.remote.url}: the copy isn't whole ({self.problem}); {self.folder} has everything: rerun with "
                "--resume on this machine to publish the rest"
            )
        if not failed:
            raise RuntimeError(text) from self.problem
        warnings.warn(text, stacklevel=2)

    def _keep_up(self) -> None:
        # What one publication could not do, the next one does.
        while not (self._over.wait(self.every_s) or isinstance(self.problem, LostLease)):
            self._attempt()

    def _attempt(self) -> bool:
        """One publication; whether the URL is up to date."""
        try:
            done = self.publish()
            self.problem = None
            return done
        except Exception as error:
            if self.problem is None and not self._over.is_set():
                how = "no more" if isinstance(error, LostLease) else f"again every {self.every_s:g} s"
                text = f"{self.remote.url}: not published ({error}); tried {how}, and the run goes on"
                warnings.warn(text, stacklevel=2)
            self.problem = error
            return False

    def publish(self) -> bool:
        """Bring the URL up to date; whether it is, or files have changed under way and it takes another time. New files go
        beside those that the index names, then the index is replaced, then what it names no more is deleted: a kill, or
        an error, at any place leaves a run there that can be taken up."""
        files, at_url = list_finished(self.folder), self.index.files
        # Two looks that are the same: what they show was all there between them.
        if not all(_LOOSE.fullmatch(name) for name, _ in files.items() ^ list_finished(self.folder).items()):
            return False
        needless = needless_files(at_url)
        kept = {
            name: stored
            for name, stored in at_url.items()
            if stored.version == files.get(name)
            # What this machine goes without stays there as long as its empty folder does here.
            or (name in needless and name not in files and (self.folder / name).parent.is_dir())
        }
        new = {name: version for name, version in files.items() if name not in kept}
        if not new and kept == at_url and self._keys == self.index.keys:
            return True
        self.lease.check()
        if not all(_each(self._upload, sorted({*new.items()} - self._uploaded.keys()))):
            return False
        now = kept | {name: Stored(self._uploaded[name, version], version) for name, version in new.items()}
        if now != at_url:
            self._write_index(now)
        self._uploaded.clear()
        unnamed = self._keys - self.index.keys
        _each(self.remote.delete, unnamed)
        self._keys -= unnamed
        return True

    def _upload(self, item: tuple[str, Version]) -> bool:
        """Whether this version of the file is at the URL now; of a loose file, it or a later one."""
        name, version = item
        path, loose = self.folder / name, _LOOSE.fullmatch(name) is not None
        # Its own name, unless a file that is counted on may have that there.
        before = self.index.files.get(name)
        free = name not in self._keys or (loose and before is not None and before.key == name)
        key = name if free else f"{_REPLACED}/{secrets.token_hex(4)}/{name}"
        self._keys.add(key)
        try:
            self.remote.put(path, key)
        except FileNotFoundError:
            if path.exists():
                raise  # the store's
            return False
        if not loose and version_of(path) != version:
            return False
        self._uploaded[item] = key
        return True

    def _write_index(self, files: dict[str, Stored]) -> None:
        self.lease.check()
        index = Index(self.copy, files)
        self.remote.write_json(INDEX, asdict(index))
        self.index = index


# -- for who only reads ------------------------------------------------------------------------------------


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
