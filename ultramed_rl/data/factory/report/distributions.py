"""How long instructions and answers are and how hard, set by set: counts in fixed bins, and figures of them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import floor
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ultramed_rl.data.factory.report.facts import read_all_facts
from ultramed_rl.tracking.page import figure_text

# Thirds of an octave: narrow enough for the paper's +-20 words, even in log length. From 1 word to 2**14 and more.
LENGTH_STARTS = tuple(sorted({round(2 ** (third / 3)) for third in range(3 * 14 + 1)}))
SCORE_STARTS = tuple(range(1, 11))
MOST_SHOWN = 20
_COLOR = "#3a8fc4"
_ROW, _EDGES = 70, 120  # pixels


@dataclass(frozen=True)
class Distribution:
    """Counts by set: [name][i] rows whose value is at least starts[i] and below starts[i + 1]; the last is open.

    Scores are rounded to whole ones first, a half up.
    """

    quantity: str
    starts: tuple[int, ...]
    counts: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Distributions:
    """Of words an instruction, words an answer (rows that have one) and scores (rows that have one)."""

    instruction: Distribution
    answer: Distribution
    score: Distribution


def bin_rows(rows: Iterable[Any]) -> Distributions:
    """The distributions over rows that fit, in one pass; memory holds the counts alone."""
    instruction, answer, score = (
        _Bins("words an instruction", LENGTH_STARTS),
        _Bins("words an answer", LENGTH_STARTS),
        _Bins("score", SCORE_STARTS),
    )
    for facts in read_all_facts(rows, Counter()):
        instruction.add(facts.group, facts.words)
        if facts.answer_words is not None:
            answer.add(facts.group, facts.answer_words)
        if facts.score is not None:
            score.add(facts.group, floor(facts.score + 0.5))
    return Distributions(instruction.done(), answer.done(), score.done())


class _Bins:
    def __init__(self, quantity: str, starts: tuple[int, ...]) -> None:
        self._quantity, self._starts = quantity, starts
        self._counts: dict[str, list[int]] = {}

    def add(self, group: str, value: int) -> None:
        assert value >= self._starts[0], value
        counts = self._counts.setdefault(group, [0] * len(self._starts))
        counts[bisect_right(self._starts, value) - 1] += 1

    def done(self) -> Distribution:
        counts = {name: tuple(self._counts[name]) for name in sorted(self._counts)}
        return Distribution(self._quantity, self._starts, counts)


def bin_labels(starts: tuple[int, ...]) -> tuple[str, ...]:
    """What each bin holds, in words: "5", "6-7", and of the last "16384 or more" (of scores, "10")."""
    labels = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(starts)]
    return (*labels, f"{starts[-1]}" if starts == SCORE_STARTS else f"{starts[-1]} or more")


def distribution_figure(distribution: Distribution) -> go.Figure:
    """Bars of the share of each set's rows in each bin, a panel for each of the largest `MOST_SHOWN` sets."""
    largest = sorted(distribution.counts, key=lambda name: -sum(distribution.counts[name]))[:MOST_SHOWN]
    names = sorted(largest)
    first, last = _used(distribution)
    titles = [f"{figure_text(name, 40)} ({sum(distribution.counts[name]):,})" for name in names]
    figure = make_subplots(
        rows=max(len(names), 1),
        cols=1,
        shared_xaxes=True,
        subplot_titles=titles or None,
        vertical_spacing=_gap(names),
    )
    labels = bin_labels(distribution.starts)
    for row, name in enumerate(names, 1):
        counts = distribution.counts[name]
        bars = go.Bar(
            x=list(range(first, last + 1)),
            y=[count / sum(counts) for count in counts[first : last + 1]],
            customdata=[[labels[place], counts[place]] for place in range(first, last + 1)],
            hovertemplate="%{customdata[0]}: %{customdata[1]:,} rows, %{y:.1%}<extra></extra>",
            marker={"color": _COLOR},
            showlegend=False,
        )
        figure.add_trace(bars, row=row, col=1)
    return _dressed(figure, distribution, len(names))


def _dressed(figure: go.Figure, distribution: Distribution, panels: int) -> go.Figure:
    places = [
        n
        for n, low in enumerate(distribution.starts)
        if low & (low - 1) == 0 or max(distribution.starts) == 10
    ]
    ticks = {"tickvals": places, "ticktext": [str(distribution.starts[place]) for place in places]}
    figure.update_xaxes(showgrid=False, **ticks)
    figure.update_yaxes(tickformat=".0%", nticks=3, rangemode="tozero")
    figure.update_xaxes(title_text=distribution.quantity, row=max(panels, 1), col=1)
    figure.update_annotations(x=0, xanchor="left", font_size=12)
    height = _EDGES + _ROW * max(panels, 1)
    return figure.update_layout(height=height, bargap=0.05, margin={"t": 30, "r": 10})


def _gap(names: list[str]) -> float:
    """Share of the figure's height between two panels: room for a title."""
    return 22 / (_ROW * len(names)) if len(names) > 1 else 0.0


def _used(distribution: Distribution) -> tuple[int, int]:
    """The first and the last bin that any set has rows in; of scores all."""
    if distribution.starts == SCORE_STARTS or not distribution.counts:
        return 0, len(distribution.starts) - 1
    held = [
        any(counts[place] for counts in distribution.counts.values())
        for place in range(len(distribution.starts))
    ]
    return held.index(True), len(held) - 1 - held[::-1].index(True)
