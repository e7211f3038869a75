"""A run's directory as a reader sees it: nothing is locked or made, and older runs are readable too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.store.artifacts import read_json, read_numbers
from ultramed_rl.store.environment import FILE as ENVIRONMENT
from ultramed_rl.store.environment import describe_environment
from ultramed_rl.tracking.saved_config import FILE as CONFIG
from ultramed_rl.tracking.saved_config import read_saved_config

Metrics = dict[str, float]


@dataclass(frozen=True)
class RunFiles:
    """`config` is the resolved config as plain values: not validated, since an older version may have written it."""

    path: Path
    config: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return str(self.setting("run.name", self.path.name))

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

    def rows(self, kind: str) -> list[Mapping[str, Any]]:
        """The logged rows of a kind (step, round, evaluation, data), each as it was logged last, in its order."""
        name = f"{kind}_index"
        found = {row[name]: row for row in self.metrics if isinstance(row.get(name), int | float)}
        return [found[index] for index in sorted(found)]

    def environment(self) -> tuple[dict[str, Any], bool]:
        """What the run was started in, and whether it says so itself; else this machine, now."""
        path = self.path / ENVIRONMENT
        if path.is_file():
            return read_json(path), True
        return describe_environment(), False

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run; None where it isn't there."""
        path = self.path / name
        return read_json(path) if path.is_file() else None


def read_run(path: Path) -> RunFiles:
    """Read what every run has.

    Raises:
        ValueError: no such folder, no run in it, or a config that is no mapping.
    """
    path = path.absolute()
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; name a run's, as in runs/quickstart")
    file = path / CONFIG
    if not file.is_file():
        inner = sorted(child.parent.name for child in path.glob(f"*/{CONFIG}"))
        cure = f"name one of its stages ({', '.join(inner)})" if inner else "name a run's folder"
        raise ValueError(f"{path}: holds no run (no {CONFIG}); {cure}")
    return RunFiles(path, read_saved_config(path), tuple(_lines(path / "metrics.jsonl")))


def phase_seconds(folder: Path) -> Metrics:
    """Seconds of each finished phase of a folder of artifacts."""
    found: Metrics = {}
    for name, manifest in manifests(folder).items():
        seconds = manifest["seconds"]
        found |= seconds if isinstance(seconds, dict) else {name: float(seconds)}
    return found


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifests of a folder of artifacts, by the artifact's name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        seconds = content.get("seconds")
        if {"digest", "name"} <= content.keys() and isinstance(seconds, int | float | dict):
            found[str(content["name"])] = content
    return found


def commit_metrics(folder: Path) -> Metrics | None:
    """A committed round's metrics; None where it isn't committed. Raises ValueError for a commit without any."""
    path = folder / "commit.json"
    if not path.is_file():
        return None
    metrics = read_json(path).get("metrics")
    if not isinstance(metrics, dict):
        raise ValueError(f"{path}: lacks the round's metrics; put it back from a copy")
    return read_numbers(metrics)


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """All whole lines; a killed run leaves half of one."""
    found: list[Mapping[str, Any]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
