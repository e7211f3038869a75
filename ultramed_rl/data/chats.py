"""Rows to chat turns: the role names that data sets use, and what makes a row unfit."""

from __future__ import annotations

import re
from typing import Any

from ultramed_rl.data.sources import Row
from ultramed_rl.records import Message

LONGEST_TEXT = 1_000_000  # characters of one text in a row: tokenizers take seconds for more, then minutes
# How the chats of one family or another begin once a template has rendered them.
_RENDERED = re.compile(
    r"\s*(<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>|<BOS_TOKEN>)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|<\|START_OF_TURN_TOKEN\|>|<\|start\|>|\[INST\]"
    r"|<\|(system|user|assistant)\|>|<｜(User|Assistant)｜>)"
)
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class Misfit(ValueError):
    """A row that doesn't fit its source's type: why, and under which name such rows are counted.

    `column` is set where the row lacks that column.
    """

    def __init__(self, reason: str, *, name: str = "column", column: str | None = None) -> None:
        super().__init__(reason)
        self.name = name
        self.column = column


def read_turns(row: Row, column: str) -> list[Message]:
    """The row's turns, trimmed and with the chat templates' role names.

    A row without `messages` may hold them under `conversations`, as ShareGPT and UltraMedical do.

    Raises:
        Misfit: no such column, not a list of turns, an unknown role, a turn without text, or one that is a chat
            that a template has rendered.
    """
    if column == "messages" and row.get(column) is None and "conversations" in row:
        column = "conversations"
    turns = read_column(row, column)
    if not isinstance(turns, list):
        raise Misfit(f"column {column!r} holds a {type(turns).__name__}, not a list of turns", name="turn")
    return [_message(turn) for turn in turns]


def read_column(row: Row, column: str) -> Any:
    """The row's value.

    Raises:
        Misfit: no such column.
    """
    if column not in row:
        raise Misfit(f"no column {column!r}", column=column)
    return row[column]


def check_plain(text: str) -> str:
    """The text. Raises Misfit where it is a chat that a template has rendered: a template would render it again."""
    if found := _RENDERED.match(text):
        raise Misfit(
            f"a text begins with {found[0].strip()!r}: it is a chat that was rendered before; give its turns",
            name="rendered",
        )
    return text


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


def check_text(text: str, what: str, *, name: str = "column") -> str:
    """The text, as it is.

    Raises:
        Misfit: it has more than LONGEST_TEXT characters, or half of a surrogate pair, which JSON can escape and no
            tokenizer and no file takes; `what` holds it.
    """
    if len(text) > LONGEST_TEXT:
        raise Misfit(f"{what} holds {len(text):,} characters, over {LONGEST_TEXT:,}", name=name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Misfit(f"{what} holds half of a surrogate pair", name=name) from None
    return text
