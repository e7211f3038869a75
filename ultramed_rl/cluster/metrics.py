"""What a run tells Ray's metrics, by role: how much is done, waits, is held, and by how many workers.

Ray exports each under the prefix `ray_`, and a counter with the suffix `_total`; docs/cluster.md lists them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

from ray.util.metrics import Counter, Gauge, Histogram

from ultramed_rl.tracking.stall import RoleState

_PREFIX = "ultramed_rl"
_TAGS = ("run", "role")
# Of a turn: from a small batch of scores to a long answer on a busy engine.
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class RoleMetrics:
    """The metrics of one run's roles, recorded by its driver. None of these calls raises: it is one warning.

    Args:
        run: the run's name, the tag `run` of all that is recorded.
    """

    def __init__(self, run: str) -> None:
        self.run, self._warned = run, False
        self._items = _counter("items", "Items that a role has finished")
        self._restarts = _counter("restarts", "Workers of a role that were started again")
        self._set_aside = _counter("quarantined_prompts", "Prompts that a role gave up, with their error")
        self._waiting = _gauge("waiting", "Items queued for a role that no worker has")
        self._held = _gauge("held", "Items that workers of a role have")
        self._busy = _gauge("busy_workers", "Workers of a role that are at work")
        self._starting = _gauge("starting_workers", "Workers of a role that are not up yet")
        description = "Seconds that a worker's turn took"
        self._seconds = Histogram(f"{_PREFIX}_turn_seconds", description, _SECONDS, _TAGS)

    def observe(self, states: Sequence[RoleState]) -> None:
        """How the roles stand now."""
        for state in states:
            tags = self._tags(state.role)
            for gauge, value in (
                (self._waiting, state.waiting),
                (self._held, state.held),
                (self._busy, state.busy),
                (self._starting, state.starting),
            ):
                self._record(partial(gauge.set, value, tags))

    def count(self, role: str, items: int, seconds: float) -> None:
        """A turn of a worker is done."""
        tags = self._tags(role)
        if items > 0:
            self._record(lambda: self._items.inc(items, tags))
        self._record(lambda: self._seconds.observe(seconds, tags))

    def restarted(self, role: str) -> None:
        """A worker is started again."""
        self._record(lambda: self._restarts.inc(1, self._tags(role)))

    def set_aside(self, role: str) -> None:
        """A prompt is quarantined."""
        self._record(lambda: self._set_aside.inc(1, self._tags(role)))

    def _tags(self, role: str) -> dict[str, str]:
        return {"run": self.run, "role": role}

    def _record(self, record: Callable[[], None]) -> None:
        try:
            record()
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"Ray's metrics: not recorded ({error}); the run goes on without", stacklevel=3)


def _counter(name: str, description: str) -> Counter:
    return Counter(f"{_PREFIX}_{name}", description, _TAGS)


def _gauge(name: str, description: str) -> Gauge:
    return Gauge(f"{_PREFIX}_{name}", description, _TAGS)
