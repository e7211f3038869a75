"""How a run stands, read from its files alone: by anybody, on any machine that sees them, while it goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from ultramed_rl.kinds import KINDS
from ultramed_rl.tracking.heartbeat import STATUS
from ultramed_rl.tracking.liveness import is_alive
from ultramed_rl.tracking.recent import recent_utilisation
from ultramed_rl.tracking.saved_config import FILE as CONFIG
from ultramed_rl.tracking.saved_config import read_saved_config
from ultramed_rl.tracking.spans import TIMELINE
from ultramed_rl.tracking.status_records import Driver, Row, State, Status, Work

_TAIL_BYTES = 2**18
_WRITER, _MISSED = "writer.json", 3  # as store/remote/lease.py writes it
_NUMBER = (int, float)
# Keys of JSON files that others write, with the types of their values.
_LEASE = {"released": bool, "renewed": _NUMBER, "every_s": _NUMBER}
_BEAT = {"state": str, "began": _NUMBER, "updated": _NUMBER, "pid": int, "host": str}
_AT_WORK = {"phase": str, "done": int, "total": (int, NoneType), "unit": str, "started": _NUMBER}


def read_status(directory: Path) -> Status:
    """How the run in a directory stands.

    Raises:
        ValueError: there is no run in it, or its config isn't what was written. Of other damaged files it tells as if they
            weren't there.
    """
    heart = _heartbeat(directory)
    if (directory / CONFIG).is_file():
        return _run_status(directory, heart)
    names = list(heart.get("stages") or _folders_with_runs(directory))
    if not names:
        raise ValueError(
            f"{directory}: holds no run; give a folder such as runs/NAME, or start the run first"
        )
    return _recipe_status(directory, heart, names)


def _run_status(directory: Path, heart: Row) -> Status:
    config = read_saved_config(directory)
    kind = str(config.get("type", "online"))
    if kind not in KINDS:
        raise ValueError(
            f"{directory / CONFIG}: type={kind!r}: must be one of {', '.join(KINDS)}; put it back from a copy"
        )
    in_rounds = KINDS[kind].in_rounds
    wanted = int(config["run"]["rounds"]) if in_rounds else None
    rounds = _committed_rounds(directory) if in_rounds else ()
    made = len(rounds) == wanted if in_rounds else _is_made(directory / KINDS[kind].manifest)
    state = _state(directory, heart, made)
    work = _work(heart) if state == "running" else None
    return Status(
        directory=directory,
        kind=kind,
        state=state,
        work=work,
        driver=_driver(heart) if state == "running" else None,
        rounds_wanted=wanted,
        rounds=rounds,
        left_s=_run_left_s(directory, rounds, wanted, work) if work and wanted else None,
        elapsed_s=_elapsed_s(heart),
        metrics=_last_metrics(directory, kind, rounds),
        links=heart.get("links", {}) if state in ("running", "failed") else {},
        error=str(heart.get("error", "")) if state == "failed" else "",
        waits=tuple(heart.get("waits", ())) if state == "running" else (),
        utilisation=recent_utilisation(directory / TIMELINE, heart["started"]) if work else {},
    )


def _recipe_status(directory: Path, heart: Row, names: list[str]) -> Status:
    stages = tuple(
        _run_status(directory / name, _heartbeat(directory / name))
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
    elif all(found == "finished" for found in states):
        state = "finished"
    at = next((stage for stage in stages if stage.state == "running"), None)
    return Status(
        directory=directory,
        kind="recipe",
        state=state,
        work=at.work if at else None,
        driver=_driver(heart) if state == "running" else None,
        elapsed_s=_elapsed_s(heart),
        links=heart.get("links", {}) if state in ("running", "failed") else {},
        error=str(heart.get("error", "")) if state == "failed" else "",
        waits=at.waits if at else (),
        utilisation=at.utilisation if at else {},
        stages=stages,
    )


def _state(directory: Path, heart: Row, made: bool) -> State:
    """What the driver said last, unless it is gone; of a run without a heartbeat, what its files tell."""
    if is_alive(directory, heart):
        return "running"
    said = heart.get("state", "running")
    if said != "running":
        return said
    if _is_published(directory):
        return "running"
    return "finished" if made else "stopped"


def _is_published(directory: Path) -> bool:
    """Whether a copy that was fetched from a URL has a process that renews its lease there; its heartbeat is only as
    fresh as the last publication."""
    writer = _json(directory / _WRITER)
    if not _has(writer, _LEASE) or writer["released"]:
        return False
    return bool(time.time() - writer["renewed"] < _MISSED * writer["every_s"])


def _work(heart: Row) -> Work | None:
    if "phase" not in heart:
        return None
    seconds = max(0.0, heart["updated"] - heart["started"])
    return Work(heart["phase"], heart["done"], heart["total"], heart["unit"], seconds)


def _driver(heart: Row) -> Driver | None:
    if "pid" not in heart:
        return None
    return Driver(int(heart["pid"]), str(heart["host"]), max(0.0, time.time() - heart["updated"]))


def _elapsed_s(heart: Row) -> float | None:
    return heart["updated"] - heart["began"] if "began" in heart else None


def _committed_rounds(directory: Path) -> tuple[Row, ...]:
    """The rows of the rounds that are committed, from the first on."""
    rows: list[Row] = []
    while _has(commit := _json(directory / "rounds" / f"{len(rows):03d}" / "commit.json"), {"metrics": dict}):
        rows.append({name: value for name, value in commit["metrics"].items() if isinstance(value, _NUMBER)})
    return tuple(rows)


def _run_left_s(directory: Path, rounds: tuple[Row, ...], wanted: int, work: Work) -> float | None:
    """Rounds to come as long as the mean of those before, less what the one at hand has taken."""
    seconds = [float(row["seconds"]) for row in rounds if "seconds" in row]
    if not seconds:
        return None
    folder = directory / "rounds" / f"{len(rounds):03d}"
    taken = work.seconds + sum(_seconds(_json(file)) for file in folder.glob("*.json"))
    return max(0.0, (wanted - len(rounds)) * sum(seconds) / len(seconds) - taken)


def _last_metrics(directory: Path, kind: str, rounds: tuple[Row, ...]) -> dict[str, Row]:
    found: dict[str, Row] = {"round": rounds[-1]} if rounds else {}
    for row in _tail(directory / "metrics.jsonl"):
        for name in ("evaluation", "step", "data"):
            if f"{name}_index" in row:
                found[name] = row
    done = _json(directory / KINDS[kind].manifest).get("metrics")
    return found | ({"result": done} if isinstance(done, dict) and done and kind != "data" else {})


def _is_made(file: Path) -> bool:
    """Whether a stage came to its end: an evaluation whose judge failed leaves results with the error."""
    return file.is_file() and "error" not in _json(file)


def _seconds(manifest: Row) -> float:
    """Of a phase, or of several that went on at once."""
    seconds = manifest.get("seconds", 0.0)
    each = seconds.values() if isinstance(seconds, dict) else [seconds]
    return float(sum(value for value in each if isinstance(value, _NUMBER)))


def _tail(path: Path) -> list[Row]:
    """The whole lines at the end of a JSONL file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().split(b"\n")
    return [row for line in lines if (row := _parse(line))]


def _folders_with_runs(directory: Path) -> list[str]:
    """Stages in the order in which they were begun."""
    files = sorted(directory.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    return [file.parent.name for file in files]


def _heartbeat(directory: Path) -> dict[str, Any]:
    """What the driver said last; nothing where that is damaged, as for a run without a heartbeat."""
    heart = _json(directory / STATUS)
    return heart if _has(heart, _BEAT) and ("phase" not in heart or _has(heart, _AT_WORK)) else {}


def _has(row: Row, kinds: Mapping[str, Any]) -> bool:
    """Whether it has all of these keys, with values of these types."""
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; nothing where it isn't there, or isn't whole."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return {}


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # half a line, or one that is being written
        return {}
    return found if isinstance(found, dict) else {}
