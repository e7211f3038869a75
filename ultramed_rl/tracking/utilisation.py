"""How busy the workers were: the share of a window that a role's workers spent at work, and a table of it by phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.tables import numbered_columns, render_table
from ultramed_rl.tracking.timeline import CONTROLLER, TIMELINE, Span, read_spans

WHOLE = "whole run"
_TAIL_BYTES = 2**20  # of a timeline: about ten thousand spans
_PHASE_BREAK_S = 30.0  # a phase without spans for so long is over, where no controller says so
_RUN_BREAK_S = 600.0  # a run without spans for so long was stopped
Window = tuple[float, float]  # unix seconds, from and to
Table = dict[str, dict[str, float]]  # phase, and within it `seconds` and the busy share of each role


class Load:
    """The work of some spans over time, in worker-seconds.

    What several spans of one worker cover counts once, as the work of the span that began first.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        rises: dict[float, float] = defaultdict(float)  # of the number of workers at work
        until: dict[tuple[str, str], float] = {}
        for span in sorted(spans, key=lambda span: (span.started, span.ended)):
            worker = (span.role, span.worker)
            started = max(span.started, until.get(worker, span.started))
            if span.ended > started:
                rises[started] += span.density
                rises[span.ended] -= span.density
                until[worker] = span.ended
        self._times = np.array(sorted(rises) or [0.0])
        rates = np.cumsum([rises[moment] for moment in self._times])
        self._work = np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(self._times))])

    def between(self, start: float, end: float) -> float:
        """Worker-seconds of work within a window."""
        before, after = np.interp([start, end], self._times, self._work)
        return max(0.0, float(after - before))


class RunningUtilisation:
    """The share of the time since a moment that each role's workers spent at work, of spans that come in each worker's own
    order; none of them is kept, and every worker counts that has one."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._until: dict[str, dict[str, float]] = {}  # by role and worker: up to when its work is counted
        self._work: dict[str, float] = defaultdict(float)  # by role, in worker-seconds

    def add(self, span: Span) -> None:
        """One more turn."""
        until = self._until.setdefault(span.role, {})
        started = max(span.started, until.setdefault(span.worker, self.since))
        if span.ended > started:
            self._work[span.role] += (span.ended - started) * span.density
            until[span.worker] = span.ended

    def shares(self, end: float) -> dict[str, float]:
        """The share of the time until `end` that each role's workers spent at work, in [0, 1]."""
        seconds = max(0.0, end - self.since)
        rooms = {role: seconds * len(workers) for role, workers in self._until.items()}
        return {role: min(1.0, self._work[role] / room) if room else 0.0 for role, room in rooms.items()}


def workers_of(spans: Iterable[Span]) -> dict[str, int]:
    """How many workers of each role have a span, in the order of the roles' first spans."""
    names: dict[str, set[str]] = {}
    for span in spans:
        if span.role != CONTROLLER:
            names.setdefault(span.role, set()).add(span.worker)
    return {role: len(workers) for role, workers in names.items()}


def phase_windows(spans: Sequence[Span]) -> dict[str, list[Window]]:
    """When each phase was under way: by the controller's spans, else from a phase's own spans with short breaks."""
    told = [span for span in spans if span.role == CONTROLLER]
    breaks = 0.0 if told else _PHASE_BREAK_S
    by_phase: dict[str, list[Span]] = {}
    for span in sorted(told or spans, key=lambda span: span.started):
        by_phase.setdefault(span.phase, []).append(span)
    return {phase: run_windows(of_phase, breaks) for phase, of_phase in by_phase.items()}


def run_windows(spans: Iterable[Span], breaks_s: float = _RUN_BREAK_S) -> list[Window]:
    """When the run was under way: the windows that spans cover, with breaks of at most so many seconds. A longer one lies
    between a stop and a resumption."""
    windows: list[Window] = []
    for span in sorted(spans, key=lambda span: span.started):
        if windows and span.started - windows[-1][1] <= breaks_s:
            windows[-1] = (windows[-1][0], max(windows[-1][1], span.ended))
        else:
            windows.append((span.started, span.ended))
    return windows


def recent_utilisation(path: Path, since: float) -> dict[str, float]:
    """The share of the time since then that each role's workers were at work, in [0, 1].

    It counts turns that have ended and are written, so the window ends with the last of them. Of a long
    timeline the end alone is read; the window is shorter then. Nothing where no turn has ended since.

    Args:
        since: when the phase at hand began, in unix seconds.
    """
    spans = [span for span in read_spans(path, _TAIL_BYTES) if span.role != CONTROLLER]
    ends = [span.ended for span in spans] or [since]
    # Lines come by the ends of turns, more or less: before the first end that was read, some are missing.
    all_read = not spans or path.stat().st_size <= _TAIL_BYTES
    busy = RunningUtilisation(since if all_read else max(since, min(ends)))
    for span in spans:
        busy.add(span)
    return busy.shares(max(ends)) if max(ends) > busy.since else {}


def read_timeline(directory: Path) -> list[Span]:
    """The spans of a run, by their start.

    Raises:
        ValueError: there is no run in the directory, or it has no timeline.
    """
    files = RunReader.of(directory)
    spans = read_spans(files.path / TIMELINE)
    if not spans:
        rule = "only online rounds write one"
        raise ValueError(
            f"{directory}: has no timeline (no span in {TIMELINE}); {rule}: name such a run's folder"
        )
    return spans


def utilisation_table(spans: Sequence[Span]) -> Table:
    """By phase, and at last of the whole run: `seconds` that it took, and the share of them that each role's workers spent at
    work, in [0, 1]; every worker counts that has a span."""
    workers = workers_of(spans)
    loads = {role: Load(span for span in spans if span.role == role) for role in workers}
    table = {}
    for phase, windows in {**phase_windows(spans), WHOLE: run_windows(spans)}.items():
        seconds = sum(end - start for start, end in windows)
        table[phase] = {"seconds": seconds}
        for role, count in workers.items():
            work = sum(loads[role].between(start, end) for start, end in windows)
            table[phase][role] = min(1.0, work / (seconds * count)) if seconds else 0.0
    return table


def render_utilisation(table: Table, workers: Mapping[str, int]) -> str:
    """The table as lines; a column for each role, with its number of workers."""
    roles = numbered_columns([f"{role} ({count})" for role, count in workers.items()], 2, ".0%")
    rows = [(phase, row["seconds"], *(row[role] for role in workers)) for phase, row in table.items()]
    return render_table([("phase", "{0}"), ("s", "{1:.1f}"), *roles], rows)
