"""The report of a data set, in a folder: the table of sets, and one page with all figures.

rows --> table.json, table.md, report.html, topics.png, topics.html; judged rows --> models.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from ultramed_rl.data.factory.judgements import ModelTable, PositionReport, model_table, position_report
from ultramed_rl.data.factory.report.distributions import Distribution, bin_rows, distribution_figure
from ultramed_rl.data.factory.report.facts import read_all_facts
from ultramed_rl.data.factory.report.models import (
    RankCounts,
    count_ranks,
    mean_figure,
    model_cells,
    model_columns,
    position_lines,
    rank_count_figure,
    win_rate_figure,
)
from ultramed_rl.data.factory.report.table import (
    KIND_COLUMNS,
    SET_COLUMNS,
    SetTable,
    count_sets,
    kind_cells,
    misfit_line,
    render_table,
    table_cells,
)
from ultramed_rl.data.factory.report.topic_pictures import draw_topics, topic_figure
from ultramed_rl.data.factory.report.topics import TopicMap, map_topics
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.likeness import Embed
from ultramed_rl.store.atomic import remove, write_json, write_whole
from ultramed_rl.tracking.page import PageTable, Section, page_html

Read = Callable[[], Iterable[Row]]  # opens the stream anew at every call


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds.

    Args:
        originals: rows of each set before filtering, where known.
        most: texts on the topic map. clusters: None for a number by their count.
    """

    title: str = "Data report"
    originals: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    most: int = 5000
    clusters: int | None = None


def build_report(
    read: Read, folder: Path, embed: Embed, judged: Read | None = None, options: ReportOptions | None = None
) -> None:
    """Write the report of records, and of judged ones if there are any; each file whole or not at all.

    `read` is called three times, `judged` up to four; memory is flat in the number of records but for the position
    report's few numbers a judged row.

    Raises:
        ValueError: a judged row that no judge wrote, or as `map_topics`.
        RuntimeError: the disk is full.
    """
    options = options or ReportOptions()
    folder.mkdir(parents=True, exist_ok=True)
    table = count_sets(read(), options.originals)
    write_json(folder / "table.json", asdict(table))
    _write_text(folder / "table.md", render_table(table))
    topics = _map(read, embed, options) if table.total.retained else None
    models = _judge(judged) if judged is not None else None
    sections = [*_set_sections(table, read), *_model_sections(models), *_topic_sections(topics)]
    _write_text(folder / "report.html", page_html(options.title, sections))
    for name in ("topics.png", "topics.html") if topics is None else ():
        remove(folder / name)
    if topics is not None:
        write_whole(folder / "topics.png", partial(draw_topics, topics, title=options.title))
        _write_text(folder / "topics.html", page_html(options.title, _topic_sections(topics)))
    if models is None:
        remove(folder / "models.json")
    else:
        parts = {"models": asdict(models.table), "position": asdict(models.position)}
        write_json(folder / "models.json", {**parts, "ranks": asdict(models.ranks)})


@dataclass(frozen=True)
class _Models:
    table: ModelTable
    position: PositionReport
    ranks: RankCounts


def _judge(judged: Read) -> _Models | None:
    """None without rows."""
    if not list(islice(judged(), 1)):
        return None
    return _Models(model_table(judged()), position_report(judged()), count_ranks(judged()))


def _map(read: Read, embed: Embed, options: ReportOptions) -> TopicMap:
    return map_topics(_texts(read()), embed, seed=options.seed, most=options.most, clusters=options.clusters)


def _texts(rows: Iterable[Row]) -> Iterator[tuple[str, str, str]]:
    for facts in read_all_facts(rows, Counter()):
        yield facts.id, facts.group, facts.question


def _set_sections(table: SetTable, read: Read) -> list[Section]:
    bins = bin_rows(read())
    return [
        Section(
            "Sets",
            (
                "Length in words and score (1 to 10) are means ± sample standard deviations over the rows retained.",
                PageTable(SET_COLUMNS, tuple(table_cells(table))),
                misfit_line(table.misfits),
            ),
        ),
        Section("Types", (PageTable(KIND_COLUMNS, tuple(kind_cells(table))),)),
        _bin_section("Instruction length", bins.instruction),
        _bin_section("Answer length", bins.answer),
        _bin_section("Score", bins.score),
    ]


def _bin_section(heading: str, distribution: Distribution) -> Section:
    if not distribution.counts:
        return Section(heading, ("No row has one.",))
    note = "The share of each set's rows; the number of rows is in brackets."
    return Section(heading, (note, distribution_figure(distribution)))


def _model_sections(models: _Models | None) -> list[Section]:
    if models is None:
        return []
    cells = PageTable(model_columns(models.table), tuple(model_cells(models.table)))
    rates = (
        "How often the model of the row had the higher score than that of the column; a tie counts a half."
    )
    return [
        Section("Candidate models", (cells, mean_figure(models.table))),
        Section("Win rates", (rates, win_rate_figure(models.table))),
        Section("Ranks", ("How often each model's answer had each rank.", rank_count_figure(models.ranks))),
        Section("Places", tuple(position_lines(models.position))),
    ]


def _topic_sections(topics: TopicMap | None) -> list[Section]:
    if topics is None:
        return [Section("Topics", ("No text to map.",))]
    shown = (
        f"{len(topics.points):,} of {topics.seen:,} instructions"
        if topics.seen > len(topics.points)
        else "All"
    )
    note = (
        f"{shown}, near each other where their vectors are; the axes mean nothing. A cluster is named by the words "
        "that tell it from the others."
    )
    return [Section("Topics", (note, topic_figure(topics)))]


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
