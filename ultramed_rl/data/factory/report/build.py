"""The report of a data set, in a folder: the table of sets, and one page with all figures.

rows --> table.json, table.md, report.html, topics.html; judged rows --> models.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from plotly.subplots import make_subplots

from ultramed_rl.config.factory import Report
from ultramed_rl.data.factory.judgements import ModelTable, PositionReport, model_table, position_report
from ultramed_rl.data.factory.report.table import (
    SetTable,
    count_sets,
    gather_facts,
    misfit_line,
    page_tables,
    part_of,
    read_all_facts,
    render_table,
)
from ultramed_rl.data.factory.report.topics import TopicMap, map_topics, topic_figure
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.likeness import Embed
from ultramed_rl.store.atomic import remove, write_json, write_whole
from ultramed_rl.tracking.page import PageSection, PageTable, clean_text, figure_text, page_html

Read = Callable[[], Iterable[Row]]  # opens the stream anew at every call


def build_report(
    read: Read, folder: Path, embed: Embed, judged: Read | None, config: Report, title: str = "Data report"
) -> None:
    """Write the report of records, and of judged ones if there are any; each file whole or not at all.

    `read` is called twice, `judged` up to three times; memory holds some numbers a record.

    Raises:
        ValueError: a judged row that no judge wrote, or as `map_topics`.
        RuntimeError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    misfits: Counter[str] = Counter()
    facts = gather_facts(read(), misfits)
    table = count_sets(facts, misfits, config.originals)
    write_json(folder / "table.json", asdict(table))
    _write_text(folder / "table.md", render_table(table))
    sections = _set_sections(table, facts)
    if judged is not None and next(iter(judged()), None) is not None:
        sections += _write_models(folder / "models.json", judged)
    else:
        remove(folder / "models.json")
    if len(facts):
        seed, most, clusters = config.seed, config.points, config.clusters
        texts = ((one.id, one.group, one.question) for one in read_all_facts(read(), Counter()))
        topics = map_topics(texts, embed, seed=seed, most=most, clusters=clusters)
        sections.append(_topic_section(topics))
        _write_text(folder / "topics.html", page_html(title, sections[-1:]))
    else:
        sections.append(PageSection("Topics", ("No text to map.",)))
        remove(folder / "topics.html")
    _write_text(folder / "report.html", page_html(title, sections))


def _set_sections(table: SetTable, facts: pa.Table) -> list[PageSection]:
    means = (
        "Length in words and score (1 to 10) are means ± sample standard deviations over the rows retained."
    )
    sets, kinds = page_tables(table)
    sections = [
        PageSection("Sets", (means, sets, misfit_line(table.misfits))),
        PageSection("Types", (kinds,)),
    ]
    headings = {"words": "Instruction length", "answer_words": "Answer length", "score": "Score"}
    for column, heading in headings.items():
        note = "The share of each set's rows; the number of rows is in brackets."
        counts = bin_column(facts, column)
        parts = (note, distribution_figure(counts, column)) if counts else ("No row has one.",)
        sections.append(PageSection(heading, parts))
    return sections


def _write_models(path: Path, judged: Read) -> list[PageSection]:
    """models.json, and the same as sections."""
    table, position = model_table(judged()), position_report(judged())
    write_json(path, {"models": asdict(table), "position": asdict(position)})
    rates = (
        "How often the model of the row had the higher score than that of the column; a tie counts a half."
    )
    return [
        PageSection("Candidate models", (model_cells(table),)),
        PageSection("Win rates", (rates, win_rate_figure(table))),
        PageSection("Places", tuple(position_lines(position))),
    ]


def _topic_section(topics: TopicMap) -> PageSection:
    sample = f"{len(topics.points):,} of {topics.seen:,} instructions"
    note = (
        f"{sample if topics.seen > len(topics.points) else 'All'}, near each other where their vectors are; the axes "
        "mean nothing. A cluster is named by the words that tell it from the others."
    )
    return PageSection("Topics", (note, topic_figure(topics)))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
