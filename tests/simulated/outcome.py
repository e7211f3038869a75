"""What a run came to, without what follows from when and where: equal for two runs of the same config and seed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.simulated.weights import read_weights
from ultramed_rl.records import (
    Completion,
    JudgedAnswer,
    OptionLogprobs,
    PreferenceGroup,
    Prompt,
    ReferenceLogprobs,
    ScoredCompletion,
)
from ultramed_rl.store.shards import RecordFiles

T = TypeVar("T")
Metrics = dict[str, Any]
_KINDS: dict[str, type] = {
    "prompts": Prompt,
    "scored": ScoredCompletion,
    "pairs": PreferenceGroup,
    "reference": ReferenceLogprobs,
    "evaluation": ScoredCompletion,
    "judges": JudgedAnswer,
    "benchmark-likelihood": OptionLogprobs,
    "benchmark-greedy": Completion,
    "benchmark-self_consistency": Completion,
    "benchmark-rewards": ScoredCompletion,
}
# Records of these come in the order of whoever was faster.
_UNORDERED = ("scored", "reference", "benchmark-")
_PASSING = ("time", "seconds", "tokens_per_second", "utilisation", "peak_memory", "mfu", "restarts", "early")
_OF_A_PROCESS = ("status.json", ".lock", "timeline.jsonl", "report.html")


@dataclass(frozen=True)
class Outcome:
    """`folders` by name: `initial` and each round's. `files`: all that the run left, by path."""

    folders: dict[str, dict[str, Any]]
    log: list[Metrics]
    files: frozenset[str]

    def of(self, index: int, name: str) -> Any:
        """A round's records, or another thing that it left."""
        return self.folders[f"{index:03d}"][name]


def read_outcome(folder: Path) -> Outcome:
    """What a run's folder holds."""
    parts = {path.name: path for path in (folder / "rounds").iterdir()} | {"initial": folder / "initial"}
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return Outcome(
        {name: _read_part(path) for name, path in parts.items()},
        [_lasting(row) for row in log if not _is_end(row)],
        frozenset(_plain(name) for name in files if name not in _OF_A_PROCESS),
    )


def _read_part(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        artifact = path / f"{name}.parquet"
        if artifact.exists():
            records = list(RecordFiles(artifact, kind))
            found[name] = sorted(records, key=repr) if name.startswith(_UNORDERED) else records
    if "pairs" in found:  # they come as answers do, and are learnt in the order of the prompts
        places = {prompt.prompt_id: place for place, prompt in enumerate(found["prompts"])}
        found["pairs"].sort(key=lambda pair: places[pair.prompt.prompt_id])
    if (path / "scored.json").is_file():
        found["asked"] = json.loads((path / "scored.json").read_text())["asked"]
    for name in ("checkpoint", "reference_model", "reward_model", "policy"):
        if (path / name).is_dir():
            found[name] = read_weights(path / name)
    if (path / "commit.json").is_file():
        found["metrics"] = _lasting(json.loads((path / "commit.json").read_text())["metrics"])
    if (path / "set_aside.jsonl").is_file():
        found["set_aside"] = sorted((path / "set_aside.jsonl").read_text().splitlines())
    return found


def _lasting(metrics: Metrics) -> Metrics:
    """Numbers of the draw; sums over records in another order differ in their last digits."""
    return {
        name: float(f"{value:.9g}") if isinstance(value, float) and math.isfinite(value) else value
        for name, value in metrics.items()
        if not any(word in name for word in _PASSING)
    }


def _is_end(row: Metrics) -> bool:
    """The line about the whole run."""
    return any(name.startswith("peak_memory") for name in row)


def _plain(name: str) -> str:
    """Files of a phase by their folder: how many there are follows from the clock."""
    head, _, last = name.rpartition("/")
    return head if head.endswith(".parquet") else f"{head}/{last}".lstrip("/")


def check_same(found: Outcome, expected: Outcome, what: str) -> None:
    """Two runs came to the same; `what` befell the first."""
    assert found.folders.keys() == expected.folders.keys(), what
    for folder, parts in expected.folders.items():
        for name, value in parts.items():
            # A number between two rounded ones may be either.
            wanted = pytest.approx(value, rel=1e-8, nan_ok=True) if name == "metrics" else value
            assert found.folders[folder].get(name) == wanted, f"{what}: {folder}/{name}"
    assert len(found.log) == len(expected.log), what
    for ours, theirs in zip(found.log, expected.log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, nan_ok=True), what
    assert found.files == expected.files, what
