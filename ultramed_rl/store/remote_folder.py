"""A folder of an object store, or of any other file system that fsspec knows, and the right to write there."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

from pydantic import TypeAdapter, ValidationError

from ultramed_rl.store.atomic import write_whole

T = TypeVar("T")
P = ParamSpec("P")
TEMPORARY = ".tmp-"
WRITER = "writer.json"
LONGEST_WAIT_S = 20.0  # before what failed is tried again
_ATTEMPTS = 5
_MISSED = 3  # renewals that a living owner of a lease may miss
_LOOK_S = 5.0  # between two looks at a lease that is waited for
# Where an upload is seen only when it is complete; elsewhere a file gets its name by a move.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"})
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_NO_SUCH_MODE = (
    NotImplementedError,
    TypeError,
    ValueError,
)  # of a store that cannot create without replacing
_HOPELESS = (FileNotFoundError, FileExistsError, PermissionError, *_NO_SUCH_MODE)


def _retried(method: Callable[P, T]) -> Callable[P, T]:
    """Tried again where the network fails; raises what the store raised last."""

    @wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> T:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        retrying = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(min=min(0.2, LONGEST_WAIT_S), max=LONGEST_WAIT_S),
            retry=retry_if_exception(lambda e: isinstance(e, Exception) and not isinstance(e, _HOPELESS)),
            reraise=True,
        )
        return retrying(method, *args, **options)

    return call


class RemoteFolder:
    """The files of one URL by their names in it, as in rounds/000/commit.json. Files appear in it whole."""

    def __init__(self, url: str) -> None:
        """Raises ValueError where nothing can open such a URL."""
        from fsspec.core import url_to_fs

        scheme = url.partition("://")[0]
        try:
            files, root = url_to_fs(url)
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            fix = f"pip install ultramed_rl[{extra}]" if extra else f"install it ({error})"
            raise ValueError(f"{url}: {scheme}:// needs a package that is not installed; {fix}") from None
        except ValueError as error:
            raise ValueError(
                f"{url}: no file system of fsspec opens it ({error}); use s3://, gs:// or a folder"
            ) from None
        self.url, self.files, self.root = url, files, str(root).rstrip("/")
        self._appears_whole = scheme in _OBJECT_STORES

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Within, a store that cannot be used is a RuntimeError of one line, whatever its package raises."""
        try:
            yield
        except (ValueError, RuntimeError):
            raise
        except Exception as error:
            raise RuntimeError(
                f"{self.url}: cannot be read or written ({type(error).__name__}: {error}); look at the address, the "
                "credentials and the network"
            ) from error

    @_retried
    def list(self) -> set[str]:
        """The names of all files; none where the folder isn't there."""
        self.files.invalidate_cache()
        return {path[len(self.root) + 1 :] for path in self.files.find(self.root)} - {""}

    @_retried
    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None where it isn't there."""
        try:
            return bytes(self.files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def read_json(self, name: str, kind: type[T]) -> T | None:
        """A JSON file's content as a record; None where it isn't there.

        Raises:
            ValueError: it holds something else.
        """
        content = self.read(name)
        try:
            return None if content is None else TypeAdapter(kind).validate_json(content)
        except ValidationError:
            raise ValueError(
                f"{self.url}/{name}: not what was written; put it back from a copy, or delete it"
            ) from None

    def write_json(self, name: str, payload: Any, *, create: bool = False) -> None:
        """Write a small JSON file, whole; with `create` one that must not be there yet.

        Raises:
            FileExistsError: it is there. Where the store cannot tell, the last to write wins.
        """
        content, path = json.dumps(payload, indent=1).encode() + b"\n", self._path(name)
        if create:
            with suppress(*_NO_SUCH_MODE):
                return self._create(path, content)
        self._put(lambda target: self.files.pipe_file(target, content), path)

    def put(self, source: Path, name: str) -> None:
        """Upload a file."""
        self._put(lambda target: self.files.put_file(str(source), target), self._path(name))

    @_retried
    def get(self, name: str, target: Path, mtime_ns: int | None = None) -> None:
        """Download a file; it appears whole, and with this modification time."""
        target.parent.mkdir(parents=True, exist_ok=True)

        def fetch(temporary: Path) -> None:
            self.files.get_file(self._path(name), str(temporary))
            if mtime_ns is not None:
                os.utime(temporary, ns=(mtime_ns, mtime_ns))

        write_whole(target, fetch)

    @_retried
    def delete(self, name: str) -> None:
        """Delete a file that may not be there, and the folders that it leaves empty."""
        with suppress(FileNotFoundError):
            self.files.rm_file(self._path(name))
        if not self._appears_whole:
            with suppress(Exception):  # the first that isn't empty
                for folder in PurePosixPath(name).parents[:-1]:
                    self.files.rmdir(self._path(str(folder)))

    @_retried
    def _create(self, path: str, content: bytes) -> None:
        self._make_parent(path)
        self.files.pipe_file(path, content, mode="create")

    @_retried
    def _put(self, write: Callable[[str], Any], path: str) -> None:
        from fsspec import AbstractFileSystem

        if self._appears_whole:
            write(path)
            return
        self._make_parent(path)
        parent, _, last = path.rpartition("/")
        temporary = f"{parent}/{TEMPORARY}{secrets.token_hex(4)}-{last}"
        write(temporary)
        if type(self.files).mv is not AbstractFileSystem.mv:
            self.files.mv(temporary, path)
        else:  # whose own way of moving reads names as patterns
            self.files.cp_file(temporary, path)
            self.files.rm_file(temporary)

    def _make_parent(self, path: str) -> None:
        if not self._appears_whole:
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


class LostLease(RuntimeError):
    """Another process has taken the run over."""


@dataclass(frozen=True)
class Writer:
    """The process that writes at a URL, or wrote last, as `writer.json` there keeps it; times in Unix seconds.

    `copy` is the folder that it publishes, see `RemoteCopy`.
    """

    token: str
    copy: str
    host: str
    pid: int
    began: float
    renewed: float
    every_s: float
    released: bool = False

    @property
    def left_s(self) -> float:
        """Seconds until it counts as gone: none where it has given the lease back, or has missed too many renewals."""
        return 0.0 if self.released else max(0.0, self.renewed + _MISSED * self.every_s - time.time())


class Lease:
    """The right to write at one URL: whoever creates `writer.json` has it, until it misses three renewals. A thread of its own
    renews it, since an upload may take long."""

    def __init__(self, remote: RemoteFolder, copy: str, every_s: float, *, waits: bool = False) -> None:
        """Take it. The caller holds the lock of the folder `copy`: an earlier process of that folder is gone.

        Args:
            waits: for the lease of a process that seems dead to run out.

        Raises:
            ValueError: another process has it, and renews it where this one waits.
        """
        now, host = time.time(), socket.gethostname()
        self.remote, self.every_s = remote, every_s
        self.mine = Writer(secrets.token_hex(8), copy, host, os.getpid(), now, now, every_s)
        self.lost: LostLease | None = None
        before = remote.read_json(WRITER, Writer)
        if before is not None:
            if before.left_s and (before.copy, before.host) != (copy, host):
                if not waits:
                    raise self._refusal(before)
                self._wait_for_end(before)
            remote.delete(WRITER)
        with suppress(FileExistsError):
            remote.write_json(WRITER, asdict(self.mine), create=True)
        owner = remote.read_json(WRITER, Writer)
        if owner is None or owner.token != self.mine.token:
            raise self._refusal(owner or self.mine)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LostLease where another process has taken it."""
        if self.lost is None:
            owner = self.remote.read_json(WRITER, Writer)
            if owner is not None and owner.token == self.mine.token:
                return
            taker = f"process {owner.pid} on {owner.host}" if owner else f"somebody who deleted {WRITER}"
            self.lost = LostLease(
                f"{self.remote.url}: taken over by {taker}; what this process makes is no longer published: stop "
                "one of the two"
            )
        raise self.lost

    def release(self) -> None:
        """Let others write; nothing where it was lost."""
        self._over.set()
        self._thread.join()
        with suppress(LostLease):
            self._renew(released=True)

    def _renew(self, released: bool = False) -> None:
        self.check()
        self.mine = replace(self.mine, renewed=time.time(), released=released)
        self.remote.write_json(WRITER, asdict(self.mine))

    def _keep(self) -> None:
        while not self._over.wait(self.every_s):
            try:
                self._renew()
            except LostLease:
                return  # the next publication says so
            except Exception:  # an outage: the lease may run out, and still be ours after it
                continue

    def _wait_for_end(self, other: Writer) -> None:
        """Until its lease has run out. Raises ValueError where it is renewed meanwhile, or taken by somebody else."""
        warnings.warn(
            f"{self.remote.url}: process {other.pid} on {other.host} published this run and has not given it back; "
            f"waiting {other.left_s:.0f} s for a sign of life before this one takes over",
            stacklevel=2,
        )
        while other.left_s:
            time.sleep(min(_LOOK_S, other.left_s))
            now = self.remote.read_json(WRITER, Writer)
            if now is None or now.released:
                return
            if now != other:
                raise self._refusal(now)

    def _refusal(self, other: Writer) -> ValueError:
        return ValueError(
            f"{self.remote.url}: another process is publishing this run (process {other.pid} on {other.host}, since "
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(other.began))} UTC); stop it, or wait {other.left_s:.0f} s if "
            "it is dead"
        )
