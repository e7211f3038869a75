"""Stages that ask no model: rows read in order and written in another form, or held against each other by blocks."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.blocks import map_blocks, read_part
from ultramed_rl.config.factory import (
    Columns,
    DataConfig,
    Decontaminate,
    Deduplicate,
    Paragraphs,
    Records,
    Report,
    Sample,
    Vignettes,
)
from ultramed_rl.config.factory_steps import HASHED, Bench, Pairs
from ultramed_rl.data.chats import MISFITS_ALLOWED
from ultramed_rl.data.factory.bench import SHEET_COLUMNS, build_bench, read_labels, sheet_rows
from ultramed_rl.data.factory.decontaminate import BenchmarkItem, Decontaminator
from ultramed_rl.data.factory.deduplicate import DuplicateKeys, find_duplicates
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.factory.import_rows import import_rows, import_vignettes, sample_sets
from ultramed_rl.data.factory.instructions import split_removed
from ultramed_rl.data.factory.pair_rows import build_pairs
from ultramed_rl.data.factory.paragraphs import cut_paragraphs
from ultramed_rl.data.files import Row, SourceError
from ultramed_rl.data.likeness import Embed
from ultramed_rl.data.sources import list_sources, read_rows
from ultramed_rl.evaluation.contamination import question_text
from ultramed_rl.evaluation.suite import load_items
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.tracking import Progress
from ultramed_rl.tracking.heartbeat import keep_sigterm

SPLITS = ("train", "dev", "test")
ROWS = 2048  # of a block
_TOLD = 5000  # rows of a report after which it says how far it is
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class DataWork:
    """A stage under way: `scratch` is kept until it is done and after, `output` appears whole at its end."""

    config: DataConfig
    identity: Sequence[str]
    scratch: Path
    output: Path
    progress: Progress
    retry_failed: bool = False


def read_input(config: DataConfig) -> Iterator[Row]:
    """The input's rows, file by file; a stage before may have left nothing in one."""
    for uri in config.input:
        yield from read_made_rows(uri, config.limit)


def read_made_rows(uri: str, limit: int | None = None) -> Iterator[Row]:
    """As `read_rows`, but a file that a stage wrote may be empty."""
    path = Path(uri)
    if path.suffix == ".jsonl" and path.is_file() and not path.stat().st_size:
        return iter(())
    return read_rows(uri, limit)


def open_embedder(name: str) -> Embed:
    """What makes vectors; a model is loaded when it is first used, in whichever process that is."""
    return HashedEmbedder() if name == HASHED else partial(_embed, name)


@lru_cache(maxsize=1)
def _load_embedder(path: str) -> Embed:
    from ultramed_rl.models.embedding import Embedder

    return Embedder(path)


def _embed(path: str, texts: Sequence[str]) -> Any:
    return _load_embedder(path)(texts)


# -- row by row ---------------------------------------------------------------------------------------------


def write_records(work: DataWork) -> Counter[str]:
    """Rows of another form, documents, or too many records to records or paragraphs: rows.jsonl."""
    counts, rows = Counter[str](), read_input(work.config)
    made: Iterable[Mapping[str, Any]]
    match work.config.step:
        case Paragraphs() as step:
            made = cut_paragraphs(rows, step, counts)
        case Sample() as step:
            made = sample_sets(lambda: read_input(work.config), step, counts)
        case Vignettes() as step:
            made = import_vignettes(work.config, step, counts)
        case step:
            assert isinstance(step, Records), step
            made = import_rows(work.config, step, counts)
    written = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal written
        for row in made:
            written += 1
            yield dict(row)

    write_lines(work.output / "rows.jsonl", counted())
    if "rows" in counts:
        counts["read"] = counts.pop("rows")
    return Counter(rows=written) + counts


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
    bench = build_bench(read_input(work.config), rules, counts, labels)
    write_lines(work.output / "rows.jsonl", map(dict, bench))
    with (work.output / "sheet.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SHEET_COLUMNS)
        writer.writeheader()
        writer.writerows(sheet_rows(read_input(work.config), rules.seed))
    return counts


def write_report(work: DataWork) -> Counter[str]:
    """table.json and table.md, report.html, topics.html, models.json; the table is said too."""
    # scikit-learn and plotly take seconds to load, which the other steps needn't wait for.
    from ultramed_rl.data.factory.report.build import build_report

    config, step = work.config, work.config.step
    assert isinstance(step, Report)
    judged = step.judged

    def told() -> Iterator[Row]:
        number = 0
        for number, row in enumerate(read_input(config), start=1):
            if number % _TOLD == 0:
                work.progress.say(f"{number:,} rows read")
            yield row
        work.progress.say(
            f"all {number:,} rows read; once they are counted, a sample of {step.points:,} is mapped"
        )

    build_report(
        told,
        work.output,
        open_embedder(step.embedder),
        None if judged is None else lambda: read_made_rows(judged),
        step,
        config.run.name,
    )
    work.progress.say((work.output / "table.md").read_text(encoding="utf-8"))
    table = json.loads((work.output / "table.json").read_text(encoding="utf-8"))
    kept, misfits = table["total"]["retained"], Counter(table["misfits"])
    if misfits.total() > MISFITS_ALLOWED * (kept + misfits.total()):
        reasons = ", ".join(f"{count} {name}" for name, count in misfits.items())
        raise SourceError(
            f"input {', '.join(config.input)}: {misfits.total()} of {kept + misfits.total()} rows are no records ({reasons}); "
            f"at most {100 * MISFITS_ALLOWED:.3g}% may: make records of them first, by ultramed-rl data records"
        )
    return Counter(records=kept) + Counter({f"misfit_{name}": count for name, count in misfits.items()})


# -- all rows against each other, or against test sets, on Ray Data or in this process ----------------------


def remove_contaminated(work: DataWork) -> Counter[str]:
    """Rows that stand in a benchmark go to removed.jsonl with the item, the others to rows.jsonl."""
    step = work.config.step
    assert isinstance(step, Decontaminate)
    files = _input_files(work)
    items = (
        BenchmarkItem(choice.name, item.item_id, question_text(item))
        for choice in step.tasks
        for item in load_items(find_task(choice.name), choice.uri, first_place=choice.first_place).items
    )
    parts = _map(work, files, Decontaminator(items, step, open_embedder(step.embedder)), "contaminated")
    rows = (row for part in parts for row in read_part(part).to_pylist())
    return _split(
        work, files, step.columns, {row["record_id"]: {**row, "reason": row["rule"]} for row in rows}
    )


def remove_repeated(work: DataWork) -> Counter[str]:
    """Rows that repeat another go to removed.jsonl with that one's id, the others to rows.jsonl."""
    step = work.config.step
    assert isinstance(step, Deduplicate)
    files = _input_files(work)
    parts = _map(work, files, DuplicateKeys(step), "keys")
    repeated = find_duplicates([read_part(part) for part in parts], step)
    removed = {one.record_id: {**vars(one), "reason": one.rule} for one in repeated}
    return _split(work, files, step.columns, removed)


def _map(work: DataWork, files: list[Path], function: Any, name: str) -> list[Path]:
    cluster = work.config.cluster
    if cluster.workers:
        from ultramed_rl.cluster.connection import connect

        connect(cluster)
        keep_sigterm()
    folder = work.scratch / name
    return map_blocks(files, function, folder, identity=work.identity, rows=ROWS, workers=cluster.workers)


def _input_files(work: DataWork) -> list[Path]:
    """The input as files that blocks can be cut out of: as it is, or written once."""
    config = work.config
    sources = [Path(source) for uri in config.input for source in list_sources(uri)]
    if config.limit is None and all(_is_read_in_blocks(path) for path in sources):
        return sources
    spooled = work.scratch / "input.jsonl"
    if not spooled.is_file():
        spooled.parent.mkdir(parents=True, exist_ok=True)
        write_lines(spooled, read_input(config))
    return [spooled]


def _is_read_in_blocks(path: Path) -> bool:
    """Whether a file's rows can be read from anywhere in it: each is a line. Where JSON escapes surrogates, every row is
    looked at first: a half of a pair would only show when something is written."""
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as lines:
            return not any(_SURROGATE.search(line) or line[:1] not in b"{\r\n" for line in lines)
    return path.suffix == ".parquet" and path.is_file()


def _split(
    work: DataWork, files: list[Path], columns: Columns, removed: Mapping[str, Mapping[str, Any]]
) -> Counter[str]:
    """Kept and removed rows in two passes over the input, each a stream."""
    counts: Counter[str] = Counter()

    def rows(kept: bool) -> Iterator[dict[str, Any]]:
        source = (row for file in files for row in read_made_rows(str(file)))
        for row, removal in split_removed(source, columns, removed):
            if removal is None:
                counts["kept"] += kept
                if kept:
                    yield row
            elif not kept:
                counts[f"removed_{removal['reason']}"] += 1
                yield {**row, "removed": dict(removal)}

    write_lines(work.output / "rows.jsonl", rows(True))
    write_lines(work.output / "removed.jsonl", rows(False))
    return counts
