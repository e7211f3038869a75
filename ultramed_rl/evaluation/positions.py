"""Position bias: does the place of an option decide whether it is chosen?

The same question is asked with its options in several orders. See Zheng et al. 2024 (arXiv 2309.03882) on
models that prefer a letter, and Pezeshkpour and Hruschka 2024 (arXiv 2308.11483) on answers that change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase


@dataclass(frozen=True)
class Ordered:
    """One answer to an item whose options stood in one order.

    Args:
        order: the original index of the option at each position: (2, 0, 1) shows the third option as A.
        letter: the position that was chosen, or None where no answer could be read.
        right_letter: the position of the right option.
    """

    item_id: str
    order: tuple[int, ...]
    letter: str | None
    right_letter: str

    @property
    def chosen_option(self) -> int | None:
        """The original index of the chosen option."""
        return None if self.letter is None else self.order[ascii_uppercase.index(self.letter)]

    @property
    def right_option(self) -> int:
        """The original index of the right option."""
        return self.order[ascii_uppercase.index(self.right_letter)]


@dataclass(frozen=True)
class PositionBias:
    """What a change of order does. All but `orders` are shares in 0..1.

    Args:
        orders: how many orders each item was asked in.
        accuracy: of right answers, over all orders.
        consistency: of items whose chosen option is the same in every order; one order without an answer that
            can be read makes an item inconsistent.
        always_right: of items that are right in every order.
        unread: of answers that could not be read.
        chosen: by letter, of the answers that were read.
        right: by letter, of the keys of all answers.
        bias: half the sum of |chosen - right| over letters (total variation distance): 0 where the letters are
            chosen as often as they are right; 0 also where no answer was read.
    """

    orders: int
    accuracy: float
    consistency: float
    always_right: float
    unread: float
    chosen: dict[str, float]
    right: dict[str, float]
    bias: float


def position_bias(answers: Sequence[Ordered]) -> PositionBias:
    """Position bias over items that were each asked in the same number of orders.

    Raises:
        ValueError: no answers, an order that is no permutation, a letter without an option, a key that is
            another option in another order, or unequal numbers of orders.
    """
    items = _by_item(answers)
    read = [answer.letter for answer in answers if answer.letter is not None]
    letters = ascii_uppercase[: max(len(answer.order) for answer in answers)]
    chosen = _shares(read, letters)
    right = _shares([answer.right_letter for answer in answers], letters)
    return PositionBias(
        orders=len(items[0]),
        accuracy=sum(_is_right(answer) for answer in answers) / len(answers),
        consistency=sum(_is_consistent(item) for item in items) / len(items),
        always_right=sum(all(map(_is_right, item)) for item in items) / len(items),
        unread=1 - len(read) / len(answers),
        chosen=chosen,
        right=right,
        bias=sum(abs(chosen[letter] - right[letter]) for letter in letters) / 2 if read else 0.0,
    )


def _is_right(answer: Ordered) -> bool:
    return answer.letter == answer.right_letter


def _is_consistent(item: Sequence[Ordered]) -> bool:
    chosen = {answer.chosen_option for answer in item}
    return len(chosen) == 1 and None not in chosen


def _shares(found: Sequence[str], letters: str) -> dict[str, float]:
    return {letter: found.count(letter) / max(len(found), 1) for letter in letters}


def _by_item(answers: Sequence[Ordered]) -> list[list[Ordered]]:
    """The checked answers of each item."""
    if not answers:
        raise ValueError("0 answers: position bias needs at least one")
    items: dict[str, list[Ordered]] = {}
    for answer in answers:
        _check(answer)
        items.setdefault(answer.item_id, []).append(answer)
    orders = len(items[answers[0].item_id])
    for item_id, item in items.items():
        if len(item) != orders:
            raise ValueError(
                f"{item_id}: {len(item)} orders, but {orders} of {answers[0].item_id}: ask every item in the "
                "same number of orders"
            )
        right = sorted({answer.right_option for answer in item})
        if len(right) > 1:
            raise ValueError(
                f"{item_id}: right_option={right}: must be one option in all orders; move the key with it"
            )
    return list(items.values())


def _check(answer: Ordered) -> None:
    if not answer.order or sorted(answer.order) != list(range(len(answer.order))):
        raise ValueError(f"{answer.item_id}: order={answer.order}: must hold each of 0, 1, ... once")
    letters = ascii_uppercase[: len(answer.order)]
    for letter in (answer.letter, answer.right_letter):
        if letter is not None and (len(letter) != 1 or letter not in letters):
            raise ValueError(
                f"{answer.item_id}: letter={letter!r}: must be one of {letters}; give None for an unread answer"
            )
