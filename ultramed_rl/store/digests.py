"""Digests of records and of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.token_ids import TokenIds


def digest_inputs(inputs: Iterable[Any]) -> str:
    """SHA-256 over numbers, strings, records and sequences of records, independent of when and where."""
    hasher = hashlib.sha256()
    for item in inputs:
        members = item if isinstance(item, (list, tuple)) else [item]
        hasher.update(f"{type(item).__name__}[{len(members)}]".encode())
        for member in members:
            hasher.update(json.dumps(_named(member), sort_keys=True, default=_plain).encode())
            hasher.update(b"\n")
    return hasher.hexdigest()


def digest_path(path: Path, *, sizes: bool = False) -> str:
    """SHA-256 of a file's bytes; of a directory, over its files' relative names and digests.

    With `sizes` a directory's files count by their sizes alone: for states of hundreds of GB, which are written
    and read often and by many.
    """
    if path.is_dir() and sizes:
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "\n".join(f"{p.relative_to(path).as_posix()} {p.stat().st_size}" for p in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "\n".join(f"{p.relative_to(path).as_posix()} {digest_path(p)}" for p in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(value: Any) -> Any:
    """The outermost record carries its kind: a Prompt never equals a Completion."""
    return {"record": type(value).__name__, **_fields(value)} if is_dataclass(value) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, TokenIds) else _fields(value)


def _fields(record: Any) -> dict[str, Any]:
    """A record's fields as they are: `asdict` would copy every token id."""
    if not is_dataclass(record):
        raise TypeError(
            f"{type(record).__name__}: a phase's inputs are records, numbers, strings and lists of these"
        )
    return {field.name: getattr(record, field.name) for field in fields(record)}
