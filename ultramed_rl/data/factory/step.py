"""What a stage of the factory does with one record, as moves; who asks, keeps and resumes is the runner's business.

record --> start --> Ask --> reply --> go_on --> Ask --> ... --> Keep | Drop | Fail
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ultramed_rl.records import ChatReply, ChatRequest

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ask:
    """Ask a model next. `request.key` is free: the runner gives its own."""

    request: ChatRequest


@dataclass(frozen=True)
class Keep:
    """The record is done; what it became: one row, or several."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Drop:
    """The record is done and left out on purpose: below a threshold, not worth a question. Counted by reason."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """The record could not be done: it goes to the dead letters with the reason, a name and perhaps a detail."""

    reason: str
    detail: str = ""


Move = Ask | Keep | Drop | Fail


class Step(Protocol):
    """A stage's logic: pure, and the same for the same record and replies, so that a killed run goes on with it."""

    def start(self, row: Row) -> Move:
        """The first move for a record."""
        ...

    def go_on(self, row: Row, replies: Sequence[ChatReply]) -> Move:
        """The next move, given all replies to this record so far, oldest first. Replies without an error only:
        a request that could not be answered has made the record fail already."""
        ...
