"""Comparisons of two answers and what becomes of n of them: by hand."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rewards.test_judge_client import served
from ultramed_rl.config.rewards import PairwiseTerm
from ultramed_rl.evaluation.chat_scores import Duel
from ultramed_rl.records import ChatRequest, Completion, Message, Prompt
from ultramed_rl.rewards.judge_client import JudgeReply
from ultramed_rl.rewards.pairwise import Compare, PairwiseJudge, knockout, read_verdict, round_robin
from ultramed_rl.rewards.term import Scores

Points = dict[tuple[int, int], float | None]


def by_table(points: Points) -> Compare:
    async def compare(i: int, j: int) -> float | None:
        return points[i, j]

    return compare


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ("Verdict: A", 1.0),
        ("**Verdict:** B", 0.0),
        ("Verdict: tie", 0.5),
        ("Verdict: Answer B", 0.0),
        ("[[A]]", 1.0),
        ("Both are fine. [[C]]", 0.5),
        ("The better answer is B.", 0.0),
        ("Winner: neither", 0.5),
        ("B", 0.0),
        ("A is longer.\nB", 0.0),
        ("Verdict: A at first.\nVerdict: B", 0.0),
        ("Verdict: A or B", None),
        ("Verdict: A/B", None),
        ("Verdict: a close call", None),
        ("Better: A\nNo, on a second look: better is answer B", 0.0),
        ("Verdict: A. Or rather, verdict: B.\nHard to say.", None),
        ("A good answer, both of them.", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, points: float | None) -> None:
    assert read_verdict(JudgeReply(reply)) == points


@given(st.text(max_size=200))
def test_any_reply_is_read_or_refused(text: str) -> None:
    assert read_verdict(JudgeReply(text)) in (None, 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "points", "contradictory", "first_wins"),
    [
        (1.0, 1.0, 1.0, False, [1.0, 0.0]),
        (0.0, 0.0, 0.0, False, [0.0, 1.0]),
        (1.0, 0.0, 0.5, True, [1.0, 1.0]),  # whoever stands first
        (0.0, 1.0, 0.5, True, [0.0, 0.0]),  # whoever stands last
        (1.0, 0.5, 0.5, False, [1.0]),
        (0.5, 0.5, 0.5, False, []),
        (None, 1.0, None, False, [0.0]),
    ],
)
def test_both_orders_make_one_verdict(
    first: float | None,
    second: float | None,
    points: float | None,
    contradictory: bool,
    first_wins: list[float],
) -> None:
    found = Duel(first, second)
    assert (found.points, found.contradictory, found.first_wins) == (points, contradictory, first_wins)


def test_round_robin_is_the_mean_of_points() -> None:
    """0 beats 1, ties 2, unread against 3; 1 loses to 2 and beats 3; 2 loses to 3."""
    points: Points = {(0, 1): 1.0, (0, 2): 0.5, (0, 3): None, (1, 2): 0.0, (1, 3): 1.0, (2, 3): 0.0}
    scores = asyncio.run(round_robin(4, by_table(points)))
    assert scores == pytest.approx([1.5 / 2, 1 / 3, 1.5 / 3, 1 / 2])


def test_one_answer_alone_is_neither_good_nor_bad() -> None:
    assert asyncio.run(round_robin(1, by_table({}))) == asyncio.run(knockout(1, by_table({}))) == [0.5]
    assert asyncio.run(knockout(2, by_table({(0, 1): 0.5}))) == [0.5, 0.5]


def test_nobody_can_say() -> None:
    nothing = dict.fromkeys([(0, 1), (0, 2), (1, 2)])
    assert all(math.isnan(score) for score in asyncio.run(round_robin(3, by_table(nothing))))
    assert all(math.isnan(score) for score in asyncio.run(knockout(3, by_table(nothing))))


def test_a_knockout_by_hand() -> None:
    """Five: 0 beats 1; 3 beats 2; 4 waits. 3 beats 0; 4 waits. 3 and 4 are tied: both have the score of the last."""
    points: Points = {(0, 1): 1.0, (2, 3): 0.0, (0, 3): 0.0, (3, 4): 0.5}
    assert asyncio.run(knockout(5, by_table(points))) == pytest.approx([1 / 3, 0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize("count", range(3, 7))
def test_a_knockout_finds_the_best_in_n_less_one_comparisons(count: int) -> None:
    for strengths in permutations(range(count)):
        asked = []

        async def compare(i: int, j: int, s: tuple[int, ...] = strengths, asked: list[Any] = asked) -> float:
            asked.append((i, j))
            return float(s[i] > s[j])

        scores = asyncio.run(knockout(count, compare))
        assert len(asked) == count - 1 and scores.index(max(scores)) == strengths.index(count - 1)
        assert scores.count(1.0) == 1 and min(scores) == 0.0


# -- the judge ---------------------------------------------------------------------------------------------


def compare(
    texts: list[str], answer: Callable[[str, str], str], reference: str | None = None, **section: Any
) -> tuple[Scores, list[tuple[str, str]]]:
    """The scores of these answers, and in which orders they were shown."""
    term = PairwiseJudge(PairwiseTerm.model_validate({"engine": "policy", "retries": 1, **section}))
    asked: list[tuple[str, str]] = []

    def reply(request: ChatRequest) -> JudgeReply:
        content = request.messages[0]["content"]
        sides = (content.split(f"<answer_{side}>\n")[1].split(f"\n</answer_{side}>")[0] for side in "ab")
        asked.append((next(sides), next(sides)))
        return JudgeReply(answer(*asked[-1]))

    prompt = Prompt("p", (Message(role="user", content="p?"),))
    own = [Completion("p", i, text, (1,), "stop", 0.0, 0) for i, text in enumerate(texts)]
    if reference is not None:
        own.append(Completion("p", len(own), reference, (1,), "reference", 0.0, 0))
    with served(term.judge, reply):
        return term.score([prompt], own), asked


def longer(first: str, second: str) -> str:
    return f"Verdict: {'A' if len(first) > len(second) else 'B' if len(first) < len(second) else 'tie'}"


def test_each_two_answers_are_shown_in_both_orders() -> None:
    scores, asked = compare(["x", "xx", "xxx"], longer)
    assert scores.values == [0.0, 0.5, 1.0]
    assert sorted(asked) == sorted(permutations(["x", "xx", "xxx"], 2))
    expected = {"pairwise_contradictory": 0.0, "pairwise_first_wins": 0.5}
    assert scores.details == [expected] * 3


def test_who_always_prefers_the_first_makes_ties_and_is_counted() -> None:
    scores, _ = compare(["x", "xx", "xxx"], lambda *_: "Verdict: A", name="seat")
    assert scores.values == [0.5] * 3
    assert scores.details == [{"seat_contradictory": 1.0, "seat_first_wins": 1.0}] * 3


def test_equal_texts_are_compared_as_one() -> None:
    scores, asked = compare(["x", "xx", " x"], longer)
    assert scores.values == [0.0, 1.0, 0.0] and len(asked) == 2
    assert compare(["x", "x"], longer)[0].values == [0.5, 0.5]


def test_points_against_the_datas_own_answer_are_counted() -> None:
    scores, _ = compare(["x", "xxx"], longer, reference="xx")
    assert scores.values == [0.0, 1.0, 0.5]
    assert [d.get("pairwise_over_reference") for d in scores.details] == [0.0, 1.0, None]


def test_a_knockout_of_answers() -> None:
    scores, asked = compare(["xx", "x", "xxxx", "xxx"], longer, tournament="knockout")
    assert scores.values == [0.5, 0.0, 1.0, 0.0] and len(asked) == 2 * 3


def test_verdicts_that_cannot_be_read_are_asked_for_again_and_left_out() -> None:
    def mute(first: str, second: str) -> str:
        return "Hm." if "x" in (first, second) and "xx" in (first, second) else longer(first, second)

    scores, asked = compare(["x", "xx", "xxx", "xxxx"], mute)
    assert scores.values == pytest.approx([0.0, 0.0, 2 / 3, 1.0]) and len(asked) == 2 * 6 + 2
    with pytest.raises(ValueError, match=r"'policy': 1 of 1 "):
        compare(["x", "xx"], mute)
