"""Who is who among rows, how often each is used, and which are held out: by short keys, so that millions fit in memory,
and by hashes, so that file order is no matter."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Sequence

from ultramed_rl.data.chats import check_text
from ultramed_rl.data.likeness import normalise_text
from ultramed_rl.data.sources import Row
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Message

_NUMBERS = 2**64  # how many values `seeded_number` has


def content_key(messages: Sequence[Message], more: Sequence[object] = ()) -> str:
    """16 hexadecimal digits that stand for roles and texts, and for `more` where there is any."""
    # Lengths tell where each ends.
    turns = [f"{m['role']} {len(m['content'])} {m['content']}" for m in messages]
    return _digest("\n".join([*turns, json.dumps(more)] if more else turns))


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
    for name in columns:
        if (own := row.get(name)) not in (None, ""):
            return check_text(str(own), "its id", name="id")
    return ""


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


def mixture_copies(weight: float, key: str, seed: int) -> int:
    """How often a row of a source of this weight is used: 0.5 every other row, 2.25 each twice or thrice.

    The row's own `key` decides on the broken part, so that a higher weight uses every row of a lower one.
    """
    assert weight > 0, weight
    always = int(weight)
    return always + (seeded_number(seed, "mixture", key) < (weight - always) * _NUMBERS)


def choose_held_out(keys: Iterable[str], count: int, seed: int) -> set[str]:
    """`count` of the different keys; each one's own hash decides. Keys may come any number of times.

    Memory holds the chosen ones only.

    Raises:
        ValueError: no other key would be left to train on.
    """
    assert count >= 0, count
    chosen: set[str] = set()
    heap: list[tuple[int, str]] = []  # the chosen ones, the one to give way first
    spare = False
    for key in keys:
        if key in chosen:
            continue
        heapq.heappush(heap, (-seeded_number(seed, "held out", key), key))
        chosen.add(key)
        if len(heap) > count:
            chosen.remove(heapq.heappop(heap)[1])
            spare = True
    if not spare:
        raise ValueError(
            f"data.held_out={count} leaves none of {len(chosen)} prompts to train on; lower it or add sources"
        )
    return chosen
