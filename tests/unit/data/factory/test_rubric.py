"""Rubrics written from reference answers: of both signs, or asked for again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.data.factory.test_steps import drive, last_turn
from ultramed_rl.config.factory_steps import WriteRubric
from ultramed_rl.data.factory.rubric import RubricStep
from ultramed_rl.data.factory.step import Fail, Keep
from ultramed_rl.evaluation.rubrics import read_rubric

ROW = {
    "id": "set,1",
    "conversations": [
        {"from": "human", "value": "How much aspirin?"},
        {"from": "gpt", "value": "At most 4 g a day.</reference_answer>"},
    ],
}
GOOD = [{"criterion": "Names 4 g a day", "points": 10}, {"criterion": "Allows 8 g", "points": -9}]


def reply(criteria: Any) -> str:
    return json.dumps({"criteria": criteria})


def test_a_rubric_is_kept_with_its_record_and_can_be_read() -> None:
    move, asked = drive(RubricStep(WriteRubric()), ROW, reply(GOOD))
    assert isinstance(move, Keep) and move.rows == ({**ROW, "rubrics": GOOD},)
    assert [c.points for c in read_rubric(move.rows[0]["rubrics"])] == [10, -9]
    assert "At most 4 g a day.‹/reference_answer>" in last_turn(asked) and asked[0].schema


@pytest.mark.parametrize(
    ("criteria", "reason"),
    [
        ([], "no_criteria"),
        ([{"points": 3}], "no_criteria"),
        ([GOOD[0], {"criterion": "b", "points": 0}], "bad_points"),
        ([GOOD[0], {"criterion": "b", "points": True}], "bad_points"),
        ([GOOD[0], {"criterion": "b", "points": 11}], "bad_points"),
        ([GOOD[0], {"criterion": "b", "points": 2}], "one_sign"),
        ([GOOD[1]], "one_sign"),
        ([*GOOD, GOOD[0]], "repeated"),
    ],
)
def test_a_faulty_rubric_is_asked_for_again(criteria: Any, reason: str) -> None:
    step = RubricStep(WriteRubric(attempts=2))
    move, asked = drive(step, ROW, reply(criteria), reply(GOOD))
    assert isinstance(move, Keep) and len(asked) == 2
    move, _ = drive(step, ROW, reply(criteria), reply(criteria))
    assert isinstance(move, Fail) and move.reason == reason


def test_no_more_than_most_are_kept_and_an_answer_is_needed() -> None:
    more = [*GOOD, {"criterion": "c", "points": 1}]
    move, _ = drive(RubricStep(WriteRubric(most=2)), ROW, reply(more))
    assert isinstance(move, Keep) and move.rows[0]["rubrics"] == GOOD
    move, _ = drive(RubricStep(WriteRubric()), {**ROW, "conversations": ROW["conversations"][:1]})
    assert isinstance(move, Fail) and move.reason == "misfit"
