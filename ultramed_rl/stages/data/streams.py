"""Stages that read rows in order and write others, without a model; and the one that shows what a data set is."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from ultramed_rl.config.factory import Paragraphs
from ultramed_rl.config.factory_pairs import Bench, Pairs
from ultramed_rl.config.factory_rows import Records, Report, Sample, Vignettes
from ultramed_rl.data.factory.bench import SHEET_COLUMNS, build_bench, read_labels, sheet_rows
from ultramed_rl.data.factory.import_rows import import_rows, import_vignettes, sample_sets
from ultramed_rl.data.factory.pair_rows import build_pairs
from ultramed_rl.data.factory.paragraphs import cut_paragraphs
from ultramed_rl.data.factory.step import Row
from ultramed_rl.stages.data.inputs import DataWork, open_embedder, read_input, read_made_rows
from ultramed_rl.store.atomic import write_lines

SPLITS = ("train", "dev", "test")


def write_records(work: DataWork) -> Counter[str]:
    """Rows of another form, documents, or too many records to records or paragraphs: rows.jsonl."""
    counts, step, rows = Counter[str](), work.config.step, read_input(work.config)
    made: Iterable[Row]
    if isinstance(step, Paragraphs):
        made = cut_paragraphs(rows, step, counts)
    elif isinstance(step, Sample):
        made = sample_sets(lambda: read_input(work.config), step, counts)
    elif isinstance(step, Vignettes):
        made = import_vignettes(rows, step, counts)
    else:
        assert isinstance(step, Records), step
        made = import_rows(rows, step, counts)
    written: Counter[str] = Counter()
    write_lines(work.output / "rows.jsonl", _counted(made, written))
    return written + counts


def _counted(rows: Iterable[Row], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        counts["rows"] += 1
        yield dict(row)


def write_pairs(work: DataWork) -> Counter[str]:
    """Judged rows to preferences: train.jsonl, dev.jsonl and test.jsonl, each there even if it is empty."""
    counts, rules = Counter[str](), work.config.step
    assert isinstance(rules, Pairs)
    with ExitStack() as stack:
        files = {name: stack.enter_context((work.output / f"{name}.jsonl").open("w")) for name in SPLITS}
        for split, row in build_pairs(lambda: read_input(work.config), rules, counts):
            files[split].write(json.dumps(dict(row), ensure_ascii=False) + "\n")
    return counts


def write_bench(work: DataWork) -> Counter[str]:
    """Pairs of the test split to a reward bench, rows.jsonl; and sheet.csv of all pairs, for people to label."""
    counts, rules = Counter[str](), work.config.step
    assert isinstance(rules, Bench)
    labels = read_labels(rules.labels, rules.seed, counts) if rules.labels else None
    write_lines(
        work.output / "rows.jsonl", map(dict, build_bench(read_input(work.config), rules, counts, labels))
    )
    with (work.output / "sheet.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SHEET_COLUMNS)
        writer.writeheader()
        writer.writerows(sheet_rows(read_input(work.config), rules.seed))
    return counts


def write_report(work: DataWork) -> Counter[str]:
    """table.json and table.md, report.html, topics.html, models.json; the table is said too."""
    # scikit-learn and plotly take seconds to load, which the other steps needn't wait for.
    from ultramed_rl.data.factory.report.build import ReportOptions, build_report

    config, step = work.config, work.config.step
    assert isinstance(step, Report)
    judged = step.judged
    build_report(
        lambda: read_input(config),
        work.output,
        open_embedder(step.embedder),
        None if judged is None else lambda: read_made_rows(judged),
        ReportOptions(config.run.name, step.originals, step.seed, step.points, step.clusters),
    )
    work.progress.say((work.output / "table.md").read_text(encoding="utf-8"))
    return Counter(
        records=json.loads((work.output / "table.json").read_text(encoding="utf-8"))["total"]["retained"]
    )
