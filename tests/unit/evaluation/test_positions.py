"""Position bias against tables by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.results import GradedAnswer, PositionBias, position_bias
from ultramed_rl.evaluation.suite import Question
from ultramed_rl.evaluation.tasks import TASKS


def ordered(item_id: str, order: tuple[int, ...], letter: str | None, right: str) -> GradedAnswer:
    """An answer to an item whose options stood in one order: (2, 0, 1) shows the third option as A."""
    item = Item(item_id, "Which?", tuple(f"option {place}" for place in order), right)
    asked = Question(TASKS["medqa"], item, 0, order)
    return GradedAnswer(asked, () if letter is None else (letter,), float(letter == right))


def cycled(item_id: str, key: int, letters: list[str | None]) -> list[GradedAnswer]:
    """One answer per rotation of as many options as there are letters; `key` is the right original option."""
    size = len(letters)
    orders = [tuple((k + shift) % size for k in range(size)) for shift in range(size)]
    return [
        ordered(item_id, order, letter, "ABCDEF"[order.index(key)])
        for order, letter in zip(orders, letters, strict=True)
    ]


def test_a_model_that_always_says_a_is_right_by_luck_alone() -> None:
    """Four rotations: the key stands once at each place, and A is chosen each time: 3/4 away from even."""
    shares = {"A": 0.25, "B": 0.25, "C": 0.25, "D": 0.25}
    assert position_bias(cycled("q", 2, ["A", "A", "A", "A"])) == PositionBias(
        orders=4,
        accuracy=0.25,
        consistency=0.0,
        always_right=0.0,
        unread=0.0,
        chosen={"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0},
        right=shares,
        bias=0.75,
    )


def test_a_model_that_follows_the_option_has_no_bias_even_if_it_is_wrong() -> None:
    """Original option 1 under rotations by 0, 1, 2 stands at B, A, C; the key, option 0, at A, C, B."""
    found = position_bias(cycled("q", 0, ["B", "A", "C"]))
    assert (found.accuracy, found.consistency, found.always_right) == (0.0, 1.0, 0.0)
    assert found.bias == pytest.approx(0.0)


def test_two_items_by_hand() -> None:
    """q1 (key: option 0, so A then B) is right twice; q2 (option 1: B then A) says B twice.

    Chosen: A, B, B, B. Keys: A, B, B, A. Half of |1/4 - 1/2| + |3/4 - 1/2| is 1/4.
    """
    found = position_bias([*cycled("q1", 0, ["A", "B"]), *cycled("q2", 1, ["B", "B"])])
    assert (found.orders, found.accuracy, found.consistency, found.always_right) == (2, 0.75, 0.5, 0.5)
    assert found.chosen == {"A": 0.25, "B": 0.75}
    assert found.right == {"A": 0.5, "B": 0.5}
    assert found.bias == 0.25


def test_an_answer_that_was_not_read_is_neither_consistent_nor_a_position() -> None:
    """Of four answers one is unread: A, B, B are a third and two thirds of the rest."""
    found = position_bias([*cycled("q1", 0, ["A", None]), *cycled("q2", 1, ["B", "B"])])
    assert (found.accuracy, found.consistency, found.unread) == (0.5, 0.0, 0.25)
    assert found.chosen == {"A": pytest.approx(1 / 3), "B": pytest.approx(2 / 3)}
    assert found.bias == pytest.approx(1 / 6)


def test_items_that_were_never_read_are_not_consistent() -> None:
    found = position_bias(cycled("q", 0, [None, None]))
    assert (found.consistency, found.always_right, found.unread, found.bias) == (0.0, 0.0, 1.0, 0.0)
    assert found.chosen == {"A": 0.0, "B": 0.0}


def test_an_order_is_read_from_position_to_original_option() -> None:
    """In a 3-cycle and its inverse the wrong direction would give another option."""
    answers = [ordered("q", (2, 0, 1), "A", "B"), ordered("q", (1, 2, 0), "B", "C")]
    assert position_bias(answers).consistency == 1.0, "both times the third option"
    others = [ordered("q", (2, 0, 1), "A", "B"), ordered("q", (1, 2, 0), "C", "C")]
    assert position_bias(others).consistency == 0.0, "the third option, then the first"


def test_items_may_have_different_numbers_of_options() -> None:
    answers = [
        ordered("two", (0, 1), "A", "A"),
        ordered("two", (1, 0), "B", "B"),
        ordered("three", (0, 1, 2), "C", "C"),
        ordered("three", (2, 1, 0), "A", "A"),
    ]
    found = position_bias(answers)
    assert found.chosen == found.right == {"A": 0.5, "B": 0.25, "C": 0.25}
    assert (found.accuracy, found.bias) == (1.0, 0.0)


@given(
    st.lists(st.lists(st.sampled_from(["A", "B", "C", None]), min_size=3, max_size=3), min_size=1, max_size=6)
)
def test_shares_stay_in_0_to_1_and_right_everywhere_is_the_rarest(letters: list[list[str | None]]) -> None:
    answers = [answer for i, row in enumerate(letters) for answer in cycled(f"q{i}", i % 3, row)]
    found = position_bias(answers)
    assert 0.0 <= found.bias <= 1.0
    assert found.always_right <= found.consistency
    assert found.always_right <= found.accuracy <= 1.0 - found.unread + 1e-12
    assert sum(found.chosen.values()) == pytest.approx(0.0 if found.unread == 1.0 else 1.0)
    assert sum(found.right.values()) == pytest.approx(1.0)
    assert position_bias(answers[::-1]) == found
