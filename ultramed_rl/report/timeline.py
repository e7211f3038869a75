"""Who worked when: rounds by role as a Gantt figure, and the busy share of each role by phase."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import plotly.graph_objects as go

from ultramed_rl.report.figures import bars, dressed, short
from ultramed_rl.report.online_run import phase_words
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.page import figure_text
from ultramed_rl.tracking.timeline import (
    CONTROLLER,
    TIMELINE,
    Load,
    Span,
    read_spans,
    run_windows,
    utilisation_table,
    workers_of,
)

MOST_BARS = 1200  # of one figure
_LEVELS = 10  # shades of a bar
_MOST_RULES = 60  # beginnings of rounds that are drawn


@dataclass(frozen=True)
class LoadBar:
    """A stretch of one role and phase with about the same load: seconds since the start, share of the workers."""

    role: str
    phase: str
    start: float
    length: float
    share: float


@dataclass(frozen=True)
class TimelineView:
    """The spans of a run without the breaks between attempts, those of its last round where there are several, and how busy
    each role was: rows of a phase's words, its seconds and every role's share."""

    spans: Sequence[Span]
    last_name: str
    last: Sequence[Span]
    roles: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def figure(self) -> go.Figure:
        """The shares as bars."""
        shares = {row[0]: dict(zip(self.roles, row[2:], strict=True)) for row in self.rows}
        tall = 90 + (12 + 16 * len(self.roles)) * len(self.rows)
        figure = bars(shares, "", tall, "group", "%{x:.0%}")
        return figure.update_layout(bargap=0.25).update_xaxes(tickformat=".0%", range=[0, 1])


def view_timeline(files: RunReader) -> TimelineView | None:
    """Who worked when, of an online run; None where it has no timeline."""
    spans = read_spans(files.path / TIMELINE)
    roles = list(workers_of(spans))
    if not roles:
        return None
    shown = without_breaks(spans)
    rounds = rounds_of(shown)
    name, start, end = rounds[-1] if len(rounds) > 1 else ("", 0.0, 0.0)
    last = list(clipped(shown, start, end))
    table = utilisation_table(spans).items()
    rows = [(phase_words(phase), row["seconds"], *(row[role] for role in roles)) for phase, row in table]
    return TimelineView(shown, name, last if workers_of(last) else [], roles, rows)


def gantt(spans: Sequence[Span]) -> go.Figure:
    """Bars of when each role worked, a colour for each phase; at most `MOST_BARS`, whatever the spans are."""
    bars = load_bars(spans)
    workers = workers_of(spans)
    unit, seconds = (
        ("minutes", 60.0) if max(bar.start + bar.length for bar in bars) > 600 else ("seconds", 1.0)
    )
    figure = go.Figure()
    for phase in dict.fromkeys(bar.phase for bar in bars):
        of_phase = [bar for bar in bars if bar.phase == phase]
        shades = [round(0.15 + 0.85 * bar.share, 3) for bar in of_phase]
        figure.add_bar(
            y=[figure_text(f"{bar.role} ({workers[bar.role]})") for bar in of_phase],
            x=[short(bar.length / seconds) for bar in of_phase],
            base=[short(bar.start / seconds) for bar in of_phase],
            customdata=[bar.share for bar in of_phase],
            name=figure_text(phase_words(phase)),
            orientation="h",
            marker={"opacity": shades, "line": {"width": 0}},
            hovertemplate=f"%{{y}}, %{{fullData.name}}: %{{customdata:.0%}} busy at %{{base:.4g}} {unit}<extra></extra>",
            showlegend=True,
        )
    dressed(figure, f"{unit} since the start", height=110 + 34 * len(workers))
    figure.update_layout(barmode="overlay", bargap=0.3)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    zero = min(span.started for span in spans)
    for _, start, _ in rounds_of(spans)[:_MOST_RULES]:
        figure.add_vline(x=short((start - zero) / seconds), line={"width": 1, "dash": "dot"})
    return figure


def load_bars(spans: Sequence[Span]) -> list[LoadBar]:
    """The load of each role and phase over time, in at most `MOST_BARS` bars; equal neighbours are one."""
    workers, by_kind = workers_of(spans), dict[tuple[str, str], list[Span]]()
    for span in spans:
        if span.role in workers:
            by_kind.setdefault((span.role, span.phase), []).append(span)
    zero, end = min(span.started for span in spans), max(span.ended for span in spans)
    bins = max(1, MOST_BARS // len(by_kind))
    width = (end - zero) / bins
    bars = []
    for (role, phase), of_kind in by_kind.items():
        load, room = Load(of_kind), width * workers[role]
        work = [load.between(zero + i * width, zero + (i + 1) * width) for i in range(bins)]
        # The share of the workers at work in each bin, in steps; little work is not none.
        levels = [min(_LEVELS, math.ceil(_LEVELS * seconds / room - 1e-3)) for seconds in work]
        for level, places in groupby(range(bins), key=levels.__getitem__):
            start, *more = places
            if level:
                bars.append(LoadBar(role, phase, start * width, (1 + len(more)) * width, level / _LEVELS))
    return bars


def rounds_of(spans: Sequence[Span]) -> list[tuple[str, float, float]]:
    """Name, beginning and end of each round that the controller told of, in their order."""
    rounds: dict[str, list[Span]] = {}
    for span in spans:
        if span.role == CONTROLLER:
            rounds.setdefault(span.worker, []).append(span)
    times = [(n, min(s.started for s in of), max(s.ended for s in of)) for n, of in rounds.items()]
    return sorted(times, key=lambda item: item[1])


def without_breaks(spans: Sequence[Span]) -> list[Span]:
    """The spans with times that go on where a stopped run was taken up again."""
    moved, windows = list[Span](), run_windows(spans)
    place, shift = 0, 0.0
    for span in sorted(spans, key=lambda span: span.started):
        while span.started > windows[place][1]:
            shift += windows[place + 1][0] - windows[place][1]
            place += 1
        moved.append(replace(span, started=span.started - shift, ended=span.ended - shift))
    return moved


def clipped(spans: Sequence[Span], start: float, end: float) -> Iterator[Span]:
    """What of the spans lies within a window; a span's idle time goes in proportion."""
    for span in spans:
        first, last = max(start, span.started), min(end, span.ended)
        if last > first:
            yield replace(span, started=first, ended=last, idle_s=(last - first) * (1.0 - span.density))
