"""What a stateless worker is asked for in one turn, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WorkBatch:
    """New requests by key, keys that need no answer any more, and how long the worker may go on before it reports."""

    requests: Sequence[tuple[str, Any]] = ()
    cancelled: Sequence[str] = ()
    seconds: float = 1.0


@dataclass(frozen=True)
class WorkResult:
    """What became of requests, of this turn's or of earlier ones.

    `failed`: keys with the error of that one request; a worker that cannot go on raises instead. `started` and
    `ended` are unix seconds on the worker's clock, without waiting for the turn.
    """

    done: list[tuple[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0
