"""Questions of any form to UltraMedical records: exam, literature and open-ended ones; and so many of each set."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import ascii_uppercase
from typing import Any

from ultramed_rl.config.factory import Records, Sample, Vignettes
from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.factory.instructions import Instruction, answered_row, new_row, set_of
from ultramed_rl.data.factory.step import Row, name_of, read_text
from ultramed_rl.data.vignettes import Vignette, read_vignette
from ultramed_rl.learning.seeds import seeded_number


def import_rows(rows: Iterable[Row], config: Records, counts: Counter[str]) -> Iterator[Row]:
    """Records of the rows that hold a question, in order.

    Args:
        counts: gains by reason the rows that gave none: no_question, no_options (fewer than two, or one of them
            empty or twice), no_key.
    """
    for number, row in enumerate(rows, start=1):
        try:
            instruction = _read_instruction(row, config)
        except Misfit as misfit:
            counts[misfit.name] += 1
            continue
        name = f"{config.name},{row[config.id] if config.id else number}"
        record = new_row(name, config.kind, instruction)
        reply = read_text(row.get(config.reply)) if config.reply else ""
        yield answered_row(record, reply) if reply else record


def import_vignettes(rows: Iterable[Row], config: Vignettes, counts: Counter[str]) -> Iterator[Row]:
    """As `import_rows`, of DrugSwap's rows; those left out are counted by `read_vignette`'s reasons."""
    for number, row in enumerate(rows, start=1):
        vignette = read_vignette(row)
        if isinstance(vignette, Vignette):
            question = Instruction(vignette.stem, vignette.options, vignette.letter)
            yield new_row(f"{config.name},{number}", "Exam", question)
        else:
            counts[vignette] += 1


def _read_instruction(row: Row, config: Records) -> Instruction:
    value = row.get(config.question)
    if isinstance(value, list):
        turns = read_turns(dict(row), config.question)
        value = next((turn["content"] for turn in turns if turn["role"] == "user"), "")
    if not (stem := read_text(value)):
        raise Misfit(f"nothing in column {config.question!r}", name="no_question")
    context = row.get(config.context) if config.context else None
    if isinstance(context, Mapping):  # PubMedQA's
        context = context.get("contexts")
    parts = map(read_text, context if isinstance(context, list) else [context])
    stem = "\n\n".join(filter(None, ["\n".join(filter(None, parts)), stem]))
    if config.answer is None:
        return Instruction(stem)
    columns = config.options or []
    values: Any = config.choices
    if not values:
        values = [row.get(one) for one in columns] if isinstance(columns, list) else row.get(columns) or []
    if isinstance(values, Mapping):
        values = [values[letter] for letter in sorted(values)]
    texts = [" ".join(read_text(value).split()) for value in values]
    if not 2 <= len(texts) <= len(ascii_uppercase) or not all(texts) or len(set(texts)) < len(texts):
        raise Misfit(f"its options are {texts!r:.80}", name="no_options")
    options = dict(zip(ascii_uppercase, texts, strict=False))
    return Instruction(stem, options, _key(row.get(config.answer), options))


def _key(value: Any, options: Mapping[str, str]) -> str:
    """The letter that `value` stands for: a letter, a place from 0, or an option's text."""
    letters = list(options)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
        return letters[value]
    text = " ".join(read_text(value).split())
    if text in options:
        return text
    same = [letter for letter, option in options.items() if option.casefold() == text.casefold()]
    if len(same) != 1:
        raise Misfit(f"its answer {value!r:.40} is none of its options", name="no_key")
    return same[0]


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
