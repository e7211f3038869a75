"""The report of a data set, in a folder: the table of sets, and one page with all figures.

rows --> table.json, table.md, report.html, topics.html; judged rows --> models.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from plotly.subplots import make_subplots

from ultramed_rl.config.factory import Report
from ultramed_rl.data.factory.judgements import ModelTable, model_table, position_report
from ultramed_rl.data.factory.report.table import (
    KIND_COLUMNS,
    SET_COLUMNS,
    RowFacts,
    count_sets,
    gather_facts,
    misfit_line,
    part_of,
    read_all_facts,
    render_table,
)
from ultramed_rl.data.factory.report.topics import Point, PointSample, map_topics, topic_figure
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.likeness import Embed
from ultramed_rl.store.atomic import remove, write_json, write_text
from ultramed_rl.tracking.page import figure_text, page_html

_HTML = Path(__file__).with_name("html")
Read = Callable[[], Iterable[Row]]  # opens the stream anew at every call


def build_report(
    rows: Iterable[Row],
    folder: Path,
    embed: Embed,
    judged: Read | None,
    config: Report,
    title: str = "Data report",
) -> None:
    """Write the report of records, and of judged ones if there are any; each file whole or not at all.

    `judged` is opened up to three times; memory holds some numbers a record.

    Raises:
        ValueError: a judged row that no judge wrote, or as `map_topics`.
        RuntimeError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    misfits: Counter[str] = Counter()
    sample = PointSample(config.points, config.seed)

    def sampled() -> Iterator[RowFacts]:
        for one in read_all_facts(rows, misfits):
            sample.add(Point(one.id, one.group, one.question))
            yield one

    facts = gather_facts(sampled())
    counted = count_sets(facts, misfits, config.originals)
    write_json(folder / "table.json", asdict(counted))
    write_text(folder / "table.md", render_table(counted))
    models = places = topics = None
    if judged is not None and next(iter(judged()), None) is not None:
        models, places = model_table(judged()), position_report(judged())
        write_json(folder / "models.json", {"models": asdict(models), "position": asdict(places)})
    else:
        remove(folder / "models.json")
    if len(facts):
        topics = map_topics(sample, embed, seed=config.seed, clusters=config.clusters)
        page = page_html(_HTML / "topics.html.jinja", title, topics=topics, topic_figure=topic_figure)
        write_text(folder / "topics.html", page)
    else:
        remove(folder / "topics.html")
    page = page_html(
        _HTML / "report.html.jinja",
        title,
        counted=counted,
        set_columns=SET_COLUMNS,
        kind_columns=KIND_COLUMNS,
        misfit_line=misfit_line,
        distributions={
            heading: distribution_figure(counts, column) if (counts := bin_column(facts, column)) else None
            for column, (heading, *_) in QUANTITIES.items()
        },
        models=models and ModelView.of(models),
        places=places,
        topics=topics,
        topic_figure=topic_figure,
    )
    write_text(folder / "report.html", page)


# -- distributions -----------------------------------------------------------------------------------------

# Thirds of an octave: narrow enough for the paper's +-20 words, even in log length. From 1 word to 2**14 and more.
LENGTH_STARTS = tuple(sorted({round(2 ** (third / 3)) for third in range(3 * 14 + 1)}))
SCORE_STARTS = tuple(range(1, 11))
QUANTITIES = {  # what is binned of the columns of `gather_facts`: section, axis, and where bins start
    "words": ("Instruction length", "words an instruction", LENGTH_STARTS),
    "answer_words": ("Answer length", "words an answer", LENGTH_STARTS),
    "score": ("Score", "score", SCORE_STARTS),
}
MOST_SHOWN = 20  # sets
_ROW, _EDGES, _TITLE = 70, 120, 22  # pixels


def bin_column(facts: pa.Table, column: str) -> dict[str, np.ndarray]:
    """By set, how many of its values are at least starts[i] and below starts[i + 1]; the last bin is open.

    Scores are rounded to whole ones first, a half up. A set without values is left out.
    """
    *_, starts = QUANTITIES[column]
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
    _, quantity, starts = QUANTITIES[column]
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


class ModelView(NamedTuple):
    """The table of models as the page shows it: a row for each with its win rate against each, by their places."""

    rows: list[tuple[Any, ...]]
    beaten: list[str]
    figure: go.Figure

    @classmethod
    def of(cls, table: ModelTable) -> ModelView:
        lines = zip(table.models, table.answers, table.mean_rank, table.mean_score, strict=True)
        rows = [(*line, *rates) for line, rates in zip(lines, table.win_rates, strict=True)]
        return cls(rows, [f"beats {place}" for place in range(1, len(rows) + 1)], win_rate_figure(table))


def win_rate_figure(table: ModelTable) -> go.Figure:
    """A cell for every two models: how often the row's answer beats the column's. Blank where they never met."""
    heat = go.Heatmap(
        z=table.win_rates,
        customdata=[[f"{count:,} records" for count in counts] for counts in table.meetings],
        text=[["" if rate is None else f"{rate:.2f}" for rate in rates] for rates in table.win_rates],
        texttemplate="%{text}",
        hovertemplate="row beats column in %{z:.1%} of %{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=[[0.0, "#d55e00"], [0.5, "#f2f0ea"], [1.0, "#0072b2"]],
        zmin=0.0,
        zmax=1.0,
        xgap=2,
        ygap=2,
        showscale=False,
    )
    figure = go.Figure(heat)
    # Cells by number, names as labels of the axis: two models may look alike once cut.
    places = list(range(len(table.models)))
    names = [f"{place + 1}. {figure_text(table.models[place], 30)}" for place in places]
    plain = {"showgrid": False, "zeroline": False, "tickvals": places}
    figure.update_xaxes(
        ticktext=[str(place + 1) for place in places], side="top", title_text="loses", **plain
    )
    figure.update_yaxes(ticktext=names, autorange="reversed", **plain)
    return figure.update_layout(height=110 + 38 * len(places), margin={"t": 60, "r": 10})
