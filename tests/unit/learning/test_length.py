"""What length alone says: numbers worked out by hand, and what holds of any answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.learning.length import LengthFit, length_accuracies
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ScoredCompletion


def fit(*prompts: tuple[list[int], list[float]]) -> LengthFit:
    made = LengthFit()
    for tokens, rewards in prompts:
        made.add(zip(tokens, rewards, strict=True))
    return made


def test_slope_and_correlation_are_of_differences_within_prompts() -> None:
    # Less their means: tokens -1, 1 and -2, 2; rewards 1, -1 and 1, -1. Products -2 - 4; squares 10 and 4.
    made = fit(([10, 12], [5.0, 3.0]), ([100, 104], [50.0, 48.0]))
    assert made.slope == pytest.approx(-0.6)
    assert made.correlation == pytest.approx(-6 / math.sqrt(40))
    # The prompts' own levels, which go the other way, say nothing.
    assert fit(([10, 12], [0.0, 0.0]), ([100, 102], [9.0, 9.0])).slope == 0.0


def test_what_cannot_be_known() -> None:
    assert math.isnan(fit().correlation) and fit().slope == 0.0
    assert fit(([7, 7], [1.0, 2.0])).slope == 0.0, "lengths never vary"
    one = fit(([7, 9], [1.0, math.nan]))
    assert math.isnan(one.correlation) and one.slope == 0.0, "one finite reward"
    assert fit(([1, 2, 900], [0.0, 1.0, math.inf])).slope == pytest.approx(1.0)


def answer(tokens: int, sample: int = 0, reason: str = "stop") -> Completion:
    return Completion("p", sample, "x", tuple(range(tokens)), reason, 0.0, 0)


def test_the_datas_own_answer_does_not_count() -> None:
    made = LengthFit()
    kinds = [(2, 1.0, "stop"), (4, 2.0, "length"), (90, 9.0, "reference")]
    made.add_answers([ScoredCompletion(answer(n, k, why), r) for k, (n, r, why) in enumerate(kinds)])
    assert made.slope == 0.5


# As of answers: whole tokens, rewards with few digits.
rewards = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)
prompts = st.lists(st.lists(st.tuples(st.integers(1, 4096), rewards), max_size=8), max_size=12)


@given(prompts)
def test_the_slope_taken_off_leaves_no_correlation(drawn: list[list[tuple[int, float]]]) -> None:
    groups = [([t for t, _ in answers], [r for _, r in answers]) for answers in drawn]
    before = fit(*groups)
    after = fit(*((t, [r - before.slope * n for n, r in zip(t, rs, strict=True)]) for t, rs in groups))
    assert after.slope == pytest.approx(0.0, abs=1e-9 * (1 + abs(before.slope)) * 4096)
    # Where it explained all, what is left is rounding, which may correlate.
    explained = not math.isnan(before.correlation) and abs(before.correlation) > 1 - 1e-9
    assert explained or math.isnan(after.correlation) or after.correlation == pytest.approx(0.0, abs=1e-6)


def pair(chosen: int, rejected: int, kind: str = "question") -> PreferenceGroup:
    prompt = Prompt("p", ({"role": "user", "content": "?"},), (1,), kind=kind)
    return PreferenceGroup(prompt, (answer(chosen), answer(rejected, 1)), (1.0, 0.0))


def test_length_alone_is_the_better_of_both_rules() -> None:
    assert length_accuracies([]) == {}
    assert length_accuracies([pair(5, 3), pair(2, 4), pair(9, 1), pair(6, 6)]) == {"length_accuracy": 0.625}
    # Always shorter in one kind, always longer in the other: one rule for both gets the half.
    found = length_accuracies([pair(3, 5, "a"), pair(5, 3, "b")])
    assert found == {"length_accuracy": 0.5, "length_accuracy_a": 1.0, "length_accuracy_b": 1.0}


def test_every_two_answers_of_different_score_are_a_pair() -> None:
    # Scores 2, 1, 1 of 5, 3, 9 tokens: the longer one is better than the second, and not than the third.
    group = pair(1, 1)
    group = PreferenceGroup(
        group.prompt, tuple(answer(n, k) for k, n in enumerate((5, 3, 9))), (2.0, 1.0, 1.0)
    )
    assert length_accuracies([group, group]) == {"length_accuracy": 0.5}
