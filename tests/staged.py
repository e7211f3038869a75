"""A store in memory that fails and is looked at between its steps, and the run whose copy is in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from tests.tiny import tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.store.remote import (
    INDEX,
    RemoteCopy,
    list_finished,
)
from ultramed_rl.store.remote_folder import WRITER, Writer

URL = "staged://bucket/runs/tiny"
TICK_S = 0.005  # longer than the clock that files are dated by


class Killed(BaseException):
    """The process dies here."""


class Staged(MemoryFileSystem):
    """A store in memory that lets a test in before each of its steps; a move is a copy and a deletion, as in some."""

    protocol = "staged"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    before: Callable[[str, str], None] = staticmethod(lambda step, path: None)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).replace("staged://", "memory://", 1))

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        type(self).before("put", rpath)
        super().put_file(lpath, rpath, *args, **options)

    def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
        type(self).before("pipe", path)
        super().pipe_file(path, value, *args, **options)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        type(self).before("move", path2)
        super().cp_file(path1, path2, **options)

    def rm_file(self, path: str) -> None:
        type(self).before("delete", path)
        super()._rm(path)


fsspec.register_implementation("staged", Staged, clobber=True)


def empty_store() -> None:
    for kind in (Staged, MemoryFileSystem):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    Staged.before = staticmethod(lambda step, path: None)


def there(url: str = URL) -> dict[str, bytes]:
    """The run that is at a URL, by its files' names in it."""
    files = objects(url)
    return {name: files[key] for name, (key, _) in json.loads(files[INDEX])["files"].items()}


def objects(url: str = URL) -> dict[str, bytes]:
    """The files that are at a URL; without the lease and uploads that were killed."""
    files, root = fsspec.core.url_to_fs(url)
    found = {path[len(root) + 1 :]: files.cat_file(path) for path in files.find(root)}
    return {name: content for name, content in found.items() if name != WRITER and ".tmp-" not in name}


def here(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_finished(folder)}


def made(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the config, which names the machine's scratch."""
    return {name: content for name, content in files.items() if name != "config.yaml"}


def config(root: Path, machine: str = "a", url: str = "staged://bucket/runs", **changes: Any) -> RunConfig:
    places = {"run__directory": url, "run__scratch": str(root / machine), "run__publish_every_s": 30.0}
    return parse_config(tiny_run(root, **{**places, **changes}))


def copy_of(folder: Path, url: str = URL) -> RemoteCopy:
    """A folder's copy that has met its URL."""
    copying = RemoteCopy(url, folder, 30.0)
    copying.take_up()
    return copying


def owner(**changes: Any) -> Writer:
    """A process of another machine that has just renewed its lease."""
    now = time.time()
    return replace(Writer("t", "its folder", "other", 17, now - 100, now, 10.0), **changes)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))
