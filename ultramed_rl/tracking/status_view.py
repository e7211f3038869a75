"""A run's status for people, as text that is redrawn while the run goes on, and for programs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ultramed_rl.tracking.console import manner, say, tell
from ultramed_rl.tracking.status import Status, Work, read_status
from ultramed_rl.tracking.summary import render_rounds, render_table

_BAR = 24
_SHOWN_METRICS = 8
_LINE_EVERY_S = 10.0
_STAGES = [(name, f"{{{name}}}") for name in ("stage", "type", "state", "at", "time")]


def render_status(status: Status) -> str:
    """All that is known, as lines."""
    return "\n".join(_lines(status))


def headline(status: Status) -> str:
    """The run, its state, and how far it is."""
    parts = [f"{status.name} ({status.kind}): {status.state}"]
    if status.stages:
        done = sum(stage.state == "finished" for stage in status.stages)
        parts.append(f", {done} of {len(status.stages)} stages done")
    if status.rounds_wanted is not None and status.state != "finished":
        at = min(len(status.rounds) + 1, status.rounds_wanted)
        parts.append(f", round {at} of {status.rounds_wanted}")
    if status.elapsed_s is not None and status.state == "running":
        parts.append(f", {duration(status.elapsed_s)} so far")
    if status.left_s is not None:
        parts.append(f", about {duration(status.left_s)} left")
    return "".join(parts)


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
            work = [render_work(status.work)] if status.work else []
            say("; ".join([headline(status), *work, *status.waits]))
    return status


def _until_it_ends(directory: Path, every_s: float) -> Iterator[Status]:
    yield (status := read_status(directory))
    while status.state == "running":
        time.sleep(every_s)
        yield (status := read_status(directory))


def _lines(status: Status) -> Iterator[str]:
    yield headline(status)
    if status.error:
        yield f"  {status.error}"
    if status.work is not None:
        yield f"  {render_work(status.work)}"
    elif status.state == "running":
        yield "  starting"
    if status.utilisation:
        yield f"  busy: {', '.join(f'{role} {share:.0%}' for role, share in status.utilisation.items())}"
    for text in status.waits:
        yield f"  {text}"
    if status.driver is not None:
        driver = status.driver
        yield f"  driver: process {driver.pid} on {driver.host}, heard of {duration(driver.silent_s)} ago"
    for name, url in status.links.items():
        yield f"  {name}: {url}"
    if status.stages:
        yield render_table(_STAGES, [_stage_row(stage) for stage in status.stages])
    if status.rounds:
        yield render_rounds([dict(row) for row in status.rounds])
    for name, row in status.metrics.items():
        if name != "round" and (name != "step" or status.state != "finished"):
            yield f"  {name if name == 'result' else 'last ' + name}: {_figures(row)}"


def _stage_row(stage: Status) -> dict[str, str]:
    at = render_work(stage.work) if stage.work else ""
    if stage.rounds_wanted is not None:
        at = f"{len(stage.rounds)} of {stage.rounds_wanted} rounds{'; ' + at if at else ''}"
    taken = "" if stage.elapsed_s is None else duration(stage.elapsed_s)
    return {"stage": stage.name, "type": stage.kind, "state": stage.state, "at": at, "time": taken}


def render_work(work: Work) -> str:
    """A phase as a line with a bar, its rate, and the time that is left."""
    of = "" if work.total is None else f"/{work.total}"
    parts = [f"{work.phase}: {work.done}{of} {work.unit}"]
    if work.total:
        filled = min(_BAR, _BAR * work.done // work.total)
        parts.insert(0, f"[{'#' * filled}{'.' * (_BAR - filled)}]")
    if work.rate is not None:
        parts.append(f"{work.rate:.3g} {work.unit}/s")
    if work.left_s:
        parts.append(f"{duration(work.left_s)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 7 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _figures(row: Any) -> str:
    """Some of a row's numbers, as words."""
    hidden = ("time", "round")
    numbers = [
        (name, value) for name, value in row.items() if isinstance(value, int | float) and name not in hidden
    ]
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers[:_SHOWN_METRICS])
    return shown + (", ..." if len(numbers) > _SHOWN_METRICS else "")
