"""The table of sets (UltraMedical, arXiv 2406.03949, table 1): sizes, lengths and scores of any data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ultramed_rl.data.factory.report.facts import Facts, read_all_facts

TOTAL = "Total"
SET_COLUMNS = ("Set", "Original", "Instruction length", "Score", "Retained")
_MARKUP = re.compile(r"[|<]")  # what would end a cell or begin a tag
KIND_COLUMNS = ("Type", "Rows", "With answer", "Multiple choice", "Without score")


@dataclass(frozen=True)
class Spread:
    """Of `count` numbers the mean, and the sample standard deviation (divisor n - 1); None where undefined."""

    count: int
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class SetRow:
    """One line of the table.

    Args:
        original: how many there were before filtering, if known.
        length: words an instruction. score: 1 to 10, of the rows that have one.
    """

    name: str
    original: int | None
    retained: int
    length: Spread
    score: Spread
    answered: int
    choices: int


@dataclass(frozen=True)
class SetTable:
    """The sets by name, a line over all, a line for each type, and how many rows were left out, by why."""

    sets: tuple[SetRow, ...]
    total: SetRow
    kinds: tuple[SetRow, ...]
    misfits: Mapping[str, int]


@dataclass
class _Moments:
    """Mean and squared deviations of a stream (Welford, Technometrics 4:3, 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)

    def spread(self) -> Spread:
        sd = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else None
        return Spread(self.count, self.mean if self.count else None, sd)


@dataclass
class _Sums:
    rows: int = 0
    answered: int = 0
    choices: int = 0
    length: _Moments = field(default_factory=_Moments)
    score: _Moments = field(default_factory=_Moments)

    def add(self, facts: Facts) -> None:
        self.rows += 1
        self.answered += facts.answer_words is not None
        self.choices += facts.choice
        self.length.add(facts.words)
        if facts.score is not None:
            self.score.add(facts.score)

    def row(self, name: str, original: int | None = None) -> SetRow:
        length, score = self.length.spread(), self.score.spread()
        return SetRow(name, original, self.rows, length, score, self.answered, self.choices)


def count_sets(rows: Iterable[Any], originals: Mapping[str, int] | None = None) -> SetTable:
    """The table over rows, in one pass; memory holds a few numbers a set. Rows that don't fit are counted.

    Args:
        originals: rows before filtering, by set. A set that has none left has its line too.
    """
    originals = originals or {}
    misfits: Counter[str] = Counter()
    sets: dict[str, _Sums] = {name: _Sums() for name in originals}
    kinds: dict[str, _Sums] = {}
    total = _Sums()
    for facts in read_all_facts(rows, misfits):
        for sums in (sets.setdefault(facts.group, _Sums()), kinds.setdefault(facts.kind, _Sums()), total):
            sums.add(facts)
    known = sum(originals.values()) if originals and all(name in originals for name in sets) else None
    return SetTable(
        sets=tuple(sets[name].row(name, originals.get(name)) for name in sorted(sets)),
        total=total.row(TOTAL, known),
        kinds=tuple(kinds[name].row(name) for name in sorted(kinds)),
        misfits=dict(sorted(misfits.items())),
    )


def table_cells(table: SetTable) -> list[tuple[str, ...]]:
    """A line of text for each set and the total, in the order of `SET_COLUMNS`, which is the paper's."""
    return [
        (row.name, _count(row.original), _spread(row.length), _spread(row.score), _count(row.retained))
        for row in (*table.sets, table.total)
    ]


def kind_cells(table: SetTable) -> list[tuple[str, ...]]:
    """A line of text for each type and the total, in the order of `KIND_COLUMNS`."""
    return [
        (
            row.name,
            *(_count(n) for n in (row.retained, row.answered, row.choices, row.retained - row.score.count)),
        )
        for row in (*table.kinds, table.total)
    ]


def render_table(table: SetTable) -> str:
    """Both tables in Markdown, which reads as plain text too, and a line on the rows left out."""
    parts = [_markdown(SET_COLUMNS, table_cells(table)), _markdown(KIND_COLUMNS, kind_cells(table))]
    return "\n\n".join([*parts, misfit_line(table.misfits)]) + "\n"


def misfit_line(misfits: Mapping[str, int]) -> str:
    """How many rows were left out, and why."""
    if not misfits:
        return "All rows were counted."
    reasons = ", ".join(f"{name} {count:,}" for name, count in misfits.items())
    return f"Left out as no records: {sum(misfits.values()):,} ({reasons})."


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [columns, *([_MARKUP.sub(r"\\\g<0>", cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    lines = []
    for first, *rest in cells:
        padded = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(padded)} |")
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _spread(spread: Spread) -> str:
    if spread.mean is None:
        return "-"
    sd = "" if spread.sd is None else f" ± {spread.sd:.2f}"
    return f"{spread.mean:.2f}{sd}"
