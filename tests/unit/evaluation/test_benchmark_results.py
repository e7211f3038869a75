"""From answers to outcomes, accuracies, averages and comparisons, by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.report import (
    compare_reports,
    failures,
    render_averages,
    render_results,
    render_subjects,
    report_policy,
)
from ultramed_rl.evaluation.results import (
    GradedAnswer,
    average_columns,
    compare_outcomes,
    grade_answers,
    grade_likelihoods,
    grade_votes,
    sample_curves,
    score_outcomes,
    task_result,
)
from ultramed_rl.evaluation.suite import AskedTask, Question, check_room
from ultramed_rl.evaluation.tasks import TASKS
from ultramed_rl.records import Completion, OptionLogprobs, ScoredCompletion

DRUGS = ("aspirin", "valium", "insulin", "codeine")


def question(
    name: str = "q",
    answer: str = "B",
    task: str = "medqa",
    place: int = 0,
    order: tuple[int, ...] = (0, 1, 2, 3),
    **kw: str,
) -> Question:
    options = tuple(DRUGS[k] for k in order)
    return Question(TASKS[task], Item(name, "Which drug?", options, answer, **kw), place, order)


def answer(asked: Question, text: str, sample: int = 0, reason: str = "stop") -> Completion:
    return Completion(asked.question_id, sample, text, (1,), reason, 0.0, 0)


def outcome(asked: Question, letter: str | None) -> GradedAnswer:
    given = () if letter is None else (letter,)
    right = float(letter == asked.item.answer)
    return GradedAnswer(asked, given, right, "" if letter else "none")


# -- grading -----------------------------------------------------------------------------------------------


def test_the_likeliest_option_is_the_answer_and_the_first_of_equal_ones() -> None:
    asked = [question("a"), question("b"), question("c", "A")]
    scored = [(-3.0, -1.0, -2.0, -9.0), (-1.0, -2.0, -1.5, -3.0), (-1.0, -1.0, -1.0, -1.0)]
    logprobs = [OptionLogprobs(q.question_id, s, 0) for q, s in zip(asked, scored, strict=True)]
    found = grade_likelihoods(asked, logprobs)
    assert [(o.given, o.right) for o in found] == [(("B",), 1.0), (("A",), 0.0), (("A",), 1.0)]


def test_a_logprob_that_is_no_number_names_its_question() -> None:
    asked = question("a")
    with pytest.raises(ValueError, match=r"medqa/a/0: .*-1\.0, nan, -2\.0"):
        grade_likelihoods([asked], [OptionLogprobs(asked.question_id, (-1.0, math.nan, -2.0, -2.0), 0)])


def test_unread_and_cut_answers_are_counted_and_never_right() -> None:
    asked = [question(name) for name in "abcd"]
    answers = [
        answer(asked[0], "So, the answer is B."),
        answer(asked[1], "Let me think about drugs", reason="length"),
        answer(asked[2], "I would say A. Or B."),
        answer(asked[3], "So, the answer is B. And then", reason="length"),
    ]
    found = grade_answers(list(zip(asked, answers, strict=True)))
    assert [o.right for o in found] == [1.0, 0.0, 0.0, 1.0]
    assert [o.cut for o in found] == [0, 1, 0, 1]
    assert (found[1].problem, found[3].problem) == ("truncated", "")
    result = task_result("greedy", found, 1)
    assert result.score.accuracy == 0.5 and result.cut == 2 and sum(result.unread.values()) == 2


def test_a_vote_is_of_those_that_were_read() -> None:
    asked = question("a")
    texts = [
        "So, the answer is C.",
        "hm",
        "So, the answer is B.",
        "So, the answer is B.",
        "So, the answer is C.",
    ]
    (voted,) = grade_votes([asked], [[answer(asked, text, i) for i, text in enumerate(texts)]])
    assert voted.given == ("C",), "the tie goes to the choice that was named first"
    (unread,) = grade_votes([asked], [[answer(asked, "hm", i) for i in range(3)]])
    assert (unread.given, unread.problem, unread.right) == ((), "none", 0.0)


# -- results -----------------------------------------------------------------------------------------------


def test_orders_count_for_position_bias_alone() -> None:
    # The model always says A. Of two orders one puts the key there.
    first, second = question("a", "B"), question("a", "A", place=1, order=(1, 0, 2, 3))
    result = task_result("likelihood", [outcome(first, "A"), outcome(second, "A")], 1)
    assert (result.score.items, result.score.accuracy) == (1, 0.0)
    assert result.positions is not None
    assert (result.positions.accuracy, result.positions.consistency, result.positions.bias) == (0.5, 0.0, 0.5)


def test_subjects_and_option_counts() -> None:
    outcomes = [
        outcome(question("a", subject="Skin"), "B"),
        outcome(question("b", subject="Skin"), "A"),
        outcome(question("c", subject="ENT", order=(0, 1, 2)), "B"),
    ]
    result = task_result("greedy", outcomes, 1)
    assert {name: (s.items, s.accuracy) for name, s in result.subjects.items()} == {
        "ENT": (1, 1.0),
        "Skin": (2, 0.5),
    }
    assert result.options == {"3": 1, "4": 2}


def test_shares_get_a_bootstrap_interval_and_counts_wilsons() -> None:
    whole = [outcome(question(str(i)), "B" if i < 8 else "A") for i in range(10)]
    # Wilson for 8 of 10: 0.4902 to 0.9433.
    counted = score_outcomes(whole)
    assert (round(counted.low, 4), round(counted.high, 4)) == (0.4902, 0.9433)
    shared = score_outcomes([replace(o, right=0.5) for o in whole])
    assert (shared.accuracy, shared.low, shared.high) == (0.5, 0.5, 0.5)


def medical(subjects: bool) -> list[GradedAnswer]:
    names = TASKS["mmlu_medical"].columns
    return [
        outcome(question(name, task="mmlu_medical", subject=name if subjects else ""), "B" if i < 3 else "A")
        for i, name in enumerate(names)
    ]


def test_the_average_is_over_nine_columns_where_subjects_are_known() -> None:
    right = [
        task_result("greedy", [outcome(question(task=t), "B")], 1) for t in ("medqa", "medmcqa", "pubmedqa")
    ]
    nine = average_columns([*right, task_result("greedy", medical(True), 1)])
    assert nine is not None and len(nine.columns) == 9 and nine.accuracy == pytest.approx((3 + 3) / 9)
    four = average_columns([*right, task_result("greedy", medical(False), 1)])
    assert four is not None and len(four.columns) == 4 and four.accuracy == pytest.approx((3 + 0.5) / 4)
    assert average_columns([task_result("greedy", [outcome(question(task="medxpertqa"), "B")], 1)]) is None


def test_two_policies_on_the_same_items() -> None:
    names = [str(i) for i in range(10)]
    before = [outcome(question(n), "B" if i < 5 else "A") for i, n in enumerate(names)]
    after = [outcome(question(n), "B" if i >= 1 else "A") for i, n in enumerate(names)]
    # One item was right before only, five are right now only: p = 2 (C(6,0) + C(6,1)) / 2^6.
    found = compare_outcomes(before, list(reversed(after)), "greedy", 500, 0)
    assert (found.only_before, found.only_after, found.p_value) == (1, 5, 2 * 7 / 64)
    assert found.change == pytest.approx(0.4) and found.low < 0.4 < found.high


def test_a_policys_report_from_graded_answers_to_failures() -> None:
    asked = [question("a", subject="Skin"), question("b")]
    suite = [AskedTask(TASKS["medqa"], ("x",), tuple(q.item for q in asked), {}, tuple(asked))]
    graded = {"likelihood": [outcome(asked[0], "B"), outcome(asked[1], None)]}
    report = report_policy("start", suite, graded)
    assert report.metrics == {
        "medqa_likelihood_accuracy": 0.5,
        "medqa_likelihood_unread": 0.5,
        "average_likelihood": 0.5,
    }
    (row,) = failures(report.outcomes["medqa", "likelihood"])
    assert (row["question_id"], row["expected"], row["given"], row["problem"]) == (
        "medqa/b/0",
        "B",
        [],
        "none",
    )
    (same,) = compare_reports(report, report, 100, 0)
    assert (same.change, same.p_value) == (0.0, 1.0)
    assert "1 none" in render_results([report]) and "Skin" in render_subjects([report])
    assert re.search(r"start, likelihood: .* 50\.00% [a-z]+ 1 ", render_averages([report]))


def test_no_figure_of_a_subject_is_cut_off_a_wide_table() -> None:
    asked = [question("a", subject="Social & Preventive Medicine"), question("b", subject="ENT")]
    suite = [AskedTask(TASKS["medqa"], ("x",), tuple(q.item for q in asked), {}, tuple(asked))]
    protocols = ("likelihood", "greedy", "self_consistency")
    graded = {protocol: [outcome(q, "B") for q in asked] for protocol in protocols}
    names = ("base", "Llama-3-8B-UltraMedical", "mine")
    table = render_subjects([report_policy(n, suite, graded) for n in names])
    assert "…" not in table and "items" in table
    assert table.count("100.0% [21%, 100%]") == 3 * 2 * 3


def test_curves_take_each_samples_own_reward() -> None:
    asked = question("a")
    texts = ["So, the answer is A.", "So, the answer is B.", "So, the answer is A.", "hm"]
    samples = [answer(asked, text, i) for i, text in enumerate(texts)]
    rewards = [
        ScoredCompletion(sample, reward) for sample, reward in zip(samples, (0.1, 2.0, 0.2, 0.3), strict=True)
    ]
    points = {(p.rule, p.n): p.accuracy.mean for p in sample_curves([asked], [samples], rewards, 0)["medqa"]}
    assert points["mean", 1] == 0.25
    assert points["best_of_n", 4] == 1.0 and points["majority", 4] == 0.0
    # Of the six pairs the three with the second sample choose it.
    assert points["best_of_n", 2] == pytest.approx(0.5)
    without = sample_curves([asked], [samples], [], 0)["medqa"]
    assert {point.rule for point in without} == {"mean", "majority", "oracle"}


def test_too_long_questions_stop_before_an_engine_starts() -> None:
    lengths = [("medqa", 90), ("medqa", 120), ("pubmedqa", 301), ("medqa", 101)]
    check_room(lengths, 401, 100)
    with pytest.raises(
        ValueError, match=r"\b2 .*medqa .*\b120 .*\b1 .*pubmedqa .*\b301 .*policy\.max_length=200.*\b401\b"
    ):
        check_room(lengths, 200, 100)
