"""The header of a safetensors file: its length (8 bytes, little-endian), then a JSON object of each tensor's type, shape and
place in the bytes that follow."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

_LONGEST = 100_000_000  # bytes that the format allows


def read_header(file: BinaryIO) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where a file's tensors begin, and what is said of each by its name.

    Raises:
        ValueError: it has no such header.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        header: dict[str, dict[str, Any]] = json.loads(file.read(min(length, _LONGEST)))
        header.pop("__metadata__", None)
        for entry in header.values():
            _, _ = entry["data_offsets"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError("no safetensors header") from None
    return 8 + length, header
