"""Reads the .wandb file of a run: LevelDB's log format under a header of 7 bytes, with wandb's own protobuf inside."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEAD, _FILE_HEAD = 32768, 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def finished_file(directory: Path) -> Path:
    """The one .wandb file of a run directory; wandb writes its end a moment after it said that it had."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 20
    while not any(record.WhichOneof("record_type") == "exit" for record in read_records(path)):
        assert time.monotonic() < deadline, f"{path}: wandb never wrote its end"
        time.sleep(0.05)
    return path


def read_records(path: Path) -> list[Any]:
    """All records, each a `wandb.proto.wandb_internal_pb2.Record`."""
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(data) for data in _chunks(path.read_bytes())]


def history(records: list[Any]) -> list[dict[str, Any]]:
    """The logged rows, without wandb's own keys."""
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def artifacts(records: list[Any]) -> list[Any]:
    """The artifacts that are to be made, in their order."""
    requests = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    sent = [
        r.request.log_artifact.artifact
        for r in records
        if r.WhichOneof("record_type") == "request" and r.request.WhichOneof("request_type") == "log_artifact"
    ]
    return requests + sent


def _chunks(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B", "no file of wandb"
    place, whole = _FILE_HEAD, b""
    while place + _HEAD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEAD])
        part = data[place + _HEAD : place + _HEAD + length]
        if len(part) < length:
            return  # the rest is still being written
        whole = part if kind in (_FULL, _FIRST) else whole + part
        place += _HEAD + length
        if kind in (_FULL, _LAST):
            yield whole
