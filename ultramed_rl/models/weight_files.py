"""A local checkpoint's weight files by their headers: what is in them is known before a weight is read. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ultramed_rl.store.digests import read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
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
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
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
    try:
        with file.open("rb") as opened:
            begin, header = read_header(opened)
        whole = begin + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, TypeError):
        reason = _pointer(file) or ", or cut within its header"
        raise ValueError(f"{file}: not a safetensors file{reason}; {_CURE}") from None
    if file.stat().st_size != whole:
        raise ValueError(f"{file}: has {file.stat().st_size} bytes of {whole}; {_CURE}")
    return header


def _pointer(file: Path) -> str:
    """Words for a file in whose place git-lfs left where it would be found."""
    with file.open("rb") as opened:
        left = opened.read(32).startswith(b"version https://git-lfs")
    return ", but a pointer of git-lfs to one (git lfs pull)" if left else ""
