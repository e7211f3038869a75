"""What a run tells Ray's metrics, by role: how much is done, waits, is held, and by how many workers.

Ray exports each under the prefix `ray_`, and a counter with the suffix `_total`; docs/cluster.md lists them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from ultramed_rl.tracking.stall import RoleState

_PREFIX, _TAGS = "ultramed_rl_", ("run", "role")
# Of a turn: from a small batch of scores to a long answer on a busy engine.
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
_COUNTERS = {
    "items": "Items that a role has finished",
    "restarts": "Workers of a role that were started again",
    "quarantined_prompts": "Prompts that a role gave up, with their error",
}
_GAUGES = {
    "waiting": "Items queued for a role that no worker has",
    "held": "Items that workers of a role have",
    "busy_workers": "Workers of a role that are at work",
    "starting_workers": "Workers of a role that are not up yet",
}


class RoleMetrics:
    """The metrics of one run's roles, recorded by its driver, with the run's name as a tag. None of these calls raises: it is
    one warning."""

    def __init__(self, run: str) -> None:
        self.run, self._warned = run, False
        self._counters = {name: Counter(_PREFIX + name, words, _TAGS) for name, words in _COUNTERS.items()}
        self._gauges = {name: Gauge(_PREFIX + name, words, _TAGS) for name, words in _GAUGES.items()}
        words = "Seconds that a worker's turn took"
        self._seconds = Histogram(_PREFIX + "turn_seconds", words, _SECONDS, _TAGS)

    def observe(self, states: Sequence[RoleState]) -> None:
        """How the roles stand now."""
        for state in states:
            values = (state.waiting, state.held, state.busy, state.starting)
            for gauge, value in zip(self._gauges.values(), values, strict=True):
                self._record(gauge.set, value, state.role)

    def turn(self, role: str, items: int, seconds: float) -> None:
        """A turn of a worker is done."""
        self.count("items", role, items)
        self._record(self._seconds.observe, seconds, role)

    def count(self, name: str, role: str, amount: int = 1) -> None:
        """So many more of one of the counters."""
        if amount:
            self._record(self._counters[name].inc, amount, role)

    def _record(self, record: Callable[..., None], value: float, role: str) -> None:
        try:
            record(value, {"run": self.run, "role": role})
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"Ray's metrics: not recorded ({error}); the run goes on without", stacklevel=3)
