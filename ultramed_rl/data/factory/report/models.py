"""Candidate models in figures and in text: who wins, how often each is ranked where, what the places did."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ultramed_rl.data.factory.judgements import ModelTable, PositionReport, read_judged
from ultramed_rl.data.factory.step import Row
from ultramed_rl.tracking.page import clean_text, figure_text

MODEL_COLUMNS = ("Model", "Answers", "Mean rank", "Mean score")
_DIVERGING = [[0.0, "#d55e00"], [0.5, "#f2f0ea"], [1.0, "#0072b2"]]
_BLUES = [[0.0, "#f2f0ea"], [1.0, "#0072b2"]]
_BEST, _SCORE = "#0072b2", "#e69f00"


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

    def mean(model: str) -> float:
        return sum(rank * count for rank, count in counted[model].items()) / counted[model].total()

    models = sorted(counted, key=lambda model: (mean(model), model))
    return RankCounts(tuple(models), tuple(tuple(counted[model][rank] for rank in ranks) for model in models))


def win_rate_figure(table: ModelTable) -> go.Figure:
    """A cell for every two models: how often the row's answer beats the column's. Blank where they never met."""
    names = _names(table.models)
    met = [[f"{count:,} records" for count in counts] for counts in table.meetings]
    heat = go.Heatmap(
        z=[list(rates) for rates in table.win_rates],
        customdata=met,
        text=[["" if rate is None else f"{rate:.2f}" for rate in rates] for rates in table.win_rates],
        texttemplate="%{text}",
        hovertemplate="row beats column in %{z:.1%} of %{customdata}<extra></extra>",
        hoverongaps=False,
        **_grid(_DIVERGING, (0.0, 1.0)),
    )
    return _matrix(heat, names, names, "loses")


def rank_count_figure(ranks: RankCounts) -> go.Figure:
    """A row for each model: the share of its answers at each rank, with the number in the cell."""
    shares = [[count / sum(counts) for count in counts] for counts in ranks.counts]
    heat = go.Heatmap(
        z=shares,
        text=[[f"{count:,}" for count in counts] for counts in ranks.counts],
        texttemplate="%{text}",
        hovertemplate="%{text} answers, %{z:.1%} of the model's<extra></extra>",
        **_grid(_BLUES, (0.0, max((share for row in shares for share in row), default=1.0))),
    )
    places = [str(rank + 1) for rank in range(len(ranks.counts[0]) if ranks.counts else 0)]
    return _matrix(heat, _names(ranks.models), places, "rank")


def mean_figure(table: ModelTable) -> go.Figure:
    """Bars of the mean rank (lower is better) and the mean score (higher is better), side by side."""
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=("mean rank, 1 is best", "mean score")
    )
    places = list(range(len(table.models)))
    for column, values, color in ((1, table.mean_rank, _BEST), (2, table.mean_score, _SCORE)):
        bars = go.Bar(
            x=list(values),
            y=places,
            orientation="h",
            texttemplate="%{x:.2f}",
            textposition="auto",
            hovertemplate="%{x:.3f}<extra></extra>",
            marker={"color": color},
        )
        figure.add_trace(bars, row=1, col=column)
    figure.update_yaxes(tickvals=places, ticktext=_names(table.models), autorange="reversed")
    figure.update_xaxes(rangemode="tozero", fixedrange=True)
    return figure.update_layout(showlegend=False, height=110 + 34 * len(places), margin={"t": 40, "r": 10})


def model_cells(table: ModelTable) -> list[tuple[str, ...]]:
    """A line of text for each model, in the order of `MODEL_COLUMNS`, then its win rate against each."""
    lines = []
    for place, model in enumerate(table.models):
        rates = ["-" if rate is None else f"{rate:.2f}" for rate in table.win_rates[place]]
        means = (f"{table.mean_rank[place]:.2f}", f"{table.mean_score[place]:.2f}")
        lines.append((clean_text(model), f"{table.answers[place]:,}", *means, *rates))
    return lines


def model_columns(table: ModelTable) -> tuple[str, ...]:
    """The headings of `model_cells`: opponents by their place in the table."""
    return (*MODEL_COLUMNS, *(f"beats {place + 1}" for place in range(len(table.models))))


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


def _names(models: Sequence[str]) -> list[str]:
    return [f"{place + 1}. {figure_text(model, 30)}" for place, model in enumerate(models)]


def _grid(colors: list[list[object]], span: tuple[float, float]) -> dict[str, object]:
    return {"colorscale": colors, "zmin": span[0], "zmax": span[1], "xgap": 2, "ygap": 2, "showscale": False}


def _matrix(heat: go.Heatmap, rows: list[str], columns: list[str], name: str) -> go.Figure:
    """Cells by number, names as labels of the axes: two models may look alike once cut."""
    figure = go.Figure(heat)
    short = [column.partition(".")[0] for column in columns]
    axis = {"tickvals": list(range(len(columns))), "ticktext": short, "side": "top", "title": {"text": name}}
    figure.update_xaxes(showgrid=False, zeroline=False, **axis)
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=rows, autorange="reversed", showgrid=False, zeroline=False
    )
    return figure.update_layout(height=110 + 38 * len(rows), margin={"t": 60, "r": 10})
