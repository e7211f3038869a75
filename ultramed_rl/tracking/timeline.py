"""`timeline.jsonl` of a run: which worker did what, and when.

turns --> note --> (a thread: joined, written every few seconds) --> RUN/timeline.jsonl --> table, trace, report
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ultramed_rl.tracking.spans import CONTROLLER, TIMELINE, Span, iterate_spans, read_spans, span_line
from ultramed_rl.tracking.trace import trace_events
from ultramed_rl.tracking.utilisation import phase_utilisation, utilisation, workers_of

__all__ = [
    "CONTROLLER",
    "TIMELINE",
    "Span",
    "Timeline",
    "iterate_spans",
    "phase_utilisation",
    "read_spans",
    "trace_events",
    "utilisation",
    "workers_of",
]

_EVERY_S = 3.0
_LAST_S = 10.0  # that the end of a run waits for its last spans
_MOST_NOTED = 200_000  # spans that wait while the disk hangs; more are dropped
_JOIN_S = 0.05  # turns of one worker that are no further apart are joined
_MOST_JOIN_S = 2.0
_LONGEST_S = 20.0  # of a span of joined turns
_MOST_LINES = 2000  # of one write; beyond it turns that are further apart are joined too


class Timeline:
    """Writes the spans of a run, to the end of what is there already. A context manager.

    A thread of its own writes: `note` costs a microsecond, and a slow or full disk is one warning and spans
    that are missing, never an error.

    Args:
        path: the file, RUN/timeline.jsonl; made with the first span.
    """

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

    def __enter__(self) -> Timeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_on(self) -> None:
        over = False
        while not over:
            over = self._over.wait(_EVERY_S)
            # One by one, since others note more meanwhile.
            noted = [self._noted.popleft() for _ in range(len(self._noted))]
            try:
                ready = self._joiner.join(noted, time.time() - _EVERY_S)
                self._append(ready + self._joiner.rest() if over else ready)
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

    def rest(self) -> list[Span]:
        """The spans that were still open; none is left."""
        rest, self._open = list(self._open.values()), {}
        return rest

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
