"""A benchmark's items, how a task asks them, other orders of their options, and what an answer was read as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import factorial
from random import Random
from string import ascii_uppercase
from typing import Any, Literal

from ultramed_rl.learning.seeds import derive_seed

Row = Mapping[str, Any]
Form = Literal["choice", "factoid", "list", "statements"]
Problem = Literal["", "none", "contradiction", "truncated"]
INSTRUCTION = (
    'Think step by step, and end with the sentence "So, the answer is X.", where X is the letter of the '
    "right option."
)


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
class AnswerReading:
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


def ask_choice(item: Item) -> str:
    """The chat form: context, stem, lines "A. ...", and how to answer (as UltraMedical's answers end)."""
    options = "\n".join(f"{letter}. {' '.join(text.split())}" for letter, text in item.lettered.items())
    return join_parts(item.context, item.question, options, INSTRUCTION)


def join_parts(*parts: str) -> str:
    """The parts that say something, with a blank line between them."""
    return "\n\n".join(part.strip() for part in parts if part.strip())


def reorder(item: Item, order: Sequence[int]) -> Item:
    """The same question with its options in another order; place i gets the option of place `order[i]`.

    The key moves with its option. The id stays: it is the question's.
    """
    assert sorted(order) == list(range(len(item.options))), order
    answer = ascii_uppercase[list(order).index(ascii_uppercase.index(item.answer))]
    return replace(item, options=tuple(item.options[place] for place in order), answer=answer)


def shuffled_orders(item_id: str, options: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """The given order first, then `count` other orders of so many options, all different.

    The same for the same arguments everywhere. Fewer where there are not so many: of two options only one.
    """
    draw = Random(derive_seed("orders", seed, item_id, options))
    given = tuple(range(options))
    if count >= factorial(options) - 1:
        others = list(permutations(given))[1:]
        draw.shuffle(others)
        return [given, *others]
    orders = {given: None}
    while len(orders) <= count:
        orders[tuple(draw.sample(given, options))] = None
    return list(orders)
