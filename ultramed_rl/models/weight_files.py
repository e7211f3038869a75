"""A local checkpoint's weight files by their headers: what is in them is known before a weight is read. No torch.

A safetensors file begins with the length of its header (8 bytes, little-endian), then the header: a JSON object of each
weight's type, shape and place in the bytes that follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # bytes that the format allows
_CURE = "copy or download it again"


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint, as transformers looks for them; none where there are none.

    Raises:
        ValueError: an index that cannot be read, or that names a file which isn't there.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{index}: not an index of weight files{_pointer(index)}; {_CURE}") from None
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{index}: {len(missing)} of its {len(files)} files are not there ({shown(missing)}); "
            "copy or download them too"
        )
    return files


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in these files.

    Raises:
        ValueError: naming a file that is cut, or no safetensors file at all, such as a pointer that git-lfs left.
    """
    return {name: tuple(entry["shape"]) for file in files for name, entry in _read_header(file).items()}


def shown(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names, in their order, and how many more there are."""
    every = sorted(names)
    more = f", and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def _read_header(file: Path) -> dict[str, dict[str, list[int]]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(min(length, _LONGEST_HEADER))
    try:
        header: dict[str, dict[str, list[int]]] = json.loads(text)
        header.pop("__metadata__", None)
        whole = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise ValueError(
            f"{file}: not a safetensors file{_pointer(file)}, or cut within its header; {_CURE}"
        ) from None
    if file.stat().st_size != whole:
        raise ValueError(f"{file}: has {file.stat().st_size} bytes of {whole}; {_CURE}")
    return header


def _pointer(file: Path) -> str:
    """Words for a file in whose place git-lfs left where it would be found."""
    with file.open("rb") as opened:
        left = opened.read(32).startswith(b"version https://git-lfs")
    return ", but a pointer of git-lfs to one (git lfs pull)" if left else ""
