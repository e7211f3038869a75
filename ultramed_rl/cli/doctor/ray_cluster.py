"""Whether Ray's cluster can be reached, or one started here. Nothing is started."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ultramed_rl.cli.doctor.finding import Finding

_TIMEOUT_S = 3.0
_PORTS = {"": 6379, "ray": 10001, "http": 80, "https": 443}
_STORE_BYTES = 512 * 2**20  # the object store of a local cluster on CPU
_SHARED = Path("/dev/shm")


def check_ray(address: str | None) -> Iterator[Finding]:
    """The cluster of the config or of RAY_ADDRESS; without one, whether this machine can start its own."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        yield from _check_local()
    elif address == "auto":
        yield Finding("ray", "ok", "address=auto: the cluster that runs on this machine, found at the start")
    else:
        yield _check_address(str(address))


def _check_address(address: str) -> Finding:
    parts = urlsplit(address if "://" in address else f"//{address}")
    fix = "start Ray there (ray start --head), open the port, or unset RAY_ADDRESS and cluster.address"
    try:
        port = parts.port or _PORTS.get(parts.scheme, 6379)
        with socket.create_connection((parts.hostname or "", port), timeout=_TIMEOUT_S):
            return Finding("ray", "ok", f"{address} answers")
    except (OSError, ValueError) as error:
        return Finding("ray", "fail", f"{address}: no answer ({error})", fix)


def _check_local() -> Iterator[Finding]:
    """Room for the object store and for Ray's files."""
    from ultramed_rl.cluster.connection import FULL, choose_parent, full_share

    try:
        folder = choose_parent()
    except ValueError as error:
        yield Finding(
            "ray", "fail", str(error), "set RAY_TMPDIR to a folder with a short path on a disk with room"
        )
        return
    if full_share(folder) > FULL:
        text = f"{folder}: {full_share(folder):.0%} full; Ray stops spilling objects at {FULL:.0%}"
        yield Finding("ray", "warn", text, "free some, or set RAY_TMPDIR to another disk")
    shared = shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else _STORE_BYTES
    if shared < _STORE_BYTES:
        text = (
            f"/dev/shm has {shared / 2**20:.0f} MiB free; the object store takes {_STORE_BYTES / 2**20:.0f}"
        )
        yield Finding("ray", "warn", text, "enlarge it, in a container by --shm-size=8g")
        return
    yield Finding("ray", "ok", "no address is set: each run starts its own cluster on this machine")
