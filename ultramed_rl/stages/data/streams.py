"""Stages that read rows in order and write others, without a model."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from ultramed_rl.config.factory import Paragraphs
from ultramed_rl.config.factory_pairs import Bench, Pairs
from ultramed_rl.config.factory_rows import Records, Sample, Vignettes
from ultramed_rl.data.factory.bench import build_bench
from ultramed_rl.data.factory.bench_labels import SHEET_COLUMNS, read_labels, sheet_rows
from ultramed_rl.data.factory.import_rows import import_rows, import_vignettes
from ultramed_rl.data.factory.pair_rows import build_pairs
from ultramed_rl.data.factory.paragraphs import cut_paragraphs
from ultramed_rl.data.factory.sample import sample_sets
from ultramed_rl.data.factory.step import Row
from ultramed_rl.stages.data.inputs import read_input
from ultramed_rl.stages.data.work import Work
from ultramed_rl.store.atomic import write_lines

SPLITS = ("train", "dev", "test")


def write_records(work: Work) -> Counter[str]:
    """Rows of another form, documents, or too many records to records or paragraphs: rows.jsonl."""
    counts, step, rows = Counter[str](), work.config.step, read_input(work.config)
    found: Iterable[Row]
    if isinstance(step, Paragraphs):
        found = cut_paragraphs(rows, step, counts)
    elif isinstance(step, Sample):
        found = sample_sets(lambda: read_input(work.config), step, counts)
    elif isinstance(step, Vignettes):
        found = import_vignettes(rows, step, counts)
    else:
        assert isinstance(step, Records), step
        found = import_rows(rows, step, counts)
    written: Counter[str] = Counter()
    write_lines(work.output / "rows.jsonl", _counted(found, written))
    return written + counts


def _counted(rows: Iterable[Row], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        counts["rows"] += 1
        yield dict(row)


def write_pairs(work: Work) -> Counter[str]:
    """Judged rows to preferences: train.jsonl, dev.jsonl and test.jsonl, each there even if it is empty."""
    counts, rules = Counter[str](), work.config.step
    assert isinstance(rules, Pairs)
    with ExitStack() as stack:
        files = {name: stack.enter_context((work.output / f"{name}.jsonl").open("w")) for name in SPLITS}
        for split, row in build_pairs(lambda: read_input(work.config), rules, counts):
            _write_row(files[split], row)
    return counts


def write_bench(work: Work) -> Counter[str]:
    """Pairs of the test split to a reward bench, rows.jsonl; and sheet.csv of all pairs, for people to label."""
    counts, rules = Counter[str](), work.config.step
    assert isinstance(rules, Bench)
    labels = read_labels(rules.labels, rules.seed, counts) if rules.labels else None
    write_lines(
        work.output / "rows.jsonl", map(dict, build_bench(read_input(work.config), rules, counts, labels))
    )
    _write_sheet(work.output / "sheet.csv", sheet_rows(read_input(work.config), rules.seed))
    return counts


def _write_row(file: IO[str], row: Row) -> None:
    file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")


def _write_sheet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SHEET_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
