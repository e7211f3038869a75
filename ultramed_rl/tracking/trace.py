"""A timeline as a trace in Chrome's format, which Perfetto opens: a process for each role, a thread for each worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ultramed_rl.tracking.spans import CONTROLLER, Span

Event = dict[str, Any]


def trace_events(spans: Sequence[Span]) -> dict[str, Any]:
    """The trace (Trace Event Format of Chrome: complete events and metadata), to be written as JSON.

    Times are microseconds since the first span. Turns of one worker that overlap without one holding the other
    are put into further threads of that worker, since a thread's slices must nest.
    """
    ordered = sorted(spans, key=lambda span: (span.started, -span.ended))
    zero = ordered[0].started if ordered else 0.0
    threads = _Threads()
    slices = [_slice(span, zero, *threads.place(span)) for span in ordered]
    return {
        "traceEvents": [*threads.names(), *slices],
        "displayTimeUnit": "ms",
        "otherData": {"started_unix_s": zero},
    }


def _slice(span: Span, zero: float, process: int, thread: int) -> Event:
    work = {"items": span.items} | ({"idle_s": round(span.idle_s, 4)} if span.idle_s else {})
    started = round(1e6 * (span.started - zero))
    return {
        "name": span.phase,
        "cat": span.role,
        "ph": "X",
        "ts": started,
        "dur": round(1e6 * (span.ended - zero)) - started,
        "pid": process,
        "tid": thread,
        "args": work,
    }


class _Threads:
    """Numbers of processes and threads by role and worker; `_open` are the ends of the slices that a thread is in."""

    def __init__(self) -> None:
        self._roles: dict[str, int] = {}
        self._workers: dict[tuple[str, str], list[int]] = {}
        self._open: list[list[float]] = []

    def place(self, span: Span) -> tuple[int, int]:
        """The process and the thread of a span; spans come by their start, the longest first."""
        process = self._roles.setdefault(span.role, len(self._roles) + 1)
        threads = self._workers.setdefault((span.role, span.worker), [])
        for thread in threads:
            ends = self._open[thread - 1]
            while ends and ends[-1] <= span.started:
                ends.pop()
            if not ends or span.ended <= ends[-1]:
                ends.append(span.ended)
                return process, thread
        self._open.append([span.ended])
        threads.append(len(self._open))
        return process, len(self._open)

    def names(self) -> list[Event]:
        """Metadata that name the processes and threads, the controller's first."""
        found = []
        for role, process in self._roles.items():
            found.append(_metadata("process_name", process, 0, name=role))
            order = -1 if role == CONTROLLER else process
            found.append(_metadata("process_sort_index", process, 0, sort_index=order))
        for (role, worker), threads in sorted(self._workers.items()):
            for place, thread in enumerate(threads):
                name = f"{worker} ({place + 1})" if place else worker
                found.append(_metadata("thread_name", self._roles[role], thread, name=name))
        return found


def _metadata(kind: str, process: int, thread: int, **content: Any) -> Event:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": content}
