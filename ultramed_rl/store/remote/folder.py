"""A folder of an object store or any other file system that fsspec knows. Files appear in it whole."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ultramed_rl.store.atomic import write_whole

T = TypeVar("T")
TEMPORARY = ".tmp-"
# Where an upload is seen only when it is complete; elsewhere a file gets its name by a move.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"})
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_HOPELESS = (FileNotFoundError, FileExistsError, PermissionError, NotImplementedError)


@dataclass(frozen=True)
class Patience:
    """How often what failed is tried, and the longest wait in between, in seconds."""

    attempts: int = 5
    longest_s: float = 20.0


PATIENCE = Patience()


@dataclass(frozen=True)
class RemoteFile:
    """A listed file: bytes, and what tells one version from the next as far as the store says."""

    size: int
    mark: str


class RemoteFolder:
    """The files of one URL by their names in it, as in rounds/000/commit.json.

    Every method tries again where the network fails, and raises what the store raised last.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Raises ValueError where nothing can open such a URL."""
        self.url, self.patience = url, patience or PATIENCE
        self.files, root = _open_file_system(url)
        self.root = root.rstrip("/")
        self._appears_whole = url.partition("://")[0] in _OBJECT_STORES

    def reach(self, action: Callable[[], T]) -> T:
        """What an action on this folder gives.

        Raises:
            RuntimeError: the store cannot be used; in one line, whatever its package raises.
        """
        try:
            return action()
        except (ValueError, RuntimeError):
            raise
        except Exception as error:
            raise RuntimeError(
                f"{self.url}: cannot be read or written ({type(error).__name__}: {error}); look at the address, the "
                "credentials and the network"
            ) from error

    def list(self) -> dict[str, RemoteFile]:
        """All files by name; none where the folder isn't there."""
        return self._try(self._list)

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None where it isn't there."""
        try:
            return bytes(self._try(lambda: self.files.cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file's mapping; None where it isn't there.

        Raises:
            ValueError: it holds something else.
        """
        content = self.read(name)
        if content is None:
            return None
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"{self.url}/{name}: not the JSON that was written; delete it")
        return found

    def write_json(self, name: str, payload: dict[str, Any]) -> None:
        """Write a small JSON file, whole."""
        content = json.dumps(payload, indent=1).encode() + b"\n"
        self._try(lambda: self._put(lambda path: self.files.pipe_file(path, content), name))

    def create_json(self, name: str, payload: dict[str, Any]) -> None:
        """Write a small JSON file that must not be there yet.

        Raises:
            FileExistsError: it is there.
        """
        content = json.dumps(payload, indent=1).encode() + b"\n"
        self._make_parent(self._path(name))
        try:
            self.files.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            raise
        except Exception:  # not every store can tell; then the first to write may be overwritten
            self.write_json(name, payload)

    def put(self, source: Path | str, name: str) -> None:
        """Upload a file."""
        self._try(lambda: self._put(lambda path: self.files.put_file(str(source), path), name))

    def get(self, name: str, target: Path) -> None:
        """Download a file; it appears whole."""
        target.parent.mkdir(parents=True, exist_ok=True)

        def fetch(temporary: Path) -> None:
            self.files.get_file(self._path(name), str(temporary))

        self._try(lambda: write_whole(target, fetch))

    def delete(self, name: str) -> None:
        """Delete a file that may not be there, and the folders that it leaves empty."""
        with suppress(FileNotFoundError):
            self._try(lambda: self.files.rm_file(self._path(name)))
        if not self._appears_whole:
            with suppress(Exception):  # the first that isn't empty
                for folder in PurePosixPath(name).parents[:-1]:
                    self.files.rmdir(self._path(str(folder)))

    def _list(self) -> dict[str, RemoteFile]:
        self.files.invalidate_cache()
        found = self.files.find(self.root, detail=True)
        start = len(self.root) + 1
        return {
            path[start:]: RemoteFile(int(info["size"] or 0), _mark(info))
            for path, info in found.items()
            if info.get("type") == "file" and len(path) > start
        }

    def _put(self, write: Callable[[str], Any], name: str) -> None:
        path = self._path(name)
        if self._appears_whole:
            write(path)
            return
        self._make_parent(path)
        parent, _, last = path.rpartition("/")
        temporary = f"{parent}/{TEMPORARY}{secrets.token_hex(4)}-{last}"
        write(temporary)
        self._move(temporary, path)

    def _move(self, source: str, target: str) -> None:
        from fsspec import AbstractFileSystem

        if type(self.files).mv is not AbstractFileSystem.mv:
            self.files.mv(source, target)
            return
        # Its own way of moving reads names as patterns.
        self.files.cp_file(source, target)
        self.files.rm_file(source)

    def _make_parent(self, path: str) -> None:
        if not self._appears_whole:
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _try(self, action: Callable[[], T]) -> T:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        retrying = Retrying(
            stop=stop_after_attempt(self.patience.attempts),
            wait=wait_random_exponential(min(0.2, self.patience.longest_s), max=self.patience.longest_s),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        return retrying(action)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, _HOPELESS)


def _mark(info: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")
    return str(next((info[key] for key in keys if info.get(key)), ""))


def _open_file_system(url: str) -> tuple[Any, str]:
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
    return files, str(root)
