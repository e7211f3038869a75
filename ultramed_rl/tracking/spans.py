"""Spans of work, one for each turn of a worker, and `timeline.jsonl`, which keeps those of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMELINE = "timeline.jsonl"
# Who notes the phases of a round: its spans say what the round did, and nobody's load.
CONTROLLER = "controller"


@dataclass(frozen=True)
class Span:
    """A turn of a worker, in unix seconds of the worker's own clock.

    Args:
        items: completions, answers or pairs that the turn has done.
        idle_s: seconds between short turns that were joined into this one; the rest of it was work.
    """

    role: str
    worker: str
    phase: str
    started: float
    ended: float
    items: int
    idle_s: float = 0.0

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.started)

    @property
    def density(self) -> float:
        """The share of the span that was work."""
        return max(0.0, 1.0 - self.idle_s / self.seconds) if self.seconds else 0.0


def span_line(span: Span) -> str:
    """The span as a line of `timeline.jsonl`; times to a tenth of a millisecond."""
    row: dict[str, Any] = {
        "role": span.role,
        "worker": span.worker,
        "phase": span.phase,
        "started": round(span.started, 4),
        "ended": round(span.ended, 4),
        "items": span.items,
    }
    if span.idle_s >= 1e-4:
        row["idle_s"] = round(span.idle_s, 4)
    return json.dumps(row) + "\n"


def iterate_spans(path: Path) -> Iterator[Span]:
    """The spans of a timeline in the order of the file; none where it isn't there.

    Lines that hold no span, as the half of one that a killed run leaves, are passed over.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            span = parse_span(line)
            if span is not None:
                yield span


def read_spans(path: Path) -> list[Span]:
    """All spans of a timeline by their start."""
    return sorted(iterate_spans(path), key=lambda span: span.started)


def parse_span(line: bytes) -> Span | None:
    """The span of a line; None where it holds none."""
    try:
        row: Any = json.loads(line)
        span = Span(
            role=str(row["role"]),
            worker=str(row["worker"]),
            phase=str(row["phase"]),
            started=float(row["started"]),
            ended=float(row["ended"]),
            items=int(row["items"]),
            idle_s=float(row.get("idle_s", 0.0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    # JSON as Python reads it knows NaN; a clock that was set back gives a span that ends before its start.
    return span if math.isfinite(span.started + span.ended + span.idle_s) and span.seconds else None
