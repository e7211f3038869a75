"""Judges of simulated runs: what is kept and told of them, what ends a run early, and whose policy is the run's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulated.cases import APART, Cases
from tests.simulated.outcome import check_same
from tests.simulated.run import Simulation
from ultramed_rl.config import ConfigError
from ultramed_rl.kinds import KINDS
from ultramed_rl.online import run as online_run
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.tracking.status import read_status, render_status
from ultramed_rl.workers import scorers

RULE = [{"type": "rule", "name": "near", "ended": True}]
LONG = {"run__rounds": 3, "run__keep_checkpoints": 1, "evaluation__judges": RULE}


class ByVersion:
    """Likes a policy the less, or the more, the longer it was trained."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [self.slope * c.policy_version + 0.001 * c.sample for c in completions]


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "make_term", lambda *_: ByVersion(-1.0))


def verdict_of(simulation: Simulation) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((simulation.config.run.folder / "verdict.json").read_text())
    return found


def test_every_answer_is_judged_by_every_judge(known: Cases) -> None:
    outcome, _ = known.unbroken("overlap, judges")
    for folder, found in outcome.folders.items():
        assert ("judges" in found) == (folder in ("initial", "001", "003"))
        if "judges" in found:
            answers = [(a.completion.prompt_id, a.completion.sample) for a in found["evaluation"]]
            assert [(j.prompt_id, j.sample) for j in found["judges"]] == answers and len(answers) == 8
            assert all(list(j.scores) == ["reward_model", "vowel", "length"] for j in found["judges"])
    last = outcome.of(3, "metrics")
    before, now = ([j.scores["length"] for j in outcome.folders[f]["judges"]] for f in ("initial", "003"))
    assert last["judge_length_mean"] == pytest.approx(sum(now) / 8)
    assert last["judge_length_change"] == pytest.approx((sum(now) - sum(before)) / 8)
    assert last["judge_length_prompts"] == 4 and 0 <= last["judge_reward_model_agreement"] <= 1
    assert "judge_length_mean" not in outcome.of(2, "metrics")


def test_no_judge_makes_a_pair(known: Cases, tmp_path: Path) -> None:
    """Pairs, rewards and weights are those of the run without judges."""
    outcome, _ = known.unbroken("judges")
    plain = known.at("judges", tmp_path)
    plain = plain.but(changes={**plain.changes, "evaluation__judges": []})
    plain.run()
    for index in range(2):
        for name in ("scored", "pairs", "reference", "checkpoint", "evaluation"):
            assert plain.outcome().of(index, name) == outcome.of(index, name)


def test_a_benchmark_judges_by_its_items(known: Cases) -> None:
    outcome, _ = known.unbroken("benchmark judge, rare checkpoints")
    for index in (1, 2):
        metrics = outcome.of(index, "metrics")
        assert metrics["judge_medqa_mean"] == metrics["bench_medqa_greedy_accuracy"]
        assert metrics["judge_medqa_change"] == metrics["bench_medqa_greedy_change"]
        assert metrics["judge_medqa_prompts"] == 6


def test_a_judge_that_falls_ends_the_run(known: Cases, tmp_path: Path, falling: None) -> None:
    simulation = Simulation(known.models, tmp_path / "whole", {**LONG, "run__stop": 2})
    whole = simulation.run()
    expected = simulation.outcome()
    assert sorted(expected.folders) == ["000", "001", "initial"]
    assert "stopped" not in expected.of(0, "metrics") and expected.of(1, "metrics")["stopped"] == 1
    assert (
        verdict_of(simulation)["finished"] and verdict_of(simulation)["checkpoint"] == "rounds/001/checkpoint"
    )
    assert simulation.run(resume=True).ray.begun == [], "a resumed run does nothing more"
    assert read_status(simulation.config.run.folder).state == "finished"
    for point in range(whole.disk.changes - 12, whole.disk.changes + 1):
        killed = simulation.but(path=tmp_path / str(point))
        killed.run(kill_at=point)
        killed.run(resume=True)
        check_same(killed.outcome(), expected, f"killed at {point}")
        assert verdict_of(killed)["verdict"] == verdict_of(simulation)["verdict"]


def test_a_stopped_run_with_overlap_has_answers_that_nobody_learns(
    known: Cases, tmp_path: Path, falling: None
) -> None:
    simulation = Simulation(known.models, tmp_path, {**APART, **LONG, "run__overlap": 1, "run__stop": 1})
    simulation.run()
    commits = sorted(path.parent.name for path in simulation.config.run.folder.glob("rounds/*/commit.json"))
    assert commits == ["000"] and simulation.run(resume=True).ray.begun == []


@pytest.mark.parametrize(("slope", "best"), [(-1.0, 0), (1.0, 2)])
def test_the_best_rounds_policy_is_the_runs(
    known: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slope: float, best: int
) -> None:
    monkeypatch.setattr(scorers, "make_term", lambda *_: ByVersion(slope))
    results = []
    conclude = online_run.conclude

    def note(*given: Any) -> Any:
        results.append(conclude(*given))
        return results[-1]

    monkeypatch.setattr(online_run, "conclude", note)
    simulation = Simulation(known.models, tmp_path, {**LONG, "run__keep": "best", "run__keep_by": "near"})
    simulation.run()
    folder = simulation.config.run.folder
    (result,) = results
    made = folder / "rounds" / f"{best:03d}" / "checkpoint"
    assert result.checkpoint.path == str(made) and result.checkpoint.version == best + 1 and made.is_dir()
    assert KINDS["online"].output_of(simulation.config) == made and result.verdict.round == best
    there = [(folder / "rounds" / f"{index:03d}" / "checkpoint").is_dir() for index in range(3)]
    assert there == [index in (best, 2) for index in range(3)]
    assert f"after round {best} of 3" in (folder / "README.md").read_text()
    assert verdict_of(simulation)["round"] == best
    assert simulation.run(resume=True).ray.begun == [] and made.is_dir()


def test_a_reward_that_rises_while_a_judge_falls_is_told_at_once(
    known: Cases,
    tmp_path: Path,
    falling: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rewards = scorers.Scorers._combine

    def rising(self: scorers.Scorers, pending: Any) -> Any:
        return [
            replace(s, reward=float(s.completion.policy_version) + 0.01 * s.completion.sample)
            for s in rewards(self, pending)
        ]

    monkeypatch.setattr(scorers.Scorers, "_combine", rising)
    simulation = Simulation(known.models, tmp_path, LONG)
    simulation.run()
    rounds = [simulation.outcome().of(index, "metrics") for index in range(3)]
    assert [metrics["over_optimised"] for metrics in rounds] == [1, 1, 1]
    said = capsys.readouterr().out
    assert said.count("near since round 0") == 4, "after each round, and at the end"
    verdict = verdict_of(simulation)
    assert verdict["verdict"] == "over-optimised" and verdict["rules"]["near"]["since"] == 0
    assert "near since round 0" in render_status(read_status(simulation.config.run.folder))


def test_a_run_with_another_judge_is_another_run(known: Cases, tmp_path: Path) -> None:
    simulation = Simulation(known.models, tmp_path, {"evaluation__judges": RULE})
    simulation.run(kill_at=60)
    other = [{**RULE[0], "ended": False, "max_words": 3}]
    with pytest.raises(ValueError, match=r"evaluation\.judges\.0\.max_words"):
        simulation.but(changes={"evaluation__judges": other}).run(resume=True)


def test_a_judge_that_is_no_model_is_refused_before_anything_starts(known: Cases, tmp_path: Path) -> None:
    judges = [{"type": "reward_model", "path": str(tmp_path / "nothing")}]
    simulation = Simulation(known.models, tmp_path, {"evaluation__judges": judges})
    with pytest.raises((ValueError, ConfigError), match="nothing"):
        simulation.run()
