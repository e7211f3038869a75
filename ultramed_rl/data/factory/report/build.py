"""The report of a data set, in a folder: the table of sets, and one page with all figures.

rows --> table.json, table.md, report.html, topics.html; judged rows --> models.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from ultramed_rl.data.factory.model_table import model_table, position_report
from ultramed_rl.data.factory.report.figures import (
    bin_column,
    count_ranks,
    distribution_figure,
    model_cells,
    position_lines,
    rank_count_figure,
    topic_figure,
    win_rate_figure,
)
from ultramed_rl.data.factory.report.table import (
    SetTable,
    count_sets,
    gather_facts,
    misfit_line,
    page_tables,
    read_all_facts,
    render_table,
)
from ultramed_rl.data.factory.report.topics import TopicMap, map_topics
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.likeness import Embed
from ultramed_rl.store.atomic import remove, write_json, write_whole
from ultramed_rl.tracking.page import Section, page_html

Read = Callable[[], Iterable[Row]]  # opens the stream anew at every call


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds."""

    title: str = "Data report"
    originals: Mapping[str, int] = field(
        default_factory=dict
    )  # rows of each set before filtering, where known
    seed: int = 0
    most: int = 5000  # texts on the topic map
    clusters: int | None = None  # None for a number by their count


def build_report(
    read: Read, folder: Path, embed: Embed, judged: Read | None = None, options: ReportOptions | None = None
) -> None:
    """Write the report of records, and of judged ones if there are any; each file whole or not at all.

    `read` is called twice, `judged` up to four times; memory holds some numbers a record.

    Raises:
        ValueError: a judged row that no judge wrote, or as `map_topics`.
        RuntimeError: the disk is full.
    """
    options = options or ReportOptions()
    folder.mkdir(parents=True, exist_ok=True)
    misfits: Counter[str] = Counter()
    facts = gather_facts(read(), misfits)
    table = count_sets(facts, misfits, options.originals)
    write_json(folder / "table.json", asdict(table))
    _write_text(folder / "table.md", render_table(table))
    sections = _set_sections(table, facts)
    if judged is not None and next(iter(judged()), None) is not None:
        sections += _write_models(folder / "models.json", judged)
    else:
        remove(folder / "models.json")
    if len(facts):
        seed, most, clusters = options.seed, options.most, options.clusters
        topics = map_topics(_texts(read()), embed, seed=seed, most=most, clusters=clusters)
        sections.append(_topic_section(topics))
        _write_text(folder / "topics.html", page_html(options.title, sections[-1:]))
    else:
        sections.append(Section("Topics", ("No text to map.",)))
        remove(folder / "topics.html")
    _write_text(folder / "report.html", page_html(options.title, sections))


def _texts(rows: Iterable[Row]) -> Iterator[tuple[str, str, str]]:
    for facts in read_all_facts(rows, Counter()):
        yield facts.id, facts.group, facts.question


def _set_sections(table: SetTable, facts: pa.Table) -> list[Section]:
    means = (
        "Length in words and score (1 to 10) are means ± sample standard deviations over the rows retained."
    )
    sets, kinds = page_tables(table)
    sections = [
        Section("Sets", (means, sets, misfit_line(table.misfits))),
        Section("Types", (kinds,)),
    ]
    headings = {"words": "Instruction length", "answer_words": "Answer length", "score": "Score"}
    for column, heading in headings.items():
        note = "The share of each set's rows; the number of rows is in brackets."
        counts = bin_column(facts, column)
        parts = (note, distribution_figure(counts, column)) if counts else ("No row has one.",)
        sections.append(Section(heading, parts))
    return sections


def _write_models(path: Path, judged: Read) -> list[Section]:
    """models.json, and the same as sections."""
    table, position, ranks = model_table(judged()), position_report(judged()), count_ranks(judged())
    write_json(path, {"models": asdict(table), "position": asdict(position), "ranks": asdict(ranks)})
    rates = (
        "How often the model of the row had the higher score than that of the column; a tie counts a half."
    )
    return [
        Section("Candidate models", (model_cells(table),)),
        Section("Win rates", (rates, win_rate_figure(table))),
        Section("Ranks", ("How often each model's answer had each rank.", rank_count_figure(ranks))),
        Section("Places", tuple(position_lines(position))),
    ]


def _topic_section(topics: TopicMap) -> Section:
    sample = f"{len(topics.points):,} of {topics.seen:,} instructions"
    note = (
        f"{sample if topics.seen > len(topics.points) else 'All'}, near each other where their vectors are; the axes "
        "mean nothing. A cluster is named by the words that tell it from the others."
    )
    return Section("Topics", (note, topic_figure(topics)))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
