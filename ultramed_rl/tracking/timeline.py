"""`timeline.jsonl` of a run: which worker did what, and when; the same as a trace for Perfetto; and how busy the workers were: the
share of a window that a role's workers spent at work, and a table of it by phase.

turns --> note --> (a thread: joined, written every few seconds) --> RUN/timeline.jsonl --> table, trace, report
"""

from __future__ import annotations

import json
import math
import threading
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ultramed_rl.store.run_reader import RunReader, read_rows
from ultramed_rl.tracking.tables import numbered_columns, render_table

TIMELINE = "timeline.jsonl"
# Who notes the phases of a round: its spans say what the round did, and nobody's load.
CONTROLLER = "controller"
_EVERY_S = 3.0
_LAST_S = 10.0  # that the end of a run waits for its last spans
_MOST_NOTED = 200_000  # spans that wait while the disk hangs; more are dropped
_JOIN_S = 0.05  # turns of one worker that are no further apart are joined
_MOST_JOIN_S = 2.0
_LONGEST_S = 20.0  # of a span of joined turns
_MOST_LINES = 2000  # of one write; beyond it turns that are further apart are joined too
WHOLE = "whole run"
_TAIL_BYTES = 2**20  # about ten thousand spans
_PHASE_BREAK_S = 30.0  # a phase without spans for so long is over, where no controller says so
_RUN_BREAK_S = 600.0  # a run without spans for so long was stopped
Window = tuple[float, float]  # unix seconds, from and to
Table = dict[str, dict[str, float]]  # phase, and within it `seconds` and the busy share of each role


@dataclass(frozen=True)
class Span:
    """A turn of a worker, in unix seconds of the worker's own clock."""

    role: str
    worker: str
    phase: str
    started: float
    ended: float
    items: int  # completions, answers or pairs that the turn has done
    idle_s: float = 0.0  # between short turns that were joined into this one; the rest of it was work

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.started)

    @property
    def density(self) -> float:
        """The share of the span that was work."""
        return max(0.0, 1.0 - self.idle_s / self.seconds) if self.seconds else 0.0


def span_line(span: Span) -> str:
    """The span as a line of `timeline.jsonl`; times to a tenth of a millisecond."""
    row = {**vars(span), "started": round(span.started, 4), "ended": round(span.ended, 4)}
    row["idle_s"] = round(span.idle_s, 4)
    if span.idle_s < 1e-4:
        del row["idle_s"]
    return json.dumps(row) + "\n"


def read_spans(path: Path, last_bytes: int | None = None) -> list[Span]:
    """All spans of a timeline by their start, or those in its last bytes; none where it isn't there. Lines that hold no
    span, as the half of one that a killed run leaves, are passed over."""
    spans = []
    for row in read_rows(path, last_bytes):
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            role, worker, phase = (str(row[name]) for name in ("role", "worker", "phase"))
            started, ended, idle_s = float(row["started"]), float(row["ended"]), float(row.get("idle_s", 0.0))
            span = Span(role, worker, phase, started, ended, int(row["items"]), idle_s)
            # JSON as Python reads it knows NaN; a clock that was set back gives a span that ends before its start.
            if math.isfinite(started + ended + idle_s) and span.seconds:
                spans.append(span)
    return sorted(spans, key=lambda span: span.started)


class Timeline:
    """Writes the spans of a run, to the end of what is there already. A context manager. A thread of its own writes: `note`
    costs a microsecond, and a slow or full disk is one warning and spans that are missing, never an error. `path`: the
    file, RUN/timeline.jsonl; made with the first span."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._noted: deque[Span] = deque()
        self._joiner = Joiner()
        self._over, self._warned = threading.Event(), False
        self._thread = threading.Thread(target=self._write_on, name="timeline", daemon=True)
        self._thread.start()

    def note(self, span: Span) -> None:
        """Keep a span; one that comes after `close` is lost."""
        if len(self._noted) < _MOST_NOTED:
            self._noted.append(span)

    @contextmanager
    def phase(self, name: str, round_index: int) -> Iterator[None]:
        """Note what the round does within: the utilisation by phase is that of these times."""
        started = time.time()
        try:
            yield
        finally:
            self.note(Span(CONTROLLER, f"round {round_index}", name, started, time.time(), 0))

    def close(self) -> None:
        """Write what is left; waits for the disk for a few seconds at most."""
        self._over.set()
        self._thread.join(_LAST_S)
        if self._thread.is_alive():
            self._warn(TimeoutError(f"not done after {_LAST_S:.0f} s"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_on(self) -> None:
        over = False
        while not over:
            over = self._over.wait(_EVERY_S)
            # One by one, since others note more meanwhile.
            noted = [self._noted.popleft() for _ in range(len(self._noted))]
            try:
                ready = self._joiner.join(noted, time.time() - _EVERY_S)
                self._append(ready + self._joiner.take_open() if over else ready)
            except Exception as error:
                self._warn(error)

    def _append(self, spans: Sequence[Span]) -> None:
        if not spans:
            return
        text = "".join(map(span_line, spans))
        with self.path.open("a+b") as file:
            # What a killed run or a full disk left of a line must not spoil the next one.
            half = file.tell() > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"
            file.write((b"\n" if half else b"") + text.encode("utf-8"))

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            text = f"{self.path}: not written ({error}); the run goes on, its timeline has gaps"
            warnings.warn(text, stacklevel=2)


class Joiner:
    """Joins turns of one worker and phase that follow each other closely, so that a timeline stays small."""

    def __init__(self) -> None:
        self.apart_s = _JOIN_S
        self._open: dict[tuple[str, str, str], Span] = {}

    def join(self, spans: Sequence[Span], before: float) -> list[Span]:
        """The spans that nothing can be joined to any more: followed by another, or ended `before`."""
        ready = []
        for span in spans:
            key = (span.role, span.worker, span.phase)
            last = self._open.get(key)
            joined = self._joined(last, span) if last is not None else None
            if last is not None and joined is None:
                ready.append(last)
            self._open[key] = joined or span
        for key in [key for key, span in self._open.items() if span.ended < before]:
            ready.append(self._open.pop(key))
        if len(ready) > _MOST_LINES:
            self.apart_s = min(2 * self.apart_s, _MOST_JOIN_S)
        return ready

    def take_open(self) -> list[Span]:
        """The spans that were still open; none is left."""
        left, self._open = list(self._open.values()), {}
        return left

    def _joined(self, last: Span, span: Span) -> Span | None:
        """Both as one; None where they are too far apart, or too long together."""
        if span.role == CONTROLLER:
            return None
        started, ended = min(last.started, span.started), max(last.ended, span.ended)
        gap = max(0.0, ended - started - last.seconds - span.seconds)
        if gap > self.apart_s or ended - started > _LONGEST_S:
            return None
        idle = last.idle_s + span.idle_s + gap
        return replace(last, started=started, ended=ended, items=last.items + span.items, idle_s=idle)


def trace_events(spans: Sequence[Span]) -> dict[str, Any]:
    """The trace (Trace Event Format of Chrome: complete events and metadata), to be written as JSON. Times are microseconds
    since the first span. A role is a process, the controller's first; a worker is a thread, and where its turns overlap
    several, since a thread's slices must not."""
    ordered = sorted(spans, key=lambda span: (span.started, -span.ended))
    zero = ordered[0].started if ordered else 0.0
    processes: dict[str, int] = {}
    threads: dict[tuple[str, str, int], int] = {}  # of each worker, by their places
    free: dict[tuple[str, str], list[float]] = {}  # from when on each of a worker's threads is
    slices = []
    for span in ordered:
        ends = free.setdefault((span.role, span.worker), [])
        place = next((place for place, end in enumerate(ends) if end <= span.started), len(ends))
        ends[place : place + 1] = [span.ended]
        started = round(1e6 * (span.started - zero))
        event = {
            "name": span.phase,
            "cat": span.role,
            "ph": "X",
            "ts": started,
            "dur": round(1e6 * (span.ended - zero)) - started,
            "pid": processes.setdefault(span.role, len(processes) + 1),
            "tid": threads.setdefault((span.role, span.worker, place), len(threads) + 1),
            "args": {"items": span.items} | ({"idle_s": round(span.idle_s, 4)} if span.idle_s else {}),
        }
        slices.append(event)
    said: list[tuple[str, int, int, dict[str, Any]]] = []
    for role, process in processes.items():
        said.append(("process_name", process, 0, {"name": role}))
        order = -1 if role == CONTROLLER else process
        said.append(("process_sort_index", process, 0, {"sort_index": order}))
    for (role, worker, place), thread in sorted(threads.items()):
        name = f"{worker} ({place + 1})" if place else worker
        said.append(("thread_name", processes[role], thread, {"name": name}))
    metadata = [{"name": k, "ph": "M", "pid": p, "tid": t, "args": args} for k, p, t, args in said]
    return {
        "traceEvents": [*metadata, *slices],
        "displayTimeUnit": "ms",
        "otherData": {"started_unix_s": zero},
    }


# -- utilisation -------------------------------------------------------------------------------------------


class Load:
    """The work of some spans over time, in worker-seconds. What several spans of one worker cover counts once, as the work
    of the span that began first."""

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
    """The share of the time since then that each role's workers were at work, in [0, 1]. It counts turns that have ended
    and are written, so the window ends with the last of them. Of a long timeline the end alone is read; the window is
    shorter then. Nothing where no turn has ended since. `since`: when the phase at hand began, in unix seconds."""
    spans = [span for span in read_spans(path, _TAIL_BYTES) if span.role != CONTROLLER]
    ends = [span.ended for span in spans] or [since]
    # Lines come by the ends of turns, more or less: before the first end that was read, some are missing.
    all_read = not spans or path.stat().st_size <= _TAIL_BYTES
    busy = RunningUtilisation(since if all_read else max(since, min(ends)))
    for span in spans:
        busy.add(span)
    return busy.shares(max(ends)) if max(ends) > busy.since else {}


def read_timeline(directory: Path) -> list[Span]:
    """The spans of a run, by their start. Raises ValueError: there is no run in the directory, or it has no timeline."""
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
