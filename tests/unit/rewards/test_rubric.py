"""Rubrics: the forms in which prompts carry them, the arithmetic of points, what a judge is asked and what it may reply."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.rewards.test_http import asked, chat, serving
from ultramed_rl.config.rewards import RubricTerm
from ultramed_rl.evaluation.rubrics import Criterion, earned_share, read_rubric, read_verdicts
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.rubric import RubricReward, check_rubrics
from ultramed_rl.rewards.term import Scores

HEALTHBENCH = [
    {"criterion": "Names the dose", "points": 5, "tags": ["axis:accuracy"]},
    {"criterion": "Sends to a doctor", "points": 3, "tags": []},
    {"criterion": "Invents a study", "points": -6, "tags": []},
]
DOSE, DOCTOR, INVENTS = read_rubric(HEALTHBENCH)


@pytest.mark.parametrize(
    ("value", "criteria"),
    [
        (HEALTHBENCH, [("Names the dose", 5), ("Sends to a doctor", 3), ("Invents a study", -6)]),
        ({"query": "q", "rubrics": [{"description": "a", "weight": 0.5}]}, [("a", 0.5)]),
        ([{"title": "t", "description": "b", "weight": 2}], [("b", 2)]),
        (["a", " b "], [("a", 1), ("b", 1)]),
        (json.dumps(HEALTHBENCH[:1]), [("Names the dose", 5)]),
    ],
)
def test_forms(value: Any, criteria: list[tuple[str, float]]) -> None:
    assert [(c.text, c.points) for c in read_rubric(value)] == criteria


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("be kind", "be kind"),
        ([], "list"),
        ({"criterion": "a"}, "list"),
        ([{"criterion": "a"}], "'a'.*points"),
        ([{"criterion": "a", "points": True}], "'a'.*points"),
        ([{"criterion": "a", "points": math.nan}], "'a'.*points"),
        ([{"criterion": " ", "points": 1}], "text"),
        ([{"criterion": "a", "points": -3}, {"criterion": "b", "points": 0}], "2 criteria"),
    ],
)
def test_rubrics_that_are_refused(value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_rubric(value)


def test_points_earned_over_points_to_be_earned() -> None:
    share = lambda *met: earned_share([DOSE, DOCTOR, INVENTS], met)
    assert share(True, False, False) == 5 / 8 and share(True, True, False) == 1.0
    assert share(True, False, True) == (5 - 6) / 8 and share(False, False, True) == -6 / 8
    assert math.isnan(earned_share([INVENTS], [True]))


@pytest.mark.parametrize(
    ("reply", "verdicts"),
    [
        ("1: met\n2: not met\n3: Met.", {1: True, 2: False, 3: True}),
        ("- **1.** not met\n- **2.** met", {1: False, 2: True}),
        ("Criterion 1: no\nCriterion 2: yes, it does", {1: False, 2: True}),
        ("1: met\n1: not met\n2: met", {2: True}),
        ("Not met.", {1: False}),
        ('The answer is "met" because it names the drug.', {1: True}),
        ("This criterion is **not met**.\nIt names no dose.", {1: False}),
        ("1: The criterion is met.\n2: The criterion is not met, as no dose is named.", {1: True, 2: False}),
        ("The criterion is met in part.", None),
        ("The answer is not entirely met.", None),
        ("No dose is named.", None),
        ('```json\n{"explanation": "1: met", "criteria_met": false}\n```', {1: False}),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, verdicts: dict[int, bool] | None) -> None:
    assert read_verdicts(reply) == verdicts


# -- the term ----------------------------------------------------------------------------------------------


def prompt(rubric: Any = HEALTHBENCH, name: str = "p") -> Prompt:
    extra = "" if rubric is None else json.dumps({"rubrics": rubric})
    return Prompt(name, (Message(role="user", content="Which dose?"),), (1,), extra=extra)


def by_words(request: dict[str, Any]) -> tuple[int, Any]:
    """A judge to whom a criterion is met where the answer has its last word."""
    said = asked(request)
    answer = re.search(r"<answer>\n(.*?)\n</answer>", said, re.DOTALL)
    criteria = re.search(r"<criteria>\n(.*?)\n</criteria>", said, re.DOTALL)
    assert answer and criteria and "points" not in said
    verdicts = (
        f"{line.partition(':')[0]}: {'met' if line.split()[-1] in answer[1] else 'not met'}"
        for line in criteria[1].splitlines()
    )
    return 200, chat("\n".join(verdicts))


def score(url: str, prompts: list[Prompt], *answers: str, **section: Any) -> Scores:
    config = RubricTerm(model="m", base_url=f"{url}/v1", **{"retries": 0, **section})
    completions = [
        Completion(prompts[0].prompt_id, i, a, (1,), "stop", 0.0, 0) for i, a in enumerate(answers)
    ]
    return RubricReward(config).score(prompts, completions)


def test_an_answer_earns_its_points_and_every_verdict_is_kept() -> None:
    with serving(by_words) as url:
        found = score(url, [prompt()], "the dose, by a study", "dose and doctor", "study")
        assert found.values == [0.0, 1.0, 0.0]
        assert found.details[0] == {
            "rubric [+5] Names the dose": 1.0,
            "rubric [+3] Sends to a doctor": 0.0,
            "rubric [-6] Invents a study": 1.0,
        }
        assert score(url, [prompt()], "the dose, by a study", clip=False).values == [-1 / 8]


def test_criteria_of_an_answer_are_asked_of_together_and_never_twice(tmp_path: Path) -> None:
    requests: list[str] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        requests.append(asked(request))
        return by_words(request)

    with serving(answer) as url:
        keys: dict[str, Any] = {"together": 2, "cache": str(tmp_path / "verdicts")}
        first = score(url, [prompt()], "dose", "dose", **keys)
        assert len(requests) == 2  # two answers alike, three criteria, two at a time
        assert score(url, [prompt()], "dose", **keys).values == first.values[:1] and len(requests) == 2


def test_a_criterion_without_a_verdict_is_asked_of_alone_and_then_has_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said: list[str] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        said.append(asked(request))
        return 200, chat("1: met\n3: not met" if "3: Invents" in said[-1] else "hm")

    with serving(answer) as url:
        found = score(url, [prompt()], "dose")
    assert len(said) == 2 and "1: Sends to a doctor" in said[1]
    assert math.isnan(found.values[0]) and len(found.details[0]) == 2
    assert "1 of 3" in caplog.text and "Sends to a doctor" in caplog.text


def test_a_judge_without_verdicts_stops_the_run() -> None:
    with (
        serving(lambda _: (200, chat("As a model I cannot."))) as url,
        pytest.raises(ValueError, match="66 of 66"),
    ):
        score(url, [prompt()], *map(str, range(22)))


def test_verdicts_that_are_all_alike_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    rubric = [{"criterion": f"c{i}", "points": 1} for i in range(40)]
    everything = "\n".join(f"{i}: met" for i in range(1, 41))
    with serving(lambda _: (200, chat(everything))) as url, caplog.at_level(logging.WARNING):
        score(url, [prompt(rubric)], "a", "b", "c", together=40)
    assert len(re.findall(r"100 % of 120 verdicts", caplog.text)) == 1


def test_prompts_without_rubrics_leave_the_order_to_others(caplog: pytest.LogCaptureFixture) -> None:
    with serving(by_words) as url:
        assert score(url, [prompt(None)], "dose", "x").values == [0.0, 0.0]
    term = RubricTerm(model="m", base_url="http://h/v1")
    check_rubrics([term], [prompt(), prompt(None, "q")])
    assert "1 of 2" in caplog.text
    with pytest.raises(ValueError, match="rubric or rubrics"):
        check_rubrics([term], [prompt(None)])
    with pytest.raises(ValueError, match=r"prompt p .*'a'"):
        check_rubrics([term], [prompt([{"criterion": "a"}])])


def test_a_rubric_in_another_column() -> None:
    extra = json.dumps({"ground_truth": json.dumps({"rubrics": [{"description": "dose", "weight": 2}]})})
    one = Prompt("p", prompt().messages, (1,), extra=extra)
    with serving(by_words) as url:
        assert score(url, [one], "a dose", "x", column="ground_truth").values == [1.0, 0.0]
    assert Criterion("dose", 2.0) == read_rubric(json.loads(extra)["ground_truth"])[0]
