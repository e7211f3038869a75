"""The kinds of figures that reports are made of. Colours are the page's own."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.tracking.page import figure_text

MOST_VALUES = 24_000  # of one figure's distributions; beyond it a seeded sample is drawn
MOST_STEPS = 800  # points of a curve
_BLUE, _BLUE_WASH = "#3a8fc4", "rgba(58, 143, 196, 0.18)"


def short(value: float) -> float | None:
    """Five digits, which no eye tells from more; None for what isn't finite, where a line breaks."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def distributions(groups: Mapping[str, Sequence[float]], y: str, zero: bool = False) -> go.Figure:
    """A violin with its box and mean for each group of finite values."""
    figure = go.Figure()
    room = max(1, MOST_VALUES // max(1, len(groups)))
    for name, values in groups.items():
        figure.add_violin(
            y=[short(v) for v in (values if len(values) <= room else random.Random(0).sample(values, room))],
            name=_label(name),
            points=False,
            spanmode="hard",
            box={"visible": True, "width": 0.18},
            meanline={"visible": True},
            line={"width": 1},
            marker={"color": _BLUE},
            fillcolor=_BLUE_WASH,
            line_color=_BLUE,
            scalemode="width",
            width=0.8,
            showlegend=False,
            hoveron="violins+kde",
        )
    return dressed(figure, y=y, zero=zero)


def intervals(
    series: Mapping[str, Iterable[tuple[str | float, Interval]]],
    y: str,
    height: int = 340,
    at: float | None = None,
    x: str = "",
    labels: Mapping[str | float, str] | None = None,
) -> go.Figure:
    """Means with their 95% intervals over labels or numbers: a line for each series that has any, a rule at `at`, and `labels`
    of places at the first one's points."""
    figure = go.Figure()
    points_of = {name: list(points) for name, points in series.items()}
    for name, points in points_of.items():
        if not points:
            continue
        labelled = labels is not None and not figure.data
        means = [interval for _, interval in points]
        figure.add_scatter(
            x=[_label(place) if isinstance(place, str) else short(place) for place, _ in points],
            y=[short(mean.mean) for mean in means],
            name=_label(name),
            mode="lines+markers+text" if labelled else "lines+markers",
            text=[labels.get(place) for place, _ in points] if labelled and labels else None,
            textposition="top center" if labelled else None,
            cliponaxis=None if labels is None else False,
            line={"width": 2},
            marker={"size": 8},
            error_y={
                "type": "data",
                "array": [short(mean.high - mean.mean) for mean in means],
                "arrayminus": [short(mean.mean - mean.low) for mean in means],
                "thickness": 1.5,
                "width": 5,
            },
            customdata=[[short(mean.low), short(mean.high)] for mean in means],
            hovertemplate="%{x}: %{y:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})<extra></extra>",
            showlegend=len(points_of) > 1,
        )
    if at is not None:
        figure.add_hline(y=at, line={"width": 1, "dash": "dot"})
    return dressed(figure, x, y, height)


def panels(
    series: Mapping[str, Iterable[tuple[str | float, Interval]]], x: str = "", y: str = "", height: int = 260
) -> go.Figure:
    """`intervals` of each series in a panel of its own, side by side, with a rule at 0: their units differ."""
    figure = make_subplots(1, max(1, len(series)), subplot_titles=[_label(name) for name in series])
    for column, (name, points) in enumerate(series.items(), start=1):
        figure.add_traces(intervals({name: points}, y).data, 1, column)
    figure.add_hline(y=0.0, line={"width": 1, "dash": "dot"})
    figure = dressed(figure, x, y, height).update_layout(margin_t=34)
    return figure.update_xaxes(title_text=x or None)


def shares(series: Mapping[str, Mapping[str, Interval]], y: str, height: int = 340) -> go.Figure:
    """Shares with their 95% intervals, from 0 to 1, with a rule at a half."""
    figure = intervals({name: points.items() for name, points in series.items()}, y, height, 0.5)
    return figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")


def lines(
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]],
    x: str = "",
    y: str = "",
    height: int = 280,
    zero: bool = True,
) -> go.Figure:
    """A line of (x, y) for each series; a long one is thinned to every n-th point, its last kept."""
    figure = go.Figure()
    for name, (xs, ys) in series.items():
        every = max(1, math.ceil(len(xs) / MOST_STEPS))
        kept = [i for i in range(len(xs)) if i % every == 0 or i == len(xs) - 1]
        figure.add_scatter(
            x=[_label(xs[i]) if isinstance(xs[i], str) else xs[i] for i in kept],
            y=[short(ys[i]) for i in kept],
            name=_label(name),
            mode="lines+markers" if len(kept) < 60 else "lines",
            line={"width": 2},
            marker={"size": 7},
            showlegend=len(series) > 1,
        )
    return dressed(figure, x, y, height, zero)


def bars(parts: Mapping[str, Mapping[str, float]], x: str, height: int, mode: str, hover: str) -> go.Figure:
    """Bars for the parts of each label, lying, so that labels have room."""
    figure = go.Figure()
    for name in dict.fromkeys(name for of_label in parts.values() for name in of_label):
        figure.add_bar(
            y=[_label(label) for label in parts],
            x=[short(of_label.get(name, 0.0)) for of_label in parts.values()],
            name=_label(name),
            orientation="h",
            hovertemplate=f"%{{y}}, %{{fullData.name}}: {hover}<extra></extra>",
            showlegend=True,
        )
    dressed(figure, x, height=height).update_layout(barmode=mode)
    return figure.update_yaxes(autorange="reversed", type="category", showgrid=False)


def stacked(parts: Mapping[str, Mapping[str, float]], x: str) -> go.Figure:
    """Bars of each label's parts one on the other; a part below 0.2% of all is left out."""
    totals: dict[str, float] = {}
    for of_label in parts.values():
        for name, value in of_label.items():
            totals[name] = totals.get(name, 0.0) + value
    shown = [name for name, total in totals.items() if total > 0.002 * sum(totals.values())]
    tall = 70 + 34 * max(1, len(parts)) + 20 * len(shown)
    kept = {label: {name: of_label.get(name, 0.0) for name in shown} for label, of_label in parts.items()}
    # The legend stands under the bars: its lines are as many as a narrow screen makes of it.
    legend = {"traceorder": "normal", "y": -60 / tall, "yanchor": "top"}
    figure = bars(kept, x, tall, "stack", "%{x:,.4g}")
    return figure.update_layout(bargap=0.35, legend=legend, margin_t=6)


def dressed(figure: go.Figure, x: str = "", y: str = "", height: int = 340, zero: bool = False) -> go.Figure:
    """The figure with its axes named and its height in pixels; the y axis begins at or holds zero where that is asked for."""
    top = 34 if any(trace.showlegend for trace in figure.data) else 12
    figure.update_layout(height=height, margin={"l": 40, "r": 10, "t": top, "b": 44 if x else 28})
    figure.update_layout(xaxis_title_text=x or None, yaxis_title_text=y or None)
    if not x:
        figure.update_xaxes(showgrid=False)
    return figure.update_yaxes(exponentformat="e", rangemode="tozero" if zero else None)


def _label(text: str) -> str:
    return figure_text(text, 28)
