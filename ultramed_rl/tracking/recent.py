"""How busy the roles of a run under way have been lately, by the end of its timeline."""

from __future__ import annotations

import os
from pathlib import Path

from ultramed_rl.tracking.spans import CONTROLLER, Span, parse_span
from ultramed_rl.tracking.utilisation import utilisation, workers_of

_TAIL_BYTES = 2**20  # about ten thousand spans


def recent_utilisation(path: Path, since: float) -> dict[str, float]:
    """The share of the time since then that each role's workers were at work, in [0, 1].

    It counts turns that have ended and are written, so the window ends with the last of them. Of a long
    timeline the end alone is read; the window is shorter then. Nothing where no turn has ended since.

    Args:
        since: when the phase at hand began, in unix seconds.
    """
    spans, whole = _last_spans(path)
    if not spans:
        return {}
    # Lines come by the ends of turns, more or less: before the first end that was read, some are missing.
    start = since if whole else max(since, min(span.ended for span in spans))
    end = max(span.ended for span in spans)
    return utilisation(spans, start, end, workers_of(spans)) if end > start else {}


def _last_spans(path: Path) -> tuple[list[Span], bool]:
    """The last turns of a timeline, and whether these are all."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return [], True
    found = [span for line in lines if (span := parse_span(line)) is not None]
    return [span for span in found if span.role != CONTROLLER], size <= _TAIL_BYTES
