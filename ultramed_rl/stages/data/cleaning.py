"""Stages that hold all rows against each other, or against test sets: by blocks, on Ray Data or in this process."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.blocks import map_blocks, read_part
from ultramed_rl.config.factory_cleaning import Columns, Decontaminate, Deduplicate
from ultramed_rl.data.factory.columns import split_removed
from ultramed_rl.data.factory.decontaminate import BenchmarkItem, Decontaminator
from ultramed_rl.data.factory.deduplicate import DuplicateKeys, find_duplicates
from ultramed_rl.data.sources import list_sources
from ultramed_rl.evaluation.contamination.search import question_text
from ultramed_rl.evaluation.load import load_items
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.stages.data.inputs import DataWork, open_embedder, read_input, read_made_rows
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.tracking.termination import keep_sigterm

ROWS = 2048  # of a block
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def remove_contaminated(work: DataWork) -> Counter[str]:
    """Rows that stand in a benchmark go to removed.jsonl with the item, the others to rows.jsonl."""
    step = work.config.step
    assert isinstance(step, Decontaminate)
    files = _input_files(work)
    search = Decontaminator(_benchmark_items(step), step, open_embedder(step.embedder))
    parts = _map(work, files, search, "contaminated")
    removed = {
        row["record_id"]: {**row, "reason": row["rule"]}
        for part in parts
        for row in read_part(part).to_pylist()
    }
    return _split(work, files, step.columns, removed)


def remove_repeated(work: DataWork) -> Counter[str]:
    """Rows that repeat another go to removed.jsonl with that one's id, the others to rows.jsonl."""
    step = work.config.step
    assert isinstance(step, Deduplicate)
    files = _input_files(work)
    parts = _map(work, files, DuplicateKeys(step, open_embedder(step.embedder)), "keys")
    repeated = find_duplicates([read_part(part) for part in parts], step)
    removed = {one.record_id: {**vars(one), "reason": one.rule} for one in repeated}
    return _split(work, files, step.columns, removed)


def _map(work: DataWork, files: list[Path], function: Any, name: str) -> list[Path]:
    cluster = work.config.cluster
    if cluster.workers:
        from ultramed_rl.cluster.placement import connect

        connect(cluster)
        keep_sigterm()
    return map_blocks(
        files,
        function,
        work.scratch / name,
        identity=work.identity,
        rows=ROWS,
        workers=cluster.workers,
    )


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
    """Whether a file's rows can be read from anywhere in it. Where JSON escapes surrogates, every row is looked at
    first: a half of a pair would only show when something is written."""
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as lines:
            return not any(_SURROGATE.search(line) for line in lines)
    return path.suffix == ".parquet" and path.is_file()


def _benchmark_items(step: Decontaminate) -> Iterator[BenchmarkItem]:
    for choice in step.tasks:
        task = find_task(choice.name)
        for item in load_items(task, choice.uri).items:
            yield BenchmarkItem(task.name, item.item_id, question_text(item))


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
