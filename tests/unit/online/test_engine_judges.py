"""Judges on engines of the run, in simulated runs: what they say is the reward, whatever dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.simulated.cases import Cases, check_run, judge_cases
from tests.simulated.engine import SimulatedEngine
from tests.simulated.outcome import check_same
from tests.simulated.ray import Call
from tests.simulated.weights import read_weights
from ultramed_rl.data.prompts import prepare_pool
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.tracking import Progress

NAMES = list(judge_cases(Path()))
RUBRICS = "rubrics, and a benchmark's"


def grade_of(weights: str, question: str, answer: str) -> float:
    engine = SimulatedEngine(0)
    engine.weights = weights
    return (int(engine.judge(f"{question} {answer}").rpartition(" ")[2]) - 1) / 9


@pytest.mark.parametrize("name", NAMES)
def test_answers_references_and_weights_are_those_of_any_run(known: Cases, name: str) -> None:
    outcome, _ = known.unbroken(name)
    check_run(known.at(name, known.path / name), outcome)


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


def verdict_of(weights: str, question: str, first: str, second: str) -> float:
    """The points of the first where both orders agree, else half."""
    engine = SimulatedEngine(0)
    engine.weights = weights
    said = [engine.judge(f"pair|{question}|{a}|{b}") for a, b in ((first, second), (second, first))]
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get(tuple(one.rpartition(" ")[2] for one in said), 0.5)


def test_pairs_are_of_the_answers_that_won_and_lost(known: Cases) -> None:
    outcome, _ = known.unbroken("pairwise")
    judge = read_weights(known.models / "judge")
    for index in range(2):
        scored = outcome.of(index, "scored")
        for prompt in outcome.of(index, "prompts"):
            question = prompt.messages[-1]["content"]
            own = [s for s in scored if s.completion.prompt_id == prompt.prompt_id]
            for s in own:
                others = [o for o in own if o.completion.text != s.completion.text]
                texts = {o.completion.text for o in others}
                points = [verdict_of(judge, question, s.completion.text, text) for text in texts]
                assert s.reward == pytest.approx(sum(points) / len(points))
        for pair in outcome.of(index, "pairs"):
            own = [s for s in scored if s.completion.prompt_id == pair.prompt.prompt_id]
            best = max(s.reward for s in own if s.completion.text)
            assert pair.rewards == (best, min(s.reward for s in own))
        metrics = outcome.of(index, "metrics")
        assert 0 < metrics["bias_pairwise_contradictory"] < 1
        assert (
            0.5 < metrics["bias_pairwise_first_wins"] < 1
            and 0 <= metrics["bias_pairwise_over_reference"] <= 1
        )


def test_held_out_answers_play_against_the_starting_policys(known: Cases) -> None:
    outcome, _ = known.unbroken("pairwise")
    judge = read_weights(known.models / "judge")
    start = {s.completion.prompt_id: s for s in outcome.folders["initial"]["evaluation"]}
    assert {s.reward for s in start.values()} == {0.5}
    config = known.at("pairwise", known.path).config
    pool = prepare_pool(config.prompts, ChatTokenizer(config.policy.path), config.run.seed, Progress())
    questions = {prompt.prompt_id: prompt.messages[-1]["content"] for prompt in pool.held_out}
    assert questions.keys() == start.keys()
    for s in outcome.of(1, "evaluation"):
        name, text = s.completion.prompt_id, s.completion.text
        assert s.reward == verdict_of(judge, questions[name], text, start[name].completion.text)
    metrics = outcome.of(1, "metrics")
    mean = sum(s.reward for s in outcome.of(1, "evaluation")) / len(start)
    assert metrics["eval_change"] == pytest.approx(mean - 0.5)


def test_a_benchmarks_grader_shares_the_rewards_engine(known: Cases) -> None:
    outcome, ended = known.unbroken(RUBRICS)
    engine = SimulatedEngine(0)
    engine.weights = read_weights(known.models / "judge")
    for scored in outcome.of(0, "scored"):
        assert len(scored.details) == 3 and scored.terms["rubric"] == pytest.approx(
            max(
                0.0,
                sum(met * float(name.split("[")[1].split("]")[0]) for name, met in scored.details.items())
                / 5,
            )
        )
    folder = known.at(RUBRICS, known.path / RUBRICS).config.run.folder
    for index in range(2):
        place, shares = folder / f"rounds/{index:03d}/rubrics-healthbench-greedy/verdicts.jsonl", []
        for row in map(json.loads, place.read_text().splitlines()):
            for criterion in row["criteria"]:
                asked = f"rubric|{row['question']}|{row['answer']}|1: {criterion['text']}"
                assert engine.judge(asked) == f"1: {'met' if criterion['met'] else 'not met'}"
            shares.append(sum(c["points"] for c in row["criteria"] if c["met"]) / 5)
        metrics = outcome.of(index, "metrics")
        assert metrics["bench_healthbench_greedy_score"] == pytest.approx(max(0.0, sum(shares) / 3))
        assert "bench_healthbench_grader_agreement" not in metrics
    labelled = [
        json.loads(line) for line in (folder / "initial/grader/verdicts.jsonl").read_text().splitlines()
    ]
    assert [row["labels"] for row in labelled] == [[True, False], [True, True], [True, True]]
    assert len([c for c in ended.ray.begun if c.method == "start"]) == 2, "one judge's engine for both"


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_comes_to_the_same(known: Cases, tmp_path: Path, name: str) -> None:
    expected, whole = known.unbroken(name)
    for point in range(25, whole.disk.changes, whole.disk.changes // 3):
        simulation = known.at(name, tmp_path / str(point))
        assert simulation.run(kill_at=point).killed
        simulation.run(resume=True)
        check_same(simulation.outcome(), expected, f"killed at {point}")


@pytest.mark.parametrize("how", ["dies", "hangs", "raises"])
@pytest.mark.parametrize(
    ("name", "role"),
    [("judge on engines", "judge_engine"), (RUBRICS, "judge_engine"), ("policy judges itself", "rollout")],
)
def test_an_engine_that_is_lost_is_replaced(
    known: Cases, tmp_path: Path, name: str, role: str, how: str
) -> None:
    expected, _ = known.unbroken(name)
    struck: list[Call] = []

    def fate(call: Call) -> str:
        if (call.role, call.method) != (role, "work") or len(struck) >= 2 or call.number % 3 == 0:
            return ""
        struck.append(call)
        return how

    simulation = known.at(name, tmp_path).but(fate=fate)
    simulation.run()
    assert len(struck) == 2
    check_same(simulation.outcome(), expected, how)
