"""How busy the workers were: the share of a window that a role's workers spent at work, and a table of it by phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ultramed_rl.store.run_reader import CONFIG, RunReader
from ultramed_rl.tracking.summary import render_table
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


def utilisation(
    spans: Iterable[Span], start: float, end: float, workers: Mapping[str, int]
) -> dict[str, float]:
    """The share of a window that each role's workers spent at work, in [0, 1]; 0 for a window without length.

    Args:
        start: of the window, in unix seconds, as is its end. What spans cover outside of it doesn't count.
        workers: how many each role has; roles that aren't named are left out.
    """
    return _shares(_loads(spans, workers), [(start, end)], workers)


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


def _loads(spans: Iterable[Span], workers: Mapping[str, int]) -> dict[str, Load]:
    by_role: dict[str, list[Span]] = {role: [] for role in workers}
    for span in spans:
        if span.role in by_role:
            by_role[span.role].append(span)
    return {role: Load(of_role) for role, of_role in by_role.items()}


def _shares(
    loads: Mapping[str, Load], windows: Sequence[Window], workers: Mapping[str, int]
) -> dict[str, float]:
    seconds = sum(max(0.0, end - start) for start, end in windows)
    work = {role: sum(loads[role].between(*window) for window in windows) for role in workers}
    return {
        role: min(1.0, work[role] / (seconds * count)) if seconds * count > 0 else 0.0
        for role, count in workers.items()
    }


def recent_utilisation(path: Path, since: float) -> dict[str, float]:
    """The share of the time since then that each role's workers were at work, in [0, 1].

    It counts turns that have ended and are written, so the window ends with the last of them. Of a long
    timeline the end alone is read; the window is shorter then. Nothing where no turn has ended since.

    Args:
        since: when the phase at hand began, in unix seconds.
    """
    spans = [span for span in read_spans(path, _TAIL_BYTES) if span.role != CONTROLLER]
    if not spans:
        return {}
    # Lines come by the ends of turns, more or less: before the first end that was read, some are missing.
    all_read = path.stat().st_size <= _TAIL_BYTES
    start = since if all_read else max(since, min(span.ended for span in spans))
    end = max(span.ended for span in spans)
    return utilisation(spans, start, end, workers_of(spans)) if end > start else {}


def read_timeline(directory: Path) -> list[Span]:
    """The spans of a run, by their start.

    Raises:
        ValueError: there is no run in the directory, or it has no timeline.
    """
    spans = read_spans(directory / TIMELINE)
    if not spans:
        inner = [file.parent for file in sorted(directory.glob(f"*/{CONFIG}"))]
        stages = [str(path) for path in inner if RunReader(path).type == "online"]
        fix = f"name one of its stages ({', '.join(stages)})" if stages else "only online rounds write one"
        raise ValueError(f"{directory}: has no timeline (no span in {TIMELINE}); {fix}")
    return spans


def utilisation_table(spans: Sequence[Span]) -> Table:
    """By phase, and at last of the whole run: `seconds` that it took, and the busy share of each role in [0, 1]."""
    workers = workers_of(spans)
    loads = _loads(spans, workers)
    windows = {**phase_windows(spans), WHOLE: run_windows(spans)}
    return {
        phase: {"seconds": sum(end - start for start, end in of_phase), **_shares(loads, of_phase, workers)}
        for phase, of_phase in windows.items()
    }


def render_utilisation(table: Table, workers: Mapping[str, int]) -> str:
    """The table as lines; a column for each role, with its number of workers."""
    columns = [("phase", "{phase}"), ("s", "{seconds:.1f}")]
    # A role's name is no format: a number stands for it.
    columns += [(f"{role} ({count})", f"{{_{n}:.0%}}") for n, (role, count) in enumerate(workers.items())]
    rows = [
        {"phase": phase, "seconds": row["seconds"], **{f"_{n}": row[role] for n, role in enumerate(workers)}}
        for phase, row in table.items()
    ]
    return render_table(columns, rows)
