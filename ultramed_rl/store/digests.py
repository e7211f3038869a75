"""Digests of records and of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from ultramed_rl.token_ids import TokenIds

_BLOCK, _BLOCKS = 2**16, 64  # bytes, and how many of a large file count
_IN_TENSOR = 2**12  # bytes
_LONGEST_HEADER = 100_000_000  # bytes that the format of safetensors allows


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


def digest_path(path: Path, *, sizes: bool = False, sampled: bool = False) -> str:
    """SHA-256 of a file's bytes; of a directory, over its files' relative names and digests. With `sizes` a directory's
    files count by their sizes alone: for states of hundreds of GB, which are written and read often and by many. With
    `sampled` they count by `digest_sampled`."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        of = (lambda p: p.stat().st_size) if sizes else digest_sampled if sampled else digest_path
        listing = "\n".join(f"{p.relative_to(path).as_posix()} {of(p)}" for p in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_number(key: str) -> int:
    """64 bits of a key's SHA-256, never 0: the same in every process. Two of a million keys share one with
    probability 3e-8."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") or 1


def digest_file(path: Path) -> str:
    """As `digest_path` of a file, which is read once as long as it is the same by its size and time."""
    state = path.stat()
    return _digest_once(path, state.st_size, state.st_mtime_ns)


_digest_once = lru_cache(4096)(lambda path, size, mtime_ns: digest_path(path))


def digest_sampled(path: Path) -> str:
    """SHA-256 of a file's size, and of blocks of 64 KiB: its first, its last, and one somewhere in each 64th of it; of a
    safetensors file also of the 4 KiB in each tensor's middle. A smaller file counts whole. Tells another training of
    the same shape apart, be it of one tensor only, in milliseconds; not a byte that was changed by hand."""
    size = path.stat().st_size
    hasher = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        places = [(start, _BLOCK) for start in _block_starts(size)]
        if path.suffix == ".safetensors":
            with suppress(ValueError):  # of a header that is none: looked at where it is loaded
                begin, header = read_header(file)
                for _, entry in sorted(header.items()):
                    start, end = (begin + offset for offset in entry["data_offsets"])
                    places.append((max(start, (start + end - _IN_TENSOR) // 2), min(_IN_TENSOR, end - start)))
        for start, length in places:
            file.seek(start)
            hasher.update(file.read(length))
    return hasher.hexdigest()


def read_header(file: BinaryIO) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where the tensors of a safetensors file begin, and what its header says of each (type, shape, data_offsets) by name.
    The header's length is in the file's first 8 bytes, little-endian; then it comes, a JSON object. Raises ValueError:
    it has no such header."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        header: dict[str, dict[str, Any]] = json.loads(file.read(min(length, _LONGEST_HEADER)))
        header.pop("__metadata__", None)
        for entry in header.values():
            _, _ = entry["data_offsets"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError("no safetensors header") from None
    return 8 + length, header


def _block_starts(size: int) -> Iterator[int]:
    if size <= 2 * _BLOCKS * _BLOCK:
        yield from range(0, size, _BLOCK)
        return
    part = size // _BLOCKS
    yield from (0, size - _BLOCK)
    for number in range(_BLOCKS):
        drawn = hashlib.sha256(f"{size} {number}".encode()).digest()
        yield number * part + int.from_bytes(drawn[:8], "big") % (part - _BLOCK)


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
