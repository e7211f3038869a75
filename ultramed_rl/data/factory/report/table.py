"""The table of sets (UltraMedical, arXiv 2406.03949, table 1): sizes, lengths and scores of any data.

rows --> facts, one a row --> columns, some 70 bytes a row --> lines of the table
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.instructions import question_turns, set_of, split_options
from ultramed_rl.data.factory.score import in_range, read_difficulty
from ultramed_rl.data.factory.step import Row
from ultramed_rl.tracking.page import clean_text
from ultramed_rl.tracking.tables import DASH, Columns, table_cells

OTHERS, UNNAMED, TOTAL = "(others)", "(unnamed)", "Total"
MOST_NAMES = 100  # ids that aren't UltraMedical's may have a new prefix in every row
_LONGEST_NAME = 60
_BLOCK = 4096  # rows
_MARKUP = re.compile(r"[|<]")  # what would end a cell or begin a tag
_SCHEMA = pa.schema(
    {
        "group": pa.string(),
        "kind": pa.string(),
        "words": pa.int64(),
        "answer_words": pa.int64(),
        "score": pa.float64(),
        "choice": pa.bool_(),
    }
)


class RowFacts(NamedTuple):
    """What the statistics need of one record."""

    id: str
    group: str  # the set that it belongs to
    kind: str
    question: str
    words: int  # separated by spaces, options included
    answer_words: int | None  # None without an answer
    score: float | None  # its difficulty, 1 to 10; None if it has none that can be read
    choice: bool  # whether it is multiple choice, with a key


def read_all_facts(rows: Iterable[Any], misfits: Counter[str]) -> Iterator[RowFacts]:
    """The facts of every row in turn; a row that doesn't fit is counted in `misfits` by its reason's name.

    After the first `MOST_NAMES` sets, rows of new ones go together, so that memory stays flat; so do types.
    """
    groups: set[str] = set()
    kinds: set[str] = set()
    for row in rows:
        try:
            facts = read_facts(row)
        except Misfit as misfit:
            misfits[misfit.name] += 1
            continue
        yield facts._replace(group=_kept(facts.group, groups), kind=_kept(facts.kind, kinds))


def _kept(name: str, names: set[str]) -> str:
    if len(names) < MOST_NAMES:
        names.add(name)
    return name if name in names else OTHERS


def read_facts(row: Any) -> RowFacts:
    """The facts of a row.

    Raises:
        Misfit: it isn't one question with at most one answer.
    """
    if not isinstance(row, Mapping):
        raise Misfit(f"a row is a {type(row).__name__}, not a record", name="row")
    question, *answers = question_turns(row)
    score = in_range(row.get("difficulty"))
    if score is None:
        said = row.get("score")
        score = read_difficulty(said) if isinstance(said, str) else in_range(said)
    return RowFacts(
        id=_name(row.get("id")),
        group=set_name(row),
        kind=_name(row.get("type")) or UNNAMED,
        question=question,
        words=len(question.split()),
        answer_words=len(answers[0].split()) if answers else None,
        score=score,
        choice=_name(row.get("answer")) in split_options(question)[1],
    )


def set_name(row: Row) -> str:
    """As `set_of` has it, fit to be shown."""
    return _name(set_of(row)) or UNNAMED


def _name(value: object) -> str:
    return "" if value is None else " ".join(clean_text(str(value)).split())[:_LONGEST_NAME]


def gather_facts(facts: Iterable[RowFacts]) -> pa.Table:
    """The facts of all rows as columns: group, kind, words, answer_words, score, choice."""
    stream = iter(facts)
    blocks = iter(lambda: [one._asdict() for one in islice(stream, _BLOCK)], [])
    return pa.Table.from_batches([pa.RecordBatch.from_pylist(block, _SCHEMA) for block in blocks], _SCHEMA)


@dataclass(frozen=True)
class Spread:
    """Of `count` numbers the mean, and the sample standard deviation (divisor n - 1); None where undefined."""

    count: int
    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Spread:
        """Of a column's numbers; nulls are none."""
        mean, sd = pc.mean(column), pc.stddev(column, ddof=1, min_count=2)
        return cls(pc.count(column).as_py(), mean.as_py(), sd.as_py())

    def __str__(self) -> str:
        if self.mean is None:
            return DASH
        return f"{self.mean:.2f}" if self.sd is None else f"{self.mean:.2f} ± {self.sd:.2f}"


@dataclass(frozen=True)
class SetRow:
    """One line of the table."""

    name: str
    original: int | None  # how many there were before filtering, if known
    retained: int
    length: Spread  # words an instruction
    score: Spread  # 1 to 10, of the rows that have one
    answered: int
    choices: int

    @property
    def unscored(self) -> int:
        return self.retained - self.score.count


@dataclass(frozen=True)
class SetTable:
    """The sets by name, a line over all, a line for each type, and how many rows were left out, by why."""

    sets: tuple[SetRow, ...]
    total: SetRow
    kinds: tuple[SetRow, ...]
    misfits: Mapping[str, int]


def count_sets(
    facts: pa.Table, misfits: Mapping[str, int] | None = None, originals: Mapping[str, int] | None = None
) -> SetTable:
    """The table over the columns of `gather_facts`.

    Args:
        originals: rows before filtering, by set. A set that has none left has its line too.
    """
    originals = originals or {}
    sets = sorted({*originals, *pc.unique(facts["group"]).to_pylist()})
    known = sum(originals.values()) if originals and originals.keys() >= set(sets) else None
    return SetTable(
        sets=tuple(_line(name, part_of(facts, "group", name), originals.get(name)) for name in sets),
        total=_line(TOTAL, facts, known),
        kinds=tuple(
            _line(name, part_of(facts, "kind", name)) for name in sorted(pc.unique(facts["kind"]).to_pylist())
        ),
        misfits=dict(sorted((misfits or {}).items())),
    )


def part_of(facts: pa.Table, column: str, name: str) -> pa.Table:
    """The rows whose set or type has this name."""
    return facts.filter(pc.equal(facts[column], name))


def _line(name: str, part: pa.Table, original: int | None = None) -> SetRow:
    answered = len(part) - part["answer_words"].null_count
    choices = pc.sum(part["choice"], min_count=0).as_py()
    length, score = Spread.of(part["words"]), Spread.of(part["score"])
    return SetRow(name, original, len(part), length, score, answered, choices)


# Columns of the two tables, as formats of a row's cell. The first table's are the paper's.
SET_COLUMNS = [
    ("Set", "{name}"),
    ("Original", "{original:,}"),
    ("Instruction length", "{length}"),
    ("Score", "{score}"),
    ("Retained", "{retained:,}"),
]
KIND_COLUMNS = [
    ("Type", "{name}"),
    ("Rows", "{retained:,}"),
    ("With answer", "{answered:,}"),
    ("Multiple choice", "{choices:,}"),
    ("Without score", "{unscored:,}"),
]


def render_table(table: SetTable) -> str:
    """The table by set and that by type in Markdown, which reads as plain text too, each with the total below, and a line on the
    rows left out."""
    by_set = _markdown([*table.sets, table.total], SET_COLUMNS)
    by_kind = _markdown([*table.kinds, table.total], KIND_COLUMNS)
    return "\n\n".join([by_set, by_kind, misfit_line(table.misfits)]) + "\n"


def misfit_line(misfits: Mapping[str, int]) -> str:
    """How many rows were left out, and why."""
    if not misfits:
        return "All rows were counted."
    reasons = ", ".join(f"{name} {count:,}" for name, count in misfits.items())
    return f"Left out as no records: {sum(misfits.values()):,} ({reasons})."


def _markdown(rows: Sequence[SetRow], columns: Columns) -> str:
    cells = [[_MARKUP.sub(r"\\\g<0>", cell) for cell in row] for row in table_cells(rows, columns)]
    lines = [[heading for heading, _ in columns], *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    head, *body = [[line[0].ljust(widths[0]), *right[1:]] for line, right in zip(lines, numbers, strict=True)]
    rule = [":".ljust(widths[0], "-"), *(":".rjust(width, "-") for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))
