"""Who tells of the workers' turns: the timeline, Ray's metrics, the run's status, and a line when something is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from ultramed_rl.cluster.metrics import RoleMetrics
from ultramed_rl.scheduling.scheduler import Watcher
from ultramed_rl.tracking import Progress
from ultramed_rl.tracking.heartbeat import note_waits
from ultramed_rl.tracking.stall import RoleState, explain_wait
from ultramed_rl.tracking.timeline import TIMELINE, RunningUtilisation, Span, Timeline


class RunWatcher(Watcher):
    """Watches one run's scheduler. A context manager."""

    def __init__(self, directory: Path, run: str, progress: Progress) -> None:
        self.timeline = Timeline(directory / TIMELINE)
        self.metrics = RoleMetrics(run)
        self.progress = progress
        self.restarts: dict[str, int] = {}
        self._busy = RunningUtilisation(time.time())  # in the phase under way

    @contextmanager
    def phase(self, name: str, index: int) -> Iterator[dict[str, float]]:
        """A phase of a round; what it yields holds afterwards each role's share of the time that it was at work."""
        shares: dict[str, float] = {}
        self._busy = RunningUtilisation(time.time())
        with self.timeline.phase(name, index):
            yield shares
        note_waits(())
        shares |= self._busy.shares(time.time())

    def span(self, span: Span) -> None:
        """A worker's turn."""
        self._busy.add(span)
        self.timeline.note(span)
        self.metrics.turn(span.role, span.items, span.seconds)

    def restarted(self, role: str, error: str) -> None:
        """A worker is being replaced."""
        self.restarts[role] = self.restarts.get(role, 0) + 1
        self.metrics.count("restarts", role)
        self.progress.say(f"{role}: a worker is started again: {error}")

    def set_aside(self, role: str) -> None:
        """A prompt is given up."""
        self.metrics.count("quarantined_prompts", role)

    def look(self, states: Sequence[RoleState], stalled: str | None) -> None:
        """How the roles stand."""
        self.metrics.observe(states)
        note_waits(explain_wait(states))
        if stalled is not None:
            self.progress.say(stalled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        note_waits(())
        self.timeline.close()
