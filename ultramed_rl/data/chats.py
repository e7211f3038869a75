"""Rows to chat turns: the role names that data sets use, and what becomes of rows that don't fit."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ultramed_rl.config.base import shorten
from ultramed_rl.data.files import Row, SourceError
from ultramed_rl.data.sources import read_placed_rows
from ultramed_rl.records import Message

T = TypeVar("T")
MISFITS_ALLOWED = 0.05  # share of a source's rows; above it the source is misread rather than dirty
LONGEST_TEXT = 1_000_000  # characters of one text in a row: tokenizers take seconds for more, then minutes
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
# How the chats of one family or another begin once a template has rendered them.
_RENDERED = re.compile(
    r"\s*(<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>|<BOS_TOKEN>)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|<\|START_OF_TURN_TOKEN\|>|<\|start\|>|\[INST\]"
    r"|<\|(system|user|assistant)\|>|<｜(User|Assistant)｜>)"
)
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

    A row without `messages` may hold them under `conversations`, as ShareGPT and UltraMedical do. With `text_role` a
    plain text is one turn of that role.

    Raises:
        Misfit: no such column, not a list of turns, an unknown role, a turn without text, or one that is a chat
            that a template has rendered.
    """
    if column == "messages" and row.get(column) is None and "conversations" in row:
        column = "conversations"
    turns = read_column(row, column)
    if text_role is not None and isinstance(turns, str):
        turns = [{"role": text_role, "content": turns}]
    if not isinstance(turns, list):
        raise Misfit(f"column {column!r} holds a {type(turns).__name__}, not a list of turns", name="turn")
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Misfit(f"a turn is a {type(turn).__name__}, not role and content", name="turn")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
        raise Misfit(
            f"a turn has role {role!r:.40} and {type(content).__name__} content; "
            f"it needs text, and a role out of {', '.join(ROLES)}",
            name="turn",
        )
    if not content.strip():
        raise Misfit(f"a turn of role {role!r} is empty", name="empty")
    check_text(content, f"a turn of role {role!r}", name="turn")
    return Message(role=ROLES[role], content=check_plain(content.strip()))


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
    """The text. Raises Misfit where it is a chat that a template has rendered: a template would render it again."""
    if rendered := _RENDERED.match(text):
        raise Misfit(
            f"a text begins with {rendered[0].strip()!r}: it is a chat that was rendered before; give its turns",
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


@dataclass(frozen=True)
class FittingRows:
    """One source's rows as they are read; those of them that don't fit are counted by reason, and refused past a limit."""

    uri: str
    limit: int | None
    allowed: float  # the share of rows that may be misfits
    unfit: str  # what a misfit does or is: "are no conversations"
    fix: str  # what to do about more of them
    counts: Counter[str]  # gains rows, misfit and, by reason, misfit_NAME
    quiet: bool = False  # the source was read before, so that a warning would be its second

    def parse(self, parse: Callable[[Row], T | None]) -> Iterator[T]:
        """What `parse` makes of each row, in file order. It raises Misfit, and gives None to leave a row out.

        Raises:
            ValueError: an unreadable source; at its end, more misfits than allowed, or nothing else.
        """
        self.counts.update(rows=0, misfit=0)
        rows, first, columns = 0, "", ""
        reasons: Counter[str] = Counter()
        missing: set[str | None] = set()
        for place, row in read_placed_rows(self.uri, self.limit):
            rows += 1
            self.counts["rows"] += 1
            try:
                parsed = parse(row)
            except Misfit as misfit:
                self.counts.update({"misfit": 1, f"misfit_{misfit.name}": 1})
                reasons[misfit.name] += 1
                missing.add(misfit.column)
                first, columns = first or f"{place}: {misfit}", shorten(", ".join(row), 200)
                continue
            if parsed is not None:
                yield parsed
        misfits = reasons.total()
        if misfits == rows and len(missing) == 1 and None not in missing:
            raise SourceError(
                f"source {self.uri!r}: no row has a column {missing.pop()!r}; its columns are {columns}: {self.fix}"
            )
        if misfits and (misfits == rows or misfits > self.allowed * rows):
            named = ", ".join(f"{count} {name}" for name, count in reasons.items())
            raise SourceError(
                f"source {self.uri!r}: {misfits} of {rows} rows {self.unfit} ({named}; {first}); "
                f"at most {100 * self.allowed:.3g}% may, and not all: {self.fix}"
            )
        if misfits and not self.quiet:
            logger.warning("source %s: skipped %d of %d rows (%s)", self.uri, misfits, rows, first)
