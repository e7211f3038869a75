"""What is known of how a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["waiting", "running", "finished", "failed", "interrupted", "stopped"]
Row = Mapping[str, Any]


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


@dataclass(frozen=True)
class Driver:
    """The process that drives the run, and seconds since its last heartbeat."""

    pid: int
    host: str
    silent_s: float


@dataclass(frozen=True)
class Status:
    """How a run stands.

    `stopped` has no process any more and didn't say why: it was killed. `left_s` is of the whole run, where
    that can be told. `metrics` holds the last row of each kind (round, evaluation, step, data) and the result
    of a finished stage. `rounds` are the rows of all committed rounds. Of a recipe, `stages` are its stages.
    `waits` says who waits for whom, and `utilisation` how busy each role has been in the phase at hand, in [0, 1].
    """

    directory: Path
    kind: str
    state: State
    work: Work | None = None
    driver: Driver | None = None
    rounds_wanted: int | None = None
    rounds: tuple[Row, ...] = ()
    left_s: float | None = None
    elapsed_s: float | None = None
    metrics: Mapping[str, Row] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    waits: tuple[str, ...] = ()
    utilisation: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[Status, ...] = ()

    @property
    def name(self) -> str:
        return self.directory.name
