"""How a run stands, read from its files alone: by anybody, on any machine that sees them, while it goes on. It is told as text
that is redrawn while the run goes on, to programs as a mapping."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ultramed_rl.kinds import KINDS
from ultramed_rl.store.remote_folder import WRITER, Writer
from ultramed_rl.store.run_reader import CONFIG, Metrics, Row, RunReader, read_rows, read_whole
from ultramed_rl.tracking.console import manner, say, tell
from ultramed_rl.tracking.heartbeat import STATUS, is_alive
from ultramed_rl.tracking.tables import duration, render_rounds, render_table, spoken
from ultramed_rl.tracking.timeline import TIMELINE, recent_utilisation
from ultramed_rl.tracking.verdict import run_verdict

State = Literal["waiting", "running", "finished", "failed", "interrupted", "stopped"]
_TAIL_BYTES = 2**18
_NUMBER = (int, float)
# Keys of the heartbeat's file, with the types of their values.
_BEAT = {"state": str, "began": _NUMBER, "updated": _NUMBER, "pid": int, "host": str}
_AT_WORK = {"phase": str, "done": int, "total": (int, NoneType), "unit": str, "started": _NUMBER}
_BAR = 24
_SHOWN_METRICS = 8
_LINE_EVERY_S = 10.0
_STAGES = [
    ("stage", "{name}"),
    ("type", "{kind}"),
    ("state", "{state}"),
    ("at", "{at}"),
    ("time", "{elapsed_s:time}"),
]


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

    def __str__(self) -> str:
        """A line with a bar, the rate, and the time that is left."""
        of = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.phase}: {self.done}{of} {self.unit}"]
        if self.total:
            filled = min(_BAR, _BAR * self.done // self.total)
            parts.insert(0, f"[{'#' * filled}{'.' * (_BAR - filled)}]")
        if self.rate is not None:
            parts.append(f"{self.rate:.3g} {self.unit}/s")
        if self.left_s:
            parts.append(f"{duration(self.left_s)} left")
        return "  ".join(parts)


@dataclass(frozen=True)
class Driver:
    """The process that drives the run, and seconds since its last heartbeat."""

    pid: int
    host: str
    silent_s: float


@dataclass(frozen=True)
class Status:
    """How a run stands."""

    directory: Path
    kind: str
    state: State  # stopped: it has no process any more and didn't say why: it was killed
    work: Work | None = None
    driver: Driver | None = None
    rounds_wanted: int | None = None
    rounds: tuple[Row, ...] = ()  # of all committed rounds
    left_s: float | None = None  # of the whole run, where that can be told
    elapsed_s: float | None = None
    # The last row of each kind (round, evaluation, step, data), and the result of a finished stage.
    metrics: Mapping[str, Row] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    waits: tuple[str, ...] = ()  # who waits for whom
    # Of each role in the phase at hand, in [0, 1].
    utilisation: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""  # how an online run stands by its reward and its judges
    stages: tuple[Status, ...] = ()  # of a recipe

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def at(self) -> str:
        """The rounds and the phase at which it is."""
        rounds = "" if self.rounds_wanted is None else f"{len(self.rounds)} of {self.rounds_wanted} rounds"
        return "; ".join(filter(None, (rounds, str(self.work or ""))))


def read_status(directory: Path) -> Status:
    """How the run in a directory stands. Raises ValueError: there is no run in it, or its config isn't what was written. Of
    other damaged files it tells as if they weren't there."""
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
    stages = tuple(
        _run_status(folder) if (folder / CONFIG).is_file() else Status(folder, "", "waiting")
        for folder in (directory / name for name in names)
    )
    at = next((stage for stage in stages if stage.state == "running"), Status(directory, "", "waiting"))
    state: State = "stopped"
    if at.state == "running" or is_alive(directory, heart):
        state = "running"
    elif heart.get("state") in ("failed", "interrupted", "finished"):
        state = heart["state"]
    elif all(stage.state == "finished" for stage in stages):
        state = "finished"
    return Status(
        kind="recipe",
        work=at.work,
        waits=at.waits,
        utilisation=at.utilisation,
        stages=stages,
        **_of_driver(directory, heart, state),
    )


def _run_status(directory: Path) -> Status:
    run, heart = RunReader(directory), _heartbeat(directory)
    if run.type not in KINDS:
        raise ValueError(
            f"{directory / CONFIG}: type={run.type!r}: must be one of {', '.join(KINDS)}; put it back from a copy"
        )
    in_rounds = KINDS[run.type].in_rounds
    wanted = int(run.setting("run.rounds")) if in_rounds else None
    rounds = [_finite(row) for row in run.rounds] if in_rounds else []
    state = _state(run, heart)
    last: dict[str, Row] = {"round": rounds[-1]} if rounds else {}
    for row in read_rows(directory / "metrics.jsonl", _TAIL_BYTES):
        last |= {name: row for name in ("evaluation", "step", "data") if f"{name}_index" in row}
    if run.type != "data":
        result = (read_whole(directory / KINDS[run.type].manifest) or {}).get("metrics")
        last |= {"result": result} if isinstance(result, dict) and result else {}
    work = None
    if state == "running" and "phase" in heart:
        taken_s = max(0.0, heart["updated"] - heart["started"])
        work = Work(heart["phase"], heart["done"], heart["total"], heart["unit"], taken_s)
    return Status(
        kind=run.type,
        work=work,
        rounds_wanted=wanted,
        rounds=tuple(rounds),
        left_s=_left_s(run, work) if work and wanted else None,
        metrics=last,
        waits=tuple(heart.get("waits", ())) if state == "running" else (),
        utilisation=recent_utilisation(directory / TIMELINE, heart["started"]) if work else {},
        verdict=str(run_verdict(run) or "") if in_rounds else "",
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
    with suppress(ValidationError):
        if not TypeAdapter(Writer).validate_python(read_whole(run.path / WRITER)).ended:
            return "running"
    return "finished" if run.finished else "stopped"


def _left_s(run: RunReader, work: Work) -> float | None:
    """Rounds to come as long as the mean of those before, less what the one at hand has taken."""
    seconds = [row["seconds"] for row in map(_finite, run.rounds) if "seconds" in row]
    if not seconds:
        return None
    try:
        taken = work.seconds + sum(run.seconds(run.round_path(len(run.rounds))).values())
    except ValueError:  # a manifest that isn't whole
        taken = work.seconds
    left = run.setting("run.rounds") - len(run.rounds)
    return max(0.0, left * sum(seconds) / len(seconds) - taken)


def _finite(row: Metrics) -> Metrics:
    return {name: value for name, value in row.items() if math.isfinite(value)}


def _heartbeat(directory: Path) -> dict[str, Any]:
    """What the driver said last; nothing where that is damaged, as for a run without a heartbeat."""
    heart = read_whole(directory / STATUS) or {}
    return heart if _has(heart, _BEAT) and ("phase" not in heart or _has(heart, _AT_WORK)) else {}


def _has(row: Row, kinds: Mapping[str, Any]) -> bool:
    """Whether it has all of these keys, with values of these types."""
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def render_status(status: Status) -> str:
    """All that is known, as lines."""
    busy = ", ".join(f"{role} {share:.0%}" for role, share in status.utilisation.items())
    driver = status.driver
    lines = [
        status.error,
        str(status.work or ("starting" if status.state == "running" else "")),
        busy and f"busy: {busy}",
        *status.waits,
        driver and f"driver: process {driver.pid} on {driver.host}, heard of {duration(driver.silent_s)} ago",
        *(f"{name}: {url}" for name, url in status.links.items()),
    ]
    tables = [render_table(_STAGES, status.stages)] if status.stages else []
    if status.rounds:
        tables.append(render_rounds([dict(row) for row in status.rounds]))
    tables += [status.verdict] if status.verdict else []
    last = [
        f"  {name if name == 'result' else 'last ' + name}: {_figures(row)}"
        for name, row in status.metrics.items()
        if name != "round" and (name != "step" or status.state != "finished")
    ]
    return "\n".join([headline(status), *(f"  {line}" for line in lines if line), *tables, *last])


def headline(status: Status) -> str:
    """The run, its state, and how far it is."""
    done, wanted = sum(stage.state == "finished" for stage in status.stages), status.rounds_wanted
    parts = [
        f"{status.name} ({status.kind}): {status.state}",
        status.stages and f"{done} of {len(status.stages)} stages done",
        wanted is not None
        and status.state != "finished"
        and f"round {min(len(status.rounds) + 1, wanted)} of {wanted}",
        status.elapsed_s is not None and status.state == "running" and f"{duration(status.elapsed_s)} so far",
        status.left_s is not None and f"about {duration(status.left_s)} left",
    ]
    return ", ".join(part for part in parts if part)


def status_mapping(status: Status) -> dict[str, Any]:
    """For programs; seconds and units a second are numbers."""
    mapping = {**asdict(status), "name": status.name, "directory": str(status.directory)}
    mapping["stages"] = [status_mapping(stage) for stage in status.stages]
    if status.work is not None:
        mapping["work"] |= {"rate": status.work.rate, "left_s": status.work.left_s}
    return mapping


def follow(directory: Path, every_s: float = 1.0) -> Status:
    """Show the status again and again until the run ends: redrawn in a terminal, else a line when it changes."""
    if manner() == "json" or not sys.stdout.isatty():
        return _follow_lines(directory, every_s)
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        for status in _until_it_ends(directory, every_s):
            # As text without markup: a phase's or an error's brackets are its own.
            live.update(Text(render_status(status)), refresh=True)
    return status


def _follow_lines(directory: Path, every_s: float) -> Status:
    shown: object = None
    last = -math.inf
    for status in _until_it_ends(directory, every_s):
        at = status.work and (status.work.phase, status.work.done)
        # Who waits for whom, without the numbers, which always change.
        waits = [text.partition(":")[0] for text in status.waits]
        where = (status.state, len(status.rounds), [stage.state for stage in status.stages], at, waits)
        due = time.monotonic() - last > _LINE_EVERY_S or status.state != "running"
        if where != shown and due:
            shown, last = where, time.monotonic()
            tell("status", **status_mapping(status))
            work = [str(status.work)] if status.work else []
            say("; ".join([headline(status), *work, *status.waits]))
    return status


def _until_it_ends(directory: Path, every_s: float) -> Iterator[Status]:
    yield (status := read_status(directory))
    while status.state == "running":
        time.sleep(every_s)
        yield (status := read_status(directory))


def _figures(row: Row) -> str:
    """Some of a row's numbers, as words."""
    numbers = [
        f"{spoken(name)} {value:.4g}"
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("time", "round")
    ]
    return ", ".join(numbers[:_SHOWN_METRICS]) + (", ..." if len(numbers) > _SHOWN_METRICS else "")
