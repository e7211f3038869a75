"""A run's timeline for people: how busy each role was in each phase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ultramed_rl.tracking.spans import TIMELINE, Span, read_spans
from ultramed_rl.tracking.status import read_status
from ultramed_rl.tracking.summary import render_table
from ultramed_rl.tracking.utilisation import (
    Window,
    phase_utilisation,
    phase_windows,
    run_windows,
    window_shares,
    workers_of,
)

WHOLE = "whole run"


def read_timeline(directory: Path) -> list[Span]:
    """The spans of a run, by their start.

    Raises:
        ValueError: there is no run in the directory, or it has no timeline.
    """
    status = read_status(directory)
    spans = read_spans(directory / TIMELINE)
    if not spans:
        stages = [f"{directory / stage.name}" for stage in status.stages if stage.kind == "online"]
        cure = f"name one of its stages ({', '.join(stages)})" if stages else "only online rounds write one"
        raise ValueError(f"{directory}: has no timeline (no span in {TIMELINE}); {cure}")
    return spans


def utilisation_table(spans: Sequence[Span]) -> dict[str, dict[str, float]]:
    """By phase, and at last of the whole run: `seconds` that it took, and the busy share of each role in [0, 1]."""
    workers = workers_of(spans)
    phases, run = phase_windows(spans), run_windows(spans)
    shares = phase_utilisation(spans, workers)
    rows = {phase: {"seconds": _seconds(windows), **shares[phase]} for phase, windows in phases.items()}
    return {**rows, WHOLE: {"seconds": _seconds(run), **window_shares(spans, run, workers)}}


def render_utilisation(table: dict[str, dict[str, float]], workers: dict[str, int]) -> str:
    """The table as lines; a column for each role, with its number of workers."""
    columns = [("phase", "{phase}"), ("s", "{seconds:.1f}")]
    # A role's name is no format: places stand for roles.
    columns += [
        (f"{role} ({count})", f"{{role_{place}:.0%}}") for place, (role, count) in enumerate(workers.items())
    ]
    rows = [
        {"phase": phase, "seconds": row["seconds"]}
        | {f"role_{place}": row[role] for place, role in enumerate(workers)}
        for phase, row in table.items()
    ]
    return render_table(columns, rows)


def _seconds(windows: Sequence[Window]) -> float:
    return sum(end - start for start, end in windows)
