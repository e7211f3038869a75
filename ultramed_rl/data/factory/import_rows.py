"""Questions of any form to UltraMedical records: exam, literature and open-ended ones; and so many of each set."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

from ultramed_rl.config.base import shorten
from ultramed_rl.config.factory import DataConfig, Records, Sample, Vignettes
from ultramed_rl.data.chats import (
    FittingRows,
    Misfit,
    NotedRow,
    SourceNotes,
    check_text,
    read_column,
    read_turns,
)
from ultramed_rl.data.choices import Keys, read_key, read_options, settle_keys, without_options
from ultramed_rl.data.factory.instructions import Instruction, answered_row, new_row, set_of
from ultramed_rl.data.factory.step import Row, name_of
from ultramed_rl.data.files import SourceError
from ultramed_rl.data.identity import row_id
from ultramed_rl.data.vignettes import read_vignette
from ultramed_rl.learning.seeds import seeded_number

_KEY_ROWS = 1000  # that a part of an input is told by how its keys count


def import_rows(
    config: DataConfig, step: Records, counts: Counter[str], notes: SourceNotes | None = None
) -> Iterator[Row]:
    """Records of the input's rows, in order.

    Args:
        counts: gains rows (read), misfit and, by reason, misfit_NAME.
        notes: gains what is noted of rows and columns; None: warnings say it.

    Raises:
        SourceError: an unreadable source, keys that may be meant in two ways, or too many misfits.
    """
    numbers, columns = count(1), dict[str, None]()

    def parse(row: NotedRow) -> Row:
        name: Any = next(numbers)
        columns.update(dict.fromkeys(row))
        instruction = _read_instruction(step, row, keys)
        if step.id and not (name := row_id(row, (step.id,))):
            missing = None if step.id in row else step.id
            raise Misfit(f"nothing in column {step.id!r}", name="no_id", column=missing)
        record = new_row(f"{step.name},{name}", step.kind, instruction)
        reply = _text(row.get(step.reply), step.reply) if step.reply else ""
        return answered_row(record, reply) if reply else record

    for uri in config.input:
        keys = Keys()
        if step.answer:
            read = partial(_read_instruction, step)
            most = None if config.limit is None else max(config.limit, _KEY_ROWS)
            keys = settle_keys(read, [uri], step.first_place, "step.first_place", most)
        limits, fix = (uri, config.limit, step.max_misfit_share), "name other columns, or clean the file"
        rows = FittingRows(*limits, f"make no {step.kind} record", fix, counts, (), notes)
        yield from rows.parse(parse)
        for column in (step.context, step.reply):  # which a row may lack, but not all of them
            if column and column not in columns:
                raise SourceError(
                    f"source {uri!r}: no row has a column {column!r}; its columns are {shorten(', '.join(columns), 200)}: name one "
                    "of them, or none"
                )
        columns.clear()


def import_vignettes(
    config: DataConfig, step: Vignettes, counts: Counter[str], notes: SourceNotes | None = None
) -> Iterator[Row]:
    """As `import_rows`, of DrugSwap's rows; `counts` gains figure too: rows that point at a picture are left out."""
    numbers = count(1)

    def parse(row: Row) -> Row | None:
        number = next(numbers)
        try:
            return new_row(f"{step.name},{number}", "Exam", read_vignette(row))
        except Misfit as misfit:
            if misfit.name != "figure":
                raise
        counts["figure"] += 1
        return None

    for uri in config.input:
        limits = (uri, config.limit, step.max_misfit_share)
        fix = "name a file of DrugSwap's form, or clean it"
        yield from FittingRows(*limits, "hold no vignette", fix, counts, notes=notes).parse(parse)


def _read_instruction(config: Records, row: dict[str, Any], keys: Keys) -> Instruction:
    asked = read_column(row, config.question)
    there = isinstance(asked, list) or _text(asked, config.question)
    turns = read_turns(row, config.question, "user") if there else []
    question = next((turn["content"] for turn in turns if turn["role"] == "user"), "")
    if not question:
        raise Misfit(f"nothing in column {config.question!r}", name="no_question")
    context = row.get(config.context) if config.context else None
    if isinstance(context, Mapping):  # PubMedQA's
        context = context.get("contexts")
    texts = [_text(part, config.context) for part in (context if isinstance(context, list) else [context])]
    parts = ["\n".join(filter(None, texts)), question]
    if config.answer is None:
        return Instruction("\n\n".join(filter(None, parts)))
    columns = config.options or []
    values: Any = config.choices
    if not values and isinstance(columns, list):
        values = [read_column(row, column) for column in columns]
        while values[-1:] in ([None], [""]):  # a row of fewer options than others
            values.pop()
    options = read_options(values or read_column(row, str(columns)))
    lettered = {
        letter: " ".join(text.split()) for letter, text in zip(options.lettered, options.bare, strict=True)
    }
    if not all(lettered.values()):
        raise Misfit(f"an option of {[*lettered.values()]!r:.80} is empty", name="empty_option")
    if repeats := [text for text, times in Counter(lettered.values()).items() if times > 1]:
        raise Misfit(f"two options say {repeats[0]!r:.60}", name="same_options")
    letter = [*lettered][keys.place(read_key(row, config.answer), options)]
    stem = "\n\n".join(filter(None, [parts[0], without_options(question, options)]))
    return Instruction(stem, lettered, letter)


def _text(value: Any, column: str | None) -> str:
    """A column's text, trimmed; empty where nothing is in it. Raises Misfit for what is no text."""
    return "" if value is None else check_text(value, f"column {column!r}").strip()


def sample_sets(read: Callable[[], Iterable[Row]], config: Sample, counts: Counter[str]) -> Iterator[Row]:
    """The drawn records, in the order of the input; a set that has fewer than asked gives all.

    A record is drawn by its own id, whatever else there is. Memory holds a number for each drawn record.

    Args:
        read: opens the records; the same ones at each call.
        counts: gains the records by set, and SET_short (how many a set lacks to its size).
    """
    number = lambda row: seeded_number(config.seed, "sample", name_of(row))
    heaps: dict[str, list[int]] = {name: [] for name, size in config.sizes.items() if size}
    for row in read():
        if (heap := heaps.get(set_of(row))) is not None:
            push = heapq.heappush if len(heap) < config.sizes[set_of(row)] else heapq.heappushpop
            push(heap, -number(row))
    drawn = {name: {-drawn for drawn in heap} for name, heap in heaps.items()}
    for row in read():
        if number(row) in drawn.get(set_of(row), ()):
            counts[set_of(row)] += 1
            yield row
    counts.update({f"{name}_short": size - counts[name] for name, size in config.sizes.items()})
