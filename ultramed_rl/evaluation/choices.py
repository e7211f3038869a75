"""What the tasks that offer options share: how a choice is asked, and other orders of its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from math import factorial
from random import Random
from string import ascii_uppercase

from ultramed_rl.evaluation.items import Item
from ultramed_rl.learning.seeds import derive_seed

INSTRUCTION = (
    'Think step by step, and end with the sentence "So, the answer is X.", where X is the letter of the '
    "right option."
)


def ask_choice(item: Item) -> str:
    """The chat form: context, stem, lines "A. ...", and how to answer (as UltraMedical's answers end)."""
    options = "\n".join(f"{letter}. {' '.join(text.split())}" for letter, text in item.lettered.items())
    return join_parts(item.context, item.question, options, INSTRUCTION)


def join_parts(*parts: str) -> str:
    """The parts that say something, with a blank line between them."""
    return "\n\n".join(part.strip() for part in parts if part.strip())


def list_options(item: Item) -> str:
    """The options as lm-evaluation-harness lists them: "A. ..." and a line break, for each."""
    return "".join(f"{letter}. {text}\n" for letter, text in item.lettered.items())


def letter_endings(item: Item) -> tuple[str, ...]:
    """The texts that may follow "Answer:", one per option: " A", " B", ..."""
    return tuple(f" {letter}" for letter in item.lettered)


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
