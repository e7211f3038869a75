"""The kinds of figures that reports are made of. Colours are the page's own."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.tracking.page import figure_text

MOST_VALUES = 24_000  # of one figure's distributions; beyond it a seeded sample is drawn
MOST_STEPS = 800  # points of a curve
_LABEL = 28


@dataclass(frozen=True)
class Axes:
    """What a figure's axes are, and how tall it is in pixels."""

    x: str
    y: str
    height: int = 340
    zero: bool = False  # the y axis begins at or holds zero
    percent: bool = False


def distribution_figure(groups: Mapping[str, Sequence[float]], axes: Axes) -> go.Figure:
    """A violin with its box and mean for each group."""
    figure = go.Figure()
    room = max(1, MOST_VALUES // max(1, len(groups)))
    for name, values in groups.items():
        finite = [value for value in values if math.isfinite(value)]
        shown = finite if len(finite) <= room else random.Random(0).sample(finite, room)
        figure.add_violin(
            y=[short(value) for value in shown],
            name=figure_text(name, _LABEL),
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
    return dressed(figure, axes)


def interval_figure(
    series: Mapping[str, Mapping[str, Interval]], axes: Axes, at: float | None = None
) -> go.Figure:
    """Means with their 95% intervals: a line for each series over its labels, and a rule at `at`."""
    figure = go.Figure()
    for name, points in series.items():
        means = [short(point.mean) for point in points.values()]
        figure.add_scatter(
            x=[figure_text(label, _LABEL) for label in points],
            y=means,
            name=figure_text(name, _LABEL),
            mode="lines+markers",
            line={"width": 2},
            marker={"size": 8},
            error_y={
                "type": "data",
                "array": [short(p.high - p.mean) for p in points.values()],
                "arrayminus": [short(p.mean - p.low) for p in points.values()],
                "thickness": 1.5,
                "width": 5,
            },
            customdata=[[short(p.low), short(p.high)] for p in points.values()],
            hovertemplate="%{x}: %{y:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})<extra></extra>",
            showlegend=len(series) > 1,
        )
    if at is not None:
        figure.add_hline(y=at, line={"width": 1, "dash": "dot"})
    return dressed(figure, axes)


def line_figure(
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]], axes: Axes, markers: bool = True
) -> go.Figure:
    """A line of (x, y) for each series; a long one is thinned to every n-th point, its last kept."""
    figure = go.Figure()
    for name, (xs, ys) in series.items():
        kept = _thinned(len(xs))
        figure.add_scatter(
            x=[xs[i] if not isinstance(xs[i], str) else figure_text(xs[i], _LABEL) for i in kept],
            y=[short(ys[i]) for i in kept],
            name=figure_text(name, _LABEL),
            mode="lines+markers" if markers and len(kept) < 60 else "lines",
            line={"width": 2},
            marker={"size": 7},
            showlegend=len(series) > 1,
        )
    return dressed(figure, axes)


def bar_figure(
    labels: Sequence[str], parts: Mapping[str, Sequence[float]], axes: Axes, mode: str, hover: str
) -> go.Figure:
    """Bars for each part of each label, lying, so that labels have room."""
    figure = go.Figure()
    for name, values in parts.items():
        figure.add_bar(
            y=[figure_text(label, _LABEL) for label in labels],
            x=[short(value) for value in values],
            name=figure_text(name, _LABEL),
            orientation="h",
            hovertemplate=f"%{{y}}, %{{fullData.name}}: {hover}<extra></extra>",
            showlegend=True,
        )
    dressed(figure, axes)
    figure.update_layout(barmode=mode)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure


def stacked_figure(labels: Sequence[str], parts: Mapping[str, Sequence[float]], axes: Axes) -> go.Figure:
    """Bars of parts one on the other; a part below 0.2% of all is left out."""
    least = 0.002 * sum(sum(values) for values in parts.values())
    shown = {name: values for name, values in parts.items() if sum(values) > least}
    tall = 70 + 34 * max(1, len(labels)) + 20 * len(shown)
    axes = Axes(axes.x, axes.y, tall, percent=axes.percent)
    figure = bar_figure(labels, shown, axes, "stack", "%{x:,.4g}")
    # Under the bars: its lines are as many as a narrow screen makes of it.
    legend = {"traceorder": "normal", "y": -60 / tall, "yanchor": "top"}
    figure.update_layout(bargap=0.35, legend=legend, margin_t=6)
    return figure


def dressed(figure: go.Figure, axes: Axes) -> go.Figure:
    """The figure with its axes named and its height set."""
    margins = {"l": 40, "r": 10, "t": 34 if any(trace.showlegend for trace in figure.data) else 12}
    margins["b"] = 44 if axes.x else 28
    figure.update_layout(height=axes.height, margin=margins)
    figure.update_layout(xaxis_title_text=axes.x or None, yaxis_title_text=axes.y or None)
    if not axes.x:
        figure.update_xaxes(showgrid=False)
    figure.update_yaxes(exponentformat="e")
    if axes.zero:
        figure.update_yaxes(rangemode="tozero")
    if axes.percent:
        figure.update_yaxes(tickformat=".0%")
    return figure


_BLUE, _BLUE_WASH = "#3a8fc4", "rgba(58, 143, 196, 0.18)"


def short(value: float) -> float | None:
    """Five digits, which no eye tells from more; None for what isn't finite, where a line breaks."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _thinned(count: int) -> list[int]:
    every = max(1, math.ceil(count / MOST_STEPS))
    places = list(range(0, count, every))
    return places if not count or places[-1] == count - 1 else [*places, count - 1]
