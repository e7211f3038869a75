"""Judges on engines of the run, in simulated runs: what they say is the reward, whatever dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulated.cases import Cases
from tests.simulated.engine import SimulatedEngine
from tests.simulated.outcome import check_same
from tests.simulated.ray import Call
from tests.simulated.weights import read_weights

NAMES = ["judge on engines", "judges on engines, in turn", "policy judges itself"]


def grade_of(weights: str, question: str, answer: str) -> float:
    engine = SimulatedEngine(0)
    engine.weights = weights
    return (int(engine.judge(f"{question} {answer}").rpartition(" ")[2]) - 1) / 9


def test_each_answer_has_its_judges_grade(known: Cases) -> None:
    outcome, ended = known.unbroken("judge on engines")
    judge = read_weights(known.models / "judge")
    for index in range(2):
        asked = {p.prompt_id: p.messages[-1]["content"] for p in outcome.of(index, "prompts")}
        for scored in outcome.of(index, "scored"):
            text = scored.completion.text
            assert scored.terms["judge"] == pytest.approx(
                grade_of(judge, asked[scored.completion.prompt_id], text)
            )
    starts = [c for c in ended.ray.begun if c.method == "start"]
    assert len(starts) == 2, "the judge is started once, and stays"


def test_the_policys_own_grades_follow_its_weights(known: Cases) -> None:
    outcome, _ = known.unbroken("policy judges itself")
    weights = [read_weights(known.models / "policy"), outcome.of(0, "checkpoint")]
    for index in range(2):
        asked = {p.prompt_id: p.messages[-1]["content"] for p in outcome.of(index, "prompts")}
        for s in outcome.of(index, "scored"):
            assert s.reward == pytest.approx(
                grade_of(weights[index], asked[s.completion.prompt_id], s.completion.text)
            )
    now = {s.completion.prompt_id: s for s in outcome.of(1, "evaluation")}
    assert len({s.reward for s in now.values()}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_comes_to_the_same(known: Cases, tmp_path: Path, name: str) -> None:
    expected, whole = known.unbroken(name)
    for point in range(25, whole.disk.changes, whole.disk.changes // 3):
        simulation = known.at(name, tmp_path / str(point))
        assert simulation.run(kill_at=point).killed
        simulation.run(resume=True)
        check_same(simulation.outcome(), expected, f"killed at {point}")


@pytest.mark.parametrize("how", ["dies", "hangs", "raises"])
def test_a_judges_engine_that_is_lost_is_replaced(known: Cases, tmp_path: Path, how: str) -> None:
    expected, _ = known.unbroken("judge on engines")
    struck: list[Call] = []

    def fate(call: Call) -> str:
        if (call.role, call.method) != ("judge_engine", "work") or len(struck) >= 2 or call.number % 3 == 0:
            return ""
        struck.append(call)
        return how

    simulation = known.at("judge on engines", tmp_path).but(fate=fate)
    simulation.run()
    assert len(struck) == 2
    check_same(simulation.outcome(), expected, how)
