"""Who is who among rows: contents, prompts and ids, each as a short key, so that millions fit in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from ultramed_rl.data.chats import check_text
from ultramed_rl.data.prompts import normalise_text
from ultramed_rl.data.sources import Row
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Message


def content_key(messages: Sequence[Message], rest: Sequence[object] = ()) -> str:
    """16 hexadecimal digits that stand for roles and texts, and for `rest` where there is any."""
    turns = [[m["role"], m["content"]] for m in messages]
    return _digest(json.dumps([turns, *rest] if rest else turns))


def prompt_key(messages: Sequence[Message]) -> str:
    """16 hexadecimal digits that stand for what a chat is about: its first user turn, normalised.

    Splits are by this key. Follow-up turns don't count, because a chat and its own continuation would
    otherwise be in different splits and share an answer; nor do system messages.
    """
    first = next((m["content"] for m in messages if m["role"] == "user"), "")
    return _digest(normalise_text(first))


def row_id(row: Row, columns: Sequence[str]) -> str:
    """The row's own id as text, out of the first column that has one; empty where none has.

    Raises:
        Misfit: an id that cannot be written.
    """
    found = next((str(row[name]) for name in columns if row.get(name) not in (None, "")), "")
    return check_text(found, "its id", name="id")


class UniqueIds:
    """Gives every id once: where one is taken, the next are NAME~2, NAME~3, ... in the order of asking."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}  # by an id's number: the suffix given last

    def claim(self, wanted: str) -> str:
        """The id itself, or with a suffix if it was given before."""
        key = seeded_number(wanted)
        name, suffix = wanted, self._last.get(key, 0)
        while seeded_number(name) in self._last:
            suffix += 1
            name = f"{wanted}~{suffix}"
        self._last[key] = max(suffix, 1)
        self._last.setdefault(seeded_number(name), 1)
        return name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
