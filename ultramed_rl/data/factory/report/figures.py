"""Figures of a data set: how long and how hard its records are, which models answer best, what texts are about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from plotly.subplots import make_subplots

from ultramed_rl.data.factory.judgements import read_judged
from ultramed_rl.data.factory.model_table import ModelTable, PositionReport
from ultramed_rl.data.factory.report.table import part_of
from ultramed_rl.data.factory.report.topics import TopicMap
from ultramed_rl.data.factory.step import Row
from ultramed_rl.tracking.page import PageTable, clean_text, figure_text

# -- distributions -----------------------------------------------------------------------------------------

# Thirds of an octave: narrow enough for the paper's +-20 words, even in log length. From 1 word to 2**14 and more.
LENGTH_STARTS = tuple(sorted({round(2 ** (third / 3)) for third in range(3 * 14 + 1)}))
SCORE_STARTS = tuple(range(1, 11))
QUANTITIES = {  # what is binned of the columns of `gather_facts`, and where bins start
    "words": ("words an instruction", LENGTH_STARTS),
    "answer_words": ("words an answer", LENGTH_STARTS),
    "score": ("score", SCORE_STARTS),
}
MOST_SHOWN = 20  # sets
_ROW, _EDGES, _TITLE = 70, 120, 22  # pixels


def bin_column(facts: pa.Table, column: str) -> dict[str, np.ndarray]:
    """By set, how many of its values are at least starts[i] and below starts[i + 1]; the last bin is open.

    Scores are rounded to whole ones first, a half up. A set without values is left out.
    """
    _, starts = QUANTITIES[column]
    known = facts.filter(pc.is_valid(facts[column]))
    counts = {}
    for name in sorted(pc.unique(known["group"]).to_pylist()):
        values = np.floor(part_of(known, "group", name)[column].to_numpy() + 0.5)
        counts[name] = np.bincount(np.searchsorted(starts, values, "right") - 1, minlength=len(starts))
    return counts


def bin_labels(starts: tuple[int, ...]) -> tuple[str, ...]:
    """What each bin holds, in words: "5", "6-7", and of the last "16384 or more" (of scores, "10")."""
    labels = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(starts)]
    return (*labels, f"{starts[-1]}" if starts == SCORE_STARTS else f"{starts[-1]} or more")


def distribution_figure(counts: dict[str, np.ndarray], column: str) -> go.Figure:
    """Bars of the share of each set's rows in each bin, a panel for each of the largest `MOST_SHOWN` sets, at least one."""
    quantity, starts = QUANTITIES[column]
    names = sorted(sorted(counts, key=lambda name: -counts[name].sum())[:MOST_SHOWN])
    used = np.flatnonzero(np.sum([*counts.values()], axis=0))
    shown = range(len(starts)) if starts == SCORE_STARTS else range(used[0], used[-1] + 1)
    figure = make_subplots(
        rows=len(names),
        cols=1,
        shared_xaxes=True,
        subplot_titles=[f"{figure_text(name, 40)} ({counts[name].sum():,})" for name in names],
        vertical_spacing=_TITLE / (_ROW * len(names)) if len(names) > 1 else 0.0,
    )
    labels = bin_labels(starts)
    for row, own in enumerate((counts[name] for name in names), start=1):
        bars = go.Bar(
            x=list(shown),
            y=[own[place] / own.sum() for place in shown],
            customdata=[[labels[place], int(own[place])] for place in shown],
            hovertemplate="%{customdata[0]}: %{customdata[1]:,} rows, %{y:.1%}<extra></extra>",
            marker={"color": "#3a8fc4"},
            showlegend=False,
        )
        figure.add_trace(bars, row=row, col=1)
    ticks = [place for place, low in enumerate(starts) if starts == SCORE_STARTS or low & (low - 1) == 0]
    figure.update_xaxes(showgrid=False, tickvals=ticks, ticktext=[str(starts[place]) for place in ticks])
    figure.update_xaxes(title_text=quantity, row=len(names), col=1)
    figure.update_yaxes(tickformat=".0%", nticks=3, rangemode="tozero")
    figure.update_annotations(x=0, xanchor="left", font_size=12)
    return figure.update_layout(height=_EDGES + _ROW * len(names), bargap=0.05, margin={"t": 30, "r": 10})


# -- models ------------------------------------------------------------------------------------------------

_BEST, _MIDDLE, _WORST = "#0072b2", "#f2f0ea", "#d55e00"


@dataclass(frozen=True)
class RankCounts:
    """counts[i][r - 1]: how often models[i] had rank r, 1 the best. Models by mean rank, best first."""

    models: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def count_ranks(rows: Iterable[Row]) -> RankCounts:
    """The counts over judged rows, in one pass; memory holds models times ranks. Raises as `read_judged`."""
    counted: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        judged = read_judged(row)
        for candidate, verdict in zip(judged.candidates, judged.verdicts, strict=True):
            counted[candidate.model][verdict.rank] += 1
    ranks = range(1, max((rank for counts in counted.values() for rank in counts), default=0) + 1)
    models = sorted(counted, key=lambda model: (fmean(counted[model].elements()), model))
    return RankCounts(tuple(models), tuple(tuple(counted[model][rank] for rank in ranks) for model in models))


def model_cells(table: ModelTable) -> PageTable:
    """A line for each model, then its win rate against each, opponents by their place in the table."""
    means = zip(table.models, table.answers, table.mean_rank, table.mean_score, strict=True)
    cells = [(clean_text(model), f"{n:,}", f"{rank:.2f}", f"{score:.2f}") for model, n, rank, score in means]
    rates = [["-" if rate is None else f"{rate:.2f}" for rate in row] for row in table.win_rates]
    beaten = (f"beats {place}" for place in range(1, len(cells) + 1))
    lines = tuple((*cell, *row) for cell, row in zip(cells, rates, strict=True))
    return PageTable(("Model", "Answers", "Mean rank", "Mean score", *beaten), lines)


def win_rate_figure(table: ModelTable) -> go.Figure:
    """A cell for every two models: how often the row's answer beats the column's. Blank where they never met."""
    heat = go.Heatmap(
        z=table.win_rates,
        customdata=[[f"{count:,} records" for count in counts] for counts in table.meetings],
        text=[["" if rate is None else f"{rate:.2f}" for rate in rates] for rates in table.win_rates],
        hovertemplate="row beats column in %{z:.1%} of %{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=[[0.0, _WORST], [0.5, _MIDDLE], [1.0, _BEST]],
        zmin=0.0,
        zmax=1.0,
    )
    return _matrix(heat, table.models, len(table.models), "loses")


def rank_count_figure(ranks: RankCounts) -> go.Figure:
    """A row for each model: the share of its answers at each rank, with the number in the cell."""
    shares = [[count / sum(counts) for count in counts] for counts in ranks.counts]
    heat = go.Heatmap(
        z=shares,
        text=[[f"{count:,}" for count in counts] for counts in ranks.counts],
        hovertemplate="%{text} answers, %{z:.1%} of the model's<extra></extra>",
        colorscale=[[0.0, _MIDDLE], [1.0, _BEST]],
        zmin=0.0,
        zmax=max(map(max, shares)),
    )
    return _matrix(heat, ranks.models, len(shares[0]), "rank")


def _matrix(heat: go.Heatmap, models: Sequence[str], columns: int, name: str) -> go.Figure:
    """Cells by number, names as labels of the axis: two models may look alike once cut."""
    figure = go.Figure(heat.update(texttemplate="%{text}", xgap=2, ygap=2, showscale=False))
    plain = {"showgrid": False, "zeroline": False}
    places = list(range(columns))
    numbers = [str(place + 1) for place in places]
    figure.update_xaxes(tickvals=places, ticktext=numbers, side="top", title={"text": name}, **plain)
    rows = list(range(len(models)))
    figure.update_yaxes(tickvals=rows, ticktext=_numbered(models), autorange="reversed", **plain)
    return figure.update_layout(height=110 + 38 * len(models), margin={"t": 60, "r": 10})


def _numbered(models: Sequence[str]) -> list[str]:
    return [f"{place}. {figure_text(model, 30)}" for place, model in enumerate(models, start=1)]


def position_lines(report: PositionReport) -> list[str]:
    """What the order in which answers were shown did, in sentences."""
    if not report.records:
        return ["No judge saw an order of answers: none of these rows says whether places matter."]
    lines = [
        f"{report.records:,} records judged; in {report.inconsistent:,} the ranks contradict the scores."
    ]
    if report.first_share is not None and report.first_expected is not None and report.first_z is not None:
        beyond = "a sign of position bias" if abs(report.first_z) > 2 else "no sign of position bias"
        lines.append(
            f"The answer shown first won {report.first_share:.1%} of them; {report.first_expected:.1%} is expected "
            f"if places do not matter. That is {report.first_z:+.1f} standard errors off: {beyond}."
        )
    if report.tau is not None and report.top_agreement is not None:
        lines.append(
            f"{report.twice:,} second orders: Kendall's tau with the first {report.tau:.2f}, the same best answer in "
            f"{report.top_agreement:.1%}."
        )
    return lines


# -- topics ------------------------------------------------------------------------------------------------

# Colours that the colour-blind tell apart (Okabe and Ito, 2008), without black and yellow; then other marks.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKS = ("circle", "diamond", "cross", "square")


def topic_figure(topics: TopicMap) -> go.Figure:
    """A point for each text, its first 120 characters on hover; a click on a label hides its cluster."""
    figure = go.Figure()
    for cluster, label in enumerate(topics.labels):
        members = np.flatnonzero(topics.clusters == cluster)
        style = {
            "color": PALETTE[cluster % len(PALETTE)],
            "symbol": MARKS[cluster // len(PALETTE) % len(MARKS)],
        }
        dots = go.Scatter(
            x=topics.places[members, 0].tolist(),
            y=topics.places[members, 1].tolist(),
            mode="markers",
            name=f"{cluster + 1} {figure_text(label)} ({len(members):,})",
            text=list(_hovers(topics, members)),
            hoverinfo="text",
            marker={**style, "size": 6, "opacity": 0.75},
        )
        figure.add_trace(dots)
        x, y = _centre(topics.places[members])
        figure.add_annotation(x=x, y=y, text=f"<b>{cluster + 1}</b>", showarrow=False, font_size=18)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    legend = {"orientation": "h", "yanchor": "top", "y": 0}
    return figure.update_layout(height=700, showlegend=True, legend=legend, margin={"t": 10, "l": 0, "r": 0})


def _hovers(topics: TopicMap, members: np.ndarray) -> Iterator[str]:
    for point in (topics.points[member] for member in members):
        head = f"{figure_text(point.group, 40)} · {figure_text(point.id, 40)}"
        yield f"{head}<br>{figure_text(point.text, 120, 60)}"


def _centre(places: np.ndarray) -> tuple[float, float]:
    """The place with a third of them nearest: where they are dense, not between two halves of them."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=len(places) // 3 + 1).fit(places).kneighbors(places)
    x, y = places[np.argmin(distances[:, -1])]
    return float(x), float(y)
