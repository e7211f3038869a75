"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp-"
_FULL = (os.strerror(errno.ENOSPC), "database or disk is full")


def write_whole(path: Path, write: Callable[[Path], Any]) -> Any:
    """Let `write` make a temporary sibling, a file or a folder, then rename it to `path`; returns what `write` returned.
    Raises RuntimeError: the disk is full; the temporary is removed and nothing else is lost."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    remove(temporary)
    with explain_full_disk(path, temporary):
        result = write(temporary)
        # Files before the folders that list them.
        for inner in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
            _flush(inner)
        os.replace(temporary, path)
        _flush(path.parent)
    return result


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """Write a mapping as JSON, whole; a non-finite number becomes null, since JSON has none."""
    write_text(
        path, json.dumps(without_non_finite(payload), indent=1, sort_keys=True, allow_nan=False) + "\n"
    )


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write mappings as JSON lines, whole and as they come, and the folder that they are in."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(map(json_line, rows))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote. A line ends at a newline alone: texts may hold other separators."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def json_line(row: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """A line of JSON; null for a number that isn't finite. Raises TypeError for a value that JSON has not, without `default`."""
    finite = without_non_finite(dict(row))
    try:
        return json.dumps(finite, ensure_ascii=False, allow_nan=False, default=default).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which models do write: only an escape can hold it
        return json.dumps(finite, allow_nan=False, default=default).encode() + b"\n"


def without_non_finite(value: Any) -> Any:
    """The same nested value with null for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove(path: Path) -> None:
    """Delete a file or directory that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run was writing."""
    for path in list(folder.glob(f"**/{_TEMPORARY}*")):
        remove(path)


@contextmanager
def explain_full_disk(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn "no space left" into one line with the path, the free bytes and the fix; drop `temporary`."""
    try:
        yield
    except Exception as error:
        # safetensors, SQLite and errors that cross from a Ray actor keep only the words, not the errno.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(words in str(error) for words in _FULL):
            raise
        if temporary is not None:
            remove(temporary)
        free = shutil.disk_usage(path.parent).free
        raise RuntimeError(
            f"{path}: no space left on the disk ({free} bytes free); free some and rerun with --resume"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
