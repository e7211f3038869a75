"""How a run stands, read from its files alone: by anybody, on any machine that sees them, while it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from ultramed_rl.kinds import KINDS
from ultramed_rl.store.run_reader import CONFIG, Metrics, Row, RunReader, read_rows, read_whole
from ultramed_rl.tracking.heartbeat import STATUS, is_alive
from ultramed_rl.tracking.timeline import TIMELINE
from ultramed_rl.tracking.utilisation import recent_utilisation

State = Literal["waiting", "running", "finished", "failed", "interrupted", "stopped"]
_TAIL_BYTES = 2**18
_WRITER, _MISSED = "writer.json", 3  # as store/remote/lease.py writes it
_NUMBER = (int, float)
# Keys of JSON files that others write, with the types of their values.
_LEASE = {"released": bool, "renewed": _NUMBER, "every_s": _NUMBER}
_BEAT = {"state": str, "began": _NUMBER, "updated": _NUMBER, "pid": int, "host": str}
_AT_WORK = {"phase": str, "done": int, "total": (int, NoneType), "unit": str, "started": _NUMBER}


@dataclass(frozen=True)
class Work:
    """The phase at hand: `done` of `total` units, or of nobody knows how many; seconds since it began."""

    phase: str
    done: int
    total: int | None
    unit: str
    seconds: float

    @property
    def rate(self) -> float | None:
        """Units a second."""
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    @property
    def left_s(self) -> float | None:
        """Seconds left at this rate."""
        if self.rate is None or self.total is None:
            return None
        return max(0, self.total - self.done) / self.rate


@dataclass(frozen=True)
class Driver:
    """The process that drives the run, and seconds since its last heartbeat."""

    pid: int
    host: str
    silent_s: float


@dataclass(frozen=True)
class Status:
    """How a run stands.

    `stopped` has no process any more and didn't say why: it was killed. `left_s` is of the whole run, where
    that can be told. `metrics` holds the last row of each kind (round, evaluation, step, data) and the result
    of a finished stage. `rounds` are the rows of all committed rounds. Of a recipe, `stages` are its stages.
    `waits` says who waits for whom, and `utilisation` how busy each role has been in the phase at hand, in [0, 1].
    """

    directory: Path
    kind: str
    state: State
    work: Work | None = None
    driver: Driver | None = None
    rounds_wanted: int | None = None
    rounds: tuple[Row, ...] = ()
    left_s: float | None = None
    elapsed_s: float | None = None
    metrics: Mapping[str, Row] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    waits: tuple[str, ...] = ()
    utilisation: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[Status, ...] = ()

    @property
    def name(self) -> str:
        return self.directory.name


def read_status(directory: Path) -> Status:
    """How the run in a directory stands.

    Raises:
        ValueError: there is no run in it, or its config isn't what was written. Of other damaged files it tells as if they
            weren't there.
    """
    if (directory / CONFIG).is_file():
        return _run_status(directory)
    heart = _heartbeat(directory)
    # Without a heartbeat, stages in the order in which they were begun.
    begun = sorted(directory.glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime)
    names = list(heart.get("stages") or [file.parent.name for file in begun])
    if not names:
        raise ValueError(
            f"{directory}: holds no run; give a folder such as runs/NAME, or start the run first"
        )
    return _recipe_status(directory, heart, names)


def _run_status(directory: Path) -> Status:
    run, heart = RunReader(directory), _heartbeat(directory)
    if run.type not in KINDS:
        raise ValueError(
            f"{directory / CONFIG}: type={run.type!r}: must be one of {', '.join(KINDS)}; put it back from a copy"
        )
    in_rounds = KINDS[run.type].in_rounds
    rounds: tuple[Metrics, ...] = run.rounds if in_rounds else ()
    wanted = int(run.setting("run.rounds")) if in_rounds else None
    state = _state(run, heart)
    work = None
    if state == "running" and "phase" in heart:
        taken_s = max(0.0, heart["updated"] - heart["started"])
        work = Work(heart["phase"], heart["done"], heart["total"], heart["unit"], taken_s)
    return Status(
        kind=run.type,
        work=work,
        rounds_wanted=wanted,
        rounds=tuple({k: v for k, v in row.items() if math.isfinite(v)} for row in rounds),
        left_s=_left_s(run, work) if work and wanted else None,
        metrics=_last_metrics(run, rounds),
        waits=tuple(heart.get("waits", ())) if state == "running" else (),
        utilisation=recent_utilisation(directory / TIMELINE, heart["started"]) if work else {},
        **_of_driver(directory, heart, state),
    )


def _recipe_status(directory: Path, heart: Row, names: list[str]) -> Status:
    stages = tuple(
        _run_status(directory / name)
        if (directory / name / CONFIG).is_file()
        else Status(directory / name, "", "waiting")
        for name in names
    )
    states = [stage.state for stage in stages]
    state: State = "stopped"
    if "running" in states or is_alive(directory, heart):
        state = "running"
    elif heart.get("state") in ("failed", "interrupted", "finished"):
        state = heart["state"]
    elif all(of_stage == "finished" for of_stage in states):
        state = "finished"
    at = next((stage for stage in stages if stage.state == "running"), Status(directory, "", "waiting"))
    return Status(
        kind="recipe",
        work=at.work,
        waits=at.waits,
        utilisation=at.utilisation,
        stages=stages,
        **_of_driver(directory, heart, state),
    )


def _of_driver(directory: Path, heart: Row, state: State) -> dict[str, Any]:
    """What the heartbeat says of a run or a recipe that is in this state."""
    driver = None
    if state == "running" and "pid" in heart:
        driver = Driver(int(heart["pid"]), str(heart["host"]), max(0.0, time.time() - heart["updated"]))
    return {
        "directory": directory,
        "state": state,
        "driver": driver,
        "elapsed_s": heart["updated"] - heart["began"] if "began" in heart else None,
        "links": heart.get("links", {}) if state in ("running", "failed") else {},
        "error": str(heart.get("error", "")) if state == "failed" else "",
    }


def _state(run: RunReader, heart: Row) -> State:
    """What the driver said last, unless it is gone; of a run without a heartbeat, what its files tell."""
    if is_alive(run.path, heart):
        return "running"
    said: State = heart.get("state", "running")
    if said != "running":
        return said
    # A copy that was fetched from a URL: its process renews a lease there, while its heartbeat is only as fresh as the last
    # publication.
    writer = read_whole(run.path / _WRITER) or {}
    held = _has(writer, _LEASE) and not writer["released"]
    if held and time.time() - writer["renewed"] < _MISSED * writer["every_s"]:
        return "running"
    return "finished" if run.finished else "stopped"


def _left_s(run: RunReader, work: Work) -> float | None:
    """Rounds to come as long as the mean of those before, less what the one at hand has taken."""
    seconds = [row["seconds"] for row in run.rounds if math.isfinite(row.get("seconds", math.nan))]
    if not seconds:
        return None
    try:
        taken = work.seconds + sum(run.seconds(run.round_path(len(run.rounds))).values())
    except ValueError:  # a manifest that isn't whole
        taken = work.seconds
    left = run.setting("run.rounds") - len(run.rounds)
    return max(0.0, left * sum(seconds) / len(seconds) - taken)


def _last_metrics(run: RunReader, rounds: tuple[Metrics, ...]) -> dict[str, Row]:
    last: dict[str, Row] = {}
    if rounds:
        last["round"] = {name: value for name, value in rounds[-1].items() if math.isfinite(value)}
    for row in read_rows(run.path / "metrics.jsonl", _TAIL_BYTES):
        last |= {name: row for name in ("evaluation", "step", "data") if f"{name}_index" in row}
    if run.type != "data":
        result = (read_whole(run.path / KINDS[run.type].manifest) or {}).get("metrics")
        last |= {"result": result} if isinstance(result, dict) and result else {}
    return last


def _heartbeat(directory: Path) -> dict[str, Any]:
    """What the driver said last; nothing where that is damaged, as for a run without a heartbeat."""
    heart = read_whole(directory / STATUS) or {}
    return heart if _has(heart, _BEAT) and ("phase" not in heart or _has(heart, _AT_WORK)) else {}


def _has(row: Row, kinds: Mapping[str, Any]) -> bool:
    """Whether it has all of these keys, with values of these types."""
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())
