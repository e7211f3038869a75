"""Numbers and tables as people read them, in a terminal and in reports. A table is its columns, each a heading and the format of
a row's cell, so that a new column is one line; the tables of rounds, policies and subsets are here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

DASH = "–"
Metrics = dict[str, float]
Columns = Sequence[tuple[str, str]]

ROUNDS: Columns = [
    ("round", "{round:.0f}"),
    ("pairs", "{pairs:.0f}"),
    ("margin", "{margin_mean:.2f}"),
    ("loss", "{loss_first:.3f}>{loss_last:.3f}"),
    ("acc", "{implicit_accuracy:.2f}"),
    ("KL", "{kl_to_reference:.2f}"),
    ("reward", "{reward_mean:.2f}"),
    ("held-out", "{eval_reward_mean:.2f}"),
    ("vs start (95 %)", "{eval_change:+.2f} [{eval_change_low:+.2f}, {eval_change_high:+.2f}]"),
    ("wins", "{eval_win_rate:.2f}"),
    ("tokens", "{eval_length_mean:.0f}"),
    ("ended", "{eval_finished_share:.2f}"),
    ("sync s", "{sync_seconds:.1f}"),
    ("s", "{seconds:.0f}"),
]
_JUDGED = re.compile(r"judge_(.+)_change")
_POLICIES: Columns = [
    ("policy", "{name}"),
    ("reward", "{reward_mean:.2f}"),
    ("vs first (95 %)", "{change:+.2f} [{change_low:+.2f}, {change_high:+.2f}]"),
    ("wins", "{win_rate:.2f}"),
    ("tokens", "{length_mean:.0f}"),
    ("ended", "{finished_share:.2f}"),
]
_SUBSETS: Columns = [
    ("subset", "{name}"),
    ("accuracy", "{accuracy:.2%}"),
    ("95 %", "[{low:.1%}, {high:.1%}]"),
    ("by length", "{length_accuracy:.1%}"),
    ("pairs", "{pairs:.0f}"),
    ("ties", "{ties:.0f}"),
    ("not finite", "{non_finite:.0f}"),
    ("too long", "{too_long:.0f}"),
    ("without", "{missing}"),
]


def render_rounds(rows: Sequence[Metrics]) -> str:
    """Rounds as a table of plain text. `reward` is of the round's samples, the next columns are held out; of judges the
    95 % interval of the change from the start."""
    return render_table([*ROUNDS[:-2], *_judges(rows), *ROUNDS[-2:]], rows)


def render_comparison(policies: Mapping[str, Metrics]) -> str:
    """Policies on the same held-out prompts, each against the first; judges as of rounds."""
    rows = [{"name": name, **metrics} for name, metrics in policies.items()]
    return render_table([*_POLICIES, *_judges(list(policies.values()))], rows)


def _judges(rows: Sequence[Metrics]) -> Columns:
    names = [match[1] for row in rows for key in row if (match := _JUDGED.fullmatch(key))]
    return [
        (name, f"[{{judge_{name}_change_low:+.2f}}, {{judge_{name}_change_high:+.2f}}]")
        for name in dict.fromkeys(names)
    ]


def render_subsets(rows: Sequence[Mapping[str, Any]]) -> str:
    """A reward model's accuracy by subset, and the averages under them."""
    return render_table(_SUBSETS, rows)


def render_table(columns: Columns, rows: Iterable[Any]) -> str:
    """Rows as plain text."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for cells in table_cells(rows, columns, "-"):
        table.add_row(*cells)
    console = Console(width=400, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def table_cells(rows: Iterable[Any], columns: Columns, dash: str = DASH) -> list[list[str]]:
    """The cells of each row; a dash for a number that isn't finite, and for all of a cell where the row lacks what it names."""
    formats = _Cells(dash)
    return [[formats.cell(form, row) for _, form in columns] for row in rows]


class _Cells(Formatter):
    """Formats a row, which is a mapping, a sequence or an object: `{key}`, `{0}`, `{attribute.key:.2f}`."""

    def __init__(self, dash: str) -> None:
        self.dash = dash

    def cell(self, form: str, row: Any) -> str:
        try:
            return self.vformat(form, (), row)
        except KeyError:
            return self.dash

    def get_field(self, field_name: str, args: Any, row: Any) -> Any:
        value = row
        for part in field_name.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            else:
                value = value[int(part)] if part.isdigit() else getattr(value, part)
            if value is None:
                raise KeyError(field_name)
        return value, field_name

    def format_field(self, value: Any, form: str) -> str:
        return number(value, form) if is_known(value) else self.dash


def numbered_columns(headings: Iterable[str], first: int = 0, form: str = "") -> list[tuple[str, str]]:
    """A column for each heading, of rows that have its cells in order from place `first` on."""
    return [(heading, f"{{{place}:{form}}}") for place, heading in enumerate(headings, first)]


def is_known(value: Any) -> bool:
    """Whether there is something to show: neither None nor a number that isn't finite."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def number(value: Any, form: str = ".3g") -> str:
    """A number, or an interval, in a format, or a dash where there is none. `time`: seconds, and `words`: a metric's name, as
    people say them."""
    if not is_known(value):
        return DASH
    if form == "time":
        return duration(value)
    return spoken(value) if form == "words" else format(value, form)


def stars(p_value: float | None) -> str:
    return "" if p_value is None else "*" * sum(p_value < bound for bound in (0.05, 0.01, 0.001))


def duration(seconds: float) -> str:
    """Seconds as people say them: 5.0 s, 45 s, 7 min 05 s, 3 h 20 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if rounded < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def spoken(name: str) -> str:
    return name.replace("_", " ")
