"""A benchmark's items, how a task asks them, and what an answer was read as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

Row = Mapping[str, Any]
Form = Literal["choice", "factoid", "list", "statements"]
Problem = Literal["", "none", "contradiction", "truncated"]


@dataclass(frozen=True)
class Item:
    """One question.

    Of a choice, `options` are the texts in their order and `answer` is the right one's letter. Of a
    factoid or a list, `expected` holds one tuple per wanted entity: the names that are accepted for it. Of
    statements (K-QA), `required` must be in an answer and `optional` may be.
    """

    item_id: str
    question: str
    options: tuple[str, ...] = ()
    answer: str = ""
    context: str = ""
    subject: str = ""
    expected: tuple[tuple[str, ...], ...] = ()
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def lettered(self) -> dict[str, str]:
        """The options by letter: A, B, C, ..."""
        return dict(zip(ascii_uppercase, self.options, strict=False))


@dataclass(frozen=True)
class Continuations:
    """A choice as a likelihood question: `context`, and after it one text per option, in the item's order."""

    context: str
    endings: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What an answer's text was read as: a letter, or names; none of them with the reason in `problem`."""

    given: tuple[str, ...]
    problem: Problem = ""


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        uris: where its rows are by default, on the hub.
        offline: where they are in an installed package, or nothing.
        read: a row's item, or None for a row of another subject; raises `Misfit` for one that doesn't fit.
        ask: the user message that asks for an answer with its reasoning.
        continuations: the choice as lm-evaluation-harness asks it, or None where there is nothing to choose.
        shuffles: whether the order of options carries no meaning, so that it may be changed.
        columns: the subjects that count singly in the paper's average; none where the task is one column.
        subject_files: whether each of several files is named after its rows' subject, where these hold none.
        drops_repeats: whether an item without a subject is dropped where it repeats an earlier one.
    """

    name: str
    uris: tuple[str, ...]
    read: Callable[[Row], Item | None]
    ask: Callable[[Item], str]
    form: Form = "choice"
    continuations: Callable[[Item], Continuations] | None = None
    shuffles: bool = False
    columns: tuple[str, ...] = ()
    subject_files: bool = False
    drops_repeats: bool = False
    offline: str = ""
