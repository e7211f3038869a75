"""Rows to chat turns: the roles and texts that data sets use, and what becomes of rows that don't fit."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ultramed_rl.config.base import shorten
from ultramed_rl.data.files import Row, SourceError, file_form
from ultramed_rl.data.sources import read_placed_rows
from ultramed_rl.data.transcripts import PRINTED, parse_printed, read_transcript, rendered_mark
from ultramed_rl.records import Message

T = TypeVar("T")
Placed = Iterator[tuple[str, Row]]  # rows, each after where it stands
MISFITS_ALLOWED = 0.05  # share of a source's rows; above it the source is misread rather than dirty
LONGEST_TEXT = 1_000_000  # characters of one text in a row: tokenizers take seconds for more, then minutes
_NAMES = {
    "user": "user human prompter client",
    "assistant": "assistant gpt ai bot model chatgpt bard bing",
    "system": "system developer",
}
ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
REASONING = "reasoning_content reasoning thinking thinking_content thought thoughts complex_cot cot"
# What a turn may hold beside its text that nobody here can learn or show.
_HELD = (
    *("tool_calls", "function_call", "images", "audio", *REASONING.split()),
    *("mask", "masked", "train_detail"),  # whether 1 is learnt or left out isn't known; parts of a turn
)
# 0 or false: not to be learnt.
_WEIGHTS = ("weight", "loss_weight", "loss_scale", "loss_mask", "train", "training", "trainable", "loss")
_READ = {"role", "from", "content", "value", *_WEIGHTS}
_YES, _NO = "true 1 1.0 yes t y chosen desirable good", "false 0 0.0 no f n rejected undesirable bad"
_FLAGS = {**dict.fromkeys(_YES.split(), True), **dict.fromkeys(_NO.split(), False)}
_NO_WIDTH = "\u200b\u2060\ufeff"
_PICTURE = re.compile(
    r"<image(_\d+|_placeholder)?>|<ImageHere>|<(video|audio)>(?!.*</(video|audio)>)|(?i:<\|(image|vision|video|audio)\w*\|>)",
    re.DOTALL,
)
_TEXT_PARTS = ("text", "input_text", "output_text")
logger = logging.getLogger(__name__)


class Misfit(ValueError):
    """A row that doesn't fit its source's type: why, and under which name such rows are counted.

    `column` is set where the row lacks that column.
    """

    def __init__(self, reason: str, *, name: str = "column", column: str | None = None) -> None:
        super().__init__(reason)
        self.name = name
        self.column = column


# -- turns -------------------------------------------------------------------------------------------------


def read_turns(row: Row, column: str, text_role: str | None = None) -> list[Message]:
    """The row's turns, trimmed and with the chat templates' role names.

    A row without `messages` may hold them under `conversations`, as ShareGPT and UltraMedical do; one turn may stand
    alone, a list of turns may be a JSON string, and a text hh-rlhf's transcript ("Human: ...", a blank line, "Assistant: ..."),
    whose turns it is, an empty last one apart. With `text_role` another text is one turn of that role. An empty system message
    is none.

    Raises:
        Misfit: no such column, not a list of turns, a role that is none of ROLES (as a tool's), a turn without text or
            with more than text, or one that is a chat that a template has rendered.
    """
    turns = _listed(row, column, text_role)
    messages = [_message(turn) for turn in turns]
    for turn in turns:
        if len(turn) > 2 and isinstance(row, NotedRow):
            beside = {name for name, value in turn.items() if value not in (None, "", [])} - _READ
            row.beside.update(f"{column}.{name}" for name in beside)
    return messages


def unlearnt_turns(row: Row, column: str, text_role: str | None = None) -> frozenset[int]:
    """The places of those turns that the data keeps from being learnt, by `weight: 0`, `train: false` and their like."""
    held = row.get(column)
    if isinstance(held, str) and not held.lstrip().startswith(("[", "{")):
        return frozenset()  # a text has none, and most rows hold texts: its turns aren't looked for again
    turns = enumerate(_listed(row, column, text_role))  # read before, so each is a dict
    return frozenset(place for place, turn in turns if len(turn) > 2 and not _is_learnt(turn))


def _is_learnt(turn: Row) -> bool:
    values = [turn[name] for name in _WEIGHTS if turn.get(name) is not None]
    flags = [*map(as_flag, values)]
    if None in flags:
        value = values[flags.index(None)]
        raise Misfit(f"a turn has weight {value!r:.40}; 0 and 1 are the ones that are read", name="weight")
    return all(flags)


def as_flag(value: Any) -> bool | None:
    """Yes or no as JSON, tables of texts and numbers say it; None for any other value."""
    return _FLAGS.get(str(value).strip().casefold())


def _listed(row: Row, column: str, text_role: str | None) -> list[Any]:
    """A column's turns as they stand there."""
    if column == "messages" and row.get(column) is None and "conversations" in row:
        column = "conversations"
    turns = read_column(row, column)
    if isinstance(turns, str) and PRINTED.match(turns):
        parsed = parse_printed(turns)
        if parsed is None:
            raise Misfit(
                f"column {column!r} holds {turns!r:.40}, turns that are no JSON; write them as JSON",
                name="turn",
            )
        turns = parsed
    elif isinstance(turns, str):
        whole = turns if text_role is None else [{"role": text_role, "content": turns}]
        turns = read_transcript(turns, text_role or "user") or whole
    if isinstance(turns, dict) and {"role", "from"} & turns.keys():
        turns = [turns]
    if not isinstance(turns, list):
        raise Misfit(f"column {column!r} holds a {type(turns).__name__}, not a list of turns", name="turn")
    turns = _unpaired(turns)
    return turns[1:] if len(turns) > 1 and _is_empty_system(turns[0]) else turns


def _unpaired(turns: list[Any]) -> list[Any]:
    """The turns of pairs of what is said and replied, as histories are, or of {input, output}; those of pairs of a role and its
    text; others as they are."""
    if isinstance(first := next(iter(turns), None), dict) and not {"input", "output"} <= first.keys():
        return turns
    pairs = [[turn.get("input"), turn.get("output")] if isinstance(turn, dict) else turn for turn in turns]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return turns
    if any(isinstance(pair[0], str) and pair[0].casefold() in ROLES for pair in pairs):
        return [{"role": role, "content": text} for role, text in pairs]
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _is_empty_system(turn: Any) -> bool:
    if (
        not isinstance(turn, dict)
        or ROLES.get(str(turn.get("role") or turn.get("from")).casefold()) != "system"
    ):
        return False
    return not any(turn.get(name) and str(turn[name]).strip() for name in ("content", "value"))


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Misfit(f"a turn is a {type(turn).__name__}, not role and content", name="turn")
    if (role := turn.get("role")) is None:  # a table has null under the names of other rows
        role = turn.get("from")
    if (content := turn.get("content")) is None:
        content = turn.get("value")
    named = ROLES.get(role.casefold()) if isinstance(role, str) else None
    if named is not None and isinstance(content, list | dict):
        content = "".join(map(_part, content if isinstance(content, list) else [content]))
    if len(turn) > 2 and (beside := [name for name in _HELD if turn.get(name)]):
        raise Misfit(f"a turn of role {role!r:.40} holds {beside[0]!r}, which isn't read", name="part")
    if named is None or not isinstance(content, str):
        raise Misfit(
            f"a turn has role {role!r:.40} and {type(content).__name__} content; "
            f"it needs text, and a role out of {', '.join(ROLES)}",
            name="turn",
        )
    if not (text := content.strip().strip(_NO_WIDTH)):
        raise Misfit(f"a turn of role {role!r} is empty", name="empty")
    return {"role": named, "content": check_plain(check_text(text, f"a turn of role '{role}'", name="turn"))}


def _part(part: Any) -> str:
    """The text of a part of a turn."""
    if isinstance(part, str):
        return part
    if (
        isinstance(part, dict)
        and part.get("type", "text") in _TEXT_PARTS
        and isinstance(part.get("text"), str)
    ):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise Misfit(f"a turn has a part of type {kind!r:.40}; only text is read", name="part")


def read_column(row: Row, column: str) -> Any:
    """The row's value. Raises Misfit where it has no such column."""
    if column not in row:
        raise Misfit(f"no column {column!r}", column=column)
    return row[column]


def check_order(messages: Sequence[Message], last: str) -> None:
    """Raise Misfit unless user and assistant alternate, after an optional system message, up to role `last`."""
    roles = [m["role"] for m in messages]
    start = int(roles[:1] == ["system"])
    for place, role in enumerate(roles[start:]):
        expected = ("user", "assistant")[place % 2]
        if role != expected:
            raise Misfit(f"turn {start + place + 1} is of role {role!r}, not {expected!r}", name="order")
    if roles[start:][-1:] != [last]:
        raise Misfit(f"it doesn't end with a turn of role {last!r}", name="order")


def check_plain(text: str) -> str:
    """The text. Raises Misfit where it is a chat that was rendered, or stands for a picture."""
    if picture := _PICTURE.search(text):
        raise Misfit(
            f"a text holds {picture[0]!r:.40}, in the place of a picture or sound; only text is read",
            name="part",
        )
    if mark := rendered_mark(text):
        raise Misfit(
            f"a text holds {mark!r:.40}: it is a chat that was rendered before; give its turns",
            name="rendered",
        )
    return text


def check_text(text: Any, what: str, *, name: str = "column") -> str:
    """The text, as it is.

    Raises:
        Misfit: it is something else, has more than LONGEST_TEXT characters, or half of a surrogate pair, which JSON can escape and no
            tokenizer and no file takes; `what` holds it.
    """
    if not isinstance(text, str):
        raise Misfit(f"{what} holds {text!r:.40}, not text", name=name)
    if len(text) > LONGEST_TEXT:
        raise Misfit(f"{what} holds {len(text):,} characters, over {LONGEST_TEXT:,}", name=name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Misfit(f"{what} holds half of a surrogate pair", name=name) from None
    return text


# -- rows that fit -----------------------------------------------------------------------------------------


@lru_cache(1024)
def _meant(names: tuple[str, ...], columns: str) -> list[str]:
    """Those of a row's columns that are meant, compared without case, with - and blanks as _."""
    own = {name.casefold().replace("-", "_").replace(" ", "_"): name for name in names}
    return [own[name] for name in columns.split() if name in own]


class NotedRow(dict[str, Any]):
    """A row that notes which of its columns are read."""

    def __init__(self, row: Row, ignored: Sequence[str] = ()) -> None:
        super().__init__(row)
        for name in ignored:
            self.pop(name, None)
        self.read: set[str] = set()
        self.beside: set[str] = set()  # what its turns hold that isn't read
        self._names = tuple(self)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def find(self, columns: str) -> str | None:
        """The row's own name of the first of these columns that it has something in."""
        return next(self.find_all(columns), None)

    def find_all(self, columns: str) -> Iterator[str]:
        """The row's own names of all of these columns that it has something in, in this order."""
        # A source's rows have the same columns: which of them are meant is looked up once.
        return (name for name in _meant(self._names, columns) if dict.get(self, name) is not None)

    def has(self, columns: str) -> bool:
        """Whether the row has one of these columns, perhaps with nothing in it."""
        return bool(_meant(self._names, columns))

    @property
    def unread(self) -> list[str]:
        """The columns, and names in turns, that hold something and were not read."""
        names = [n for n, value in self.items() if n not in self.read and value not in (None, "", [])]
        return [*names, *sorted(self.beside)] if self.beside else names


@dataclass
class SourceNotes:
    """What is noted of a source's rows as they are read."""

    rows: int = 0
    misfits: Counter[str] = field(default_factory=Counter)  # by reason
    examples: dict[str, str] = field(default_factory=dict)  # by reason, the first: its row, and why
    unread: Counter[str] = field(default_factory=Counter)  # rows by column that held what nobody reads


@dataclass(frozen=True)
class FittingRows:
    """One source's rows as they are read; those of them that don't fit are counted by reason, and refused past a limit."""

    uri: str
    limit: int | None
    allowed: float  # the share of rows that may be misfits
    unfit: str  # what a misfit does or is: "are no conversations"
    fix: str  # what to do about more of them
    counts: Counter[str]  # gains rows, misfit and, by reason, misfit_NAME
    ignored: Sequence[str] | None = None  # columns that aren't looked at; None: nobody is told of unread ones
    notes: SourceNotes | None = None  # gains what is noted; None: a warning says it

    @classmethod
    def of(
        cls, source: Any, unfit: str, fix: str, counts: Counter[str], notes: SourceNotes | None = None
    ) -> FittingRows:
        """Those of a config's source."""
        allowed = getattr(source, "max_misfit_share", MISFITS_ALLOWED)
        return cls(source.uri, source.limit, allowed, unfit, fix, counts, source.ignore, notes)

    def parse(
        self, parse: Callable[[NotedRow], T | None], gather: Callable[[Placed], Placed] = iter
    ) -> Iterator[T]:
        """What `parse` makes of each row, in file order. It raises Misfit, and gives None to leave a row out. `gather`
        makes one row of several (see `gathered`), which then count as one.

        Raises:
            ValueError: an unreadable source; at its end, more misfits than allowed, or nothing else.
        """
        self.counts.update(rows=0, misfit=0)
        notes, columns = self.notes or SourceNotes(), ""
        missing: set[str | None] = set()
        for place, row in gather(read_placed_rows(self.uri, self.limit)):
            notes.rows += 1
            self.counts["rows"] += 1
            noted = NotedRow(row, self.ignored or ())
            try:
                parsed = parse(noted)
            except Misfit as misfit:
                self.counts.update({"misfit": 1, f"misfit_{misfit.name}": 1})
                notes.misfits[misfit.name] += 1
                missing.add(misfit.column)
                notes.examples.setdefault(misfit.name, f"{place}: {misfit}")
                columns = columns or shorten(", ".join(row), 200)
                continue
            if self.ignored is not None and (unread := noted.unread):
                notes.unread.update(unread)
            if parsed is not None:
                yield parsed
        rows, misfits, first = notes.rows, notes.misfits.total(), next(iter(notes.examples.values()), "")
        is_table = file_form(Path(self.uri))[0] in (".csv", ".tsv")
        fix = f"{self.fix}; a table's first line names its columns" if is_table else self.fix
        if misfits == rows and len(missing) == 1 and None not in missing:
            raise SourceError(
                f"source {self.uri!r}: no row has a column {missing.pop()!r}; its columns are {columns}: {fix}"
            )
        if misfits and (misfits == rows or misfits > self.allowed * rows):
            named = ", ".join(f"{count} {name}" for name, count in notes.misfits.items())
            raise SourceError(
                f"source {self.uri!r}: {misfits} of {rows} rows {self.unfit} ({named}; {first}); "
                f"at most {100 * self.allowed:.3g}% may, and not all: {fix}"
            )
        if self.notes is not None:
            return
        if misfits:
            logger.warning("source %s: skipped %d of %d rows (%s)", self.uri, misfits, rows, first)
        if notes.unread:
            named = ", ".join(f"{name} ({count} rows)" for name, count in notes.unread.items())
            logger.warning("source %s: columns that are not read: %s", self.uri, named)
