"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp-"


def write_whole(path: Path, write: Callable[[Path], Any]) -> Any:
    """Let `write` fill a temporary sibling, then rename it to `path`; returns what `write` returned.

    Raises:
        RuntimeError: the disk is full; the temporary is removed and nothing else is lost.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    remove(temporary)
    with _clear_when_full(path, temporary):
        result = write(temporary)
        _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)
    return result


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """Write a mapping as JSON, whole."""
    text = json.dumps(payload, indent=1, sort_keys=True, allow_nan=False)
    write_whole(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def remove(path: Path) -> None:
    """Delete a file or directory that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run was writing."""
    for path in folder.glob(f"**/{_TEMPORARY}*"):
        remove(path)


@contextmanager
def _clear_when_full(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        remove(temporary)
        free = shutil.disk_usage(path.parent).free
        raise RuntimeError(
            f"{path}: no space left on the disk ({free / 2**20:.0f} MiB free); free some and rerun with --resume"
        ) from error


def _flush(path: Path) -> None:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in [*files, path]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
