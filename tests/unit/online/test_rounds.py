"""What a round asks of its workers, and what becomes of prompts that nobody can answer."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulated.cases import APART, Cases
from tests.simulated.engine import SimulatedEngine
from tests.simulated.outcome import check_same
from tests.simulated.ray import Call
from tests.simulated.run import FAULTS, Ended, Simulation
from tests.simulated.trainers import SimulatedTrainer
from ultramed_rl.config import ConfigError
from ultramed_rl.learning.length import LengthFit
from ultramed_rl.online import run as online_run
from ultramed_rl.records import Completion, SamplingRequest, ScoredCompletion
from ultramed_rl.report.build import write_report
from ultramed_rl.scheduling.pool import LostWorkers
from ultramed_rl.store.tables import read_records

N = 4


def asked(ended: Ended) -> list[str]:
    """Prompts that engines were given, in their order."""
    turns = [call.arguments[0] for call in ended.ray.begun if (call.role, call.method) == ("rollout", "work")]
    return [key for turn in turns for key, _ in turn.requests]


def prompts_of(known: Cases, index: int) -> list[str]:
    outcome, _ = known.unbroken("streamed")
    return [prompt.prompt_id for prompt in outcome.of(index, "prompts")]


def test_one_step_after_the_other_gives_the_same_as_all_at_once(known: Cases, tmp_path: Path) -> None:
    expected, _ = known.unbroken("streamed")
    streamed = known.at("streamed", tmp_path)
    in_turn = replace(streamed, changes={**streamed.changes, "cluster__sequential_phases": True})
    in_turn.run()
    check_same(in_turn.outcome(), expected, "one phase after the other")


def test_every_prompt_is_asked_once(known: Cases) -> None:
    outcome, ended = known.unbroken("streamed")
    held_out = [s.completion.prompt_id for s in outcome.folders["initial"]["evaluation"]]
    rounds = [name for index in (0, 1) for name in prompts_of(known, index)]
    assert sorted(asked(ended)) == sorted(rounds + held_out * 3)


def test_a_resumed_round_asks_for_what_it_has_not(known: Cases, tmp_path: Path) -> None:
    streamed = known.at("streamed", tmp_path)
    _, whole = known.unbroken("streamed")
    point = next(
        n
        for n in range(20, whole.disk.changes)
        if 0 < len(left_after(streamed, tmp_path / str(n), n, known)) < 8
    )
    assert point


def left_after(simulation: Simulation, path: Path, kill_at: int, known: Cases) -> list[str]:
    """Prompts of round 0 that a run is asked for after it was killed at this change; none that was in a file."""
    simulation = simulation.but(path=path)
    simulation.run(kill_at=kill_at)
    kept = {
        prompt
        for prompt in prompts_of(known, 0)
        for file in (path / "tiny/rounds/000").glob("scored.*/[0-9]*.parquet")
        if prompt.encode() in file.read_bytes()
    }
    again = asked(simulation.run(resume=True))
    left = [name for name in again if name in prompts_of(known, 0)]
    assert len(left) == len(set(left)) and not kept.intersection(left)
    return left


def test_a_round_says_how_much_of_its_update_the_engines_see(
    known: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = iter([0.25, 0.25, 1.5, 1.5])  # of two ranks, in two rounds
    monkeypatch.setattr(SimulatedTrainer, "update_survives", lambda self: next(shares))
    simulation = known.at("dpo", tmp_path)
    simulation.run()
    metrics = [simulation.outcome().of(index, "metrics")["update_survives"] for index in range(2)]
    assert metrics == [0.25, 1.5]
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "update_survives=" in line]
    assert "round 0" in said and "0.25" in said and "0.5" in said


def test_a_finished_run_starts_nobody(known: Cases, tmp_path: Path) -> None:
    simulation = known.at("dpo", tmp_path)
    simulation.run()
    assert simulation.run(resume=True).ray.begun == []


@pytest.mark.parametrize("name", ["dpo", "streamed", "early"])
def test_a_refused_prompt_is_set_aside_with_its_error_and_its_text(
    known: Cases, name: str, tmp_path: Path
) -> None:
    victim = known.unbroken(name)[0].of(0, "prompts")[3]
    simulation = known.at(name, tmp_path).but(
        refuse=lambda key: "too long" if key == victim.prompt_id else ""
    )
    simulation.run()
    outcome = simulation.outcome()
    rows = [json.loads(line) for line in outcome.of(0, "set_aside")]
    text = victim.messages[-1]["content"]
    assert rows == [{"prompt_id": victim.prompt_id, "error": "too long", "prompt": text}]
    scored = {s.completion.prompt_id for s in outcome.of(0, "scored")}
    assert scored == {p.prompt_id for p in outcome.of(0, "prompts")} - {victim.prompt_id}
    assert outcome.of(0, "metrics")["set_aside"] == 1 and "set_aside" not in outcome.folders["001"]


@pytest.mark.parametrize("gap", [0.6, math.nan])
def test_engines_that_sample_from_other_weights_end_the_run(
    known: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: float
) -> None:
    expected, _ = known.unbroken("dpo")
    simulation, step = known.at("dpo", tmp_path), SimulatedTrainer._step

    def apart(rank: SimulatedTrainer, *arguments: Any, **named: Any) -> dict[str, float]:
        metrics = step(rank, *arguments, **named)
        return metrics | ({"rollout_gap": gap} if "rollout_gap" in metrics else {})

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedTrainer, "_step", apart)
        with pytest.raises(
            ValueError, match=r"rollout_gap=(0\.6|nan): .*cluster\.faults\.max_rollout_gap=0\.5"
        ):
            simulation.run()
    simulation.run(resume=True)
    check_same(simulation.outcome(), expected, "a gap")


@pytest.mark.parametrize("name", ["dpo", "streamed"])
def test_too_many_set_aside_end_the_run_and_what_is_done_is_kept(
    known: Cases, name: str, tmp_path: Path
) -> None:
    expected, _ = known.unbroken(name)
    victims = [prompt.prompt_id for prompt in expected.of(1, "prompts")][:3]
    simulation = known.at(name, tmp_path)
    with pytest.raises(
        ValueError, match=r"round 1: 2 .*cluster\.faults\.max_failed_prompt_share=0\.01 .*\(1\)"
    ):
        simulation.but(refuse=lambda key: "no" if key in victims else "").run()
    simulation.run(resume=True)
    check_same(simulation.outcome(), expected, "set aside")


def test_answers_of_another_policy_are_a_defect(
    known: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = SimulatedEngine.answer

    def stale(self: SimulatedEngine, request: SamplingRequest) -> list[Completion]:
        return [replace(completion, policy_version=7) for completion in answer(self, request)]

    monkeypatch.setattr(SimulatedEngine, "answer", stale)
    with pytest.raises(AssertionError, match=r"\[7\]"):
        known.at("streamed", tmp_path).run()


def test_a_round_without_workers_goes_on_later(known: Cases, tmp_path: Path) -> None:
    expected, _ = known.unbroken("streamed")
    simulation = known.at("streamed", tmp_path)
    changes = {**simulation.changes, "cluster__faults": {**FAULTS, "restarts": 0}}

    def fate(call: Call) -> str:
        return "dies" if (call.role, call.method) == ("reward", "work") else ""

    with pytest.raises(LostWorkers, match="reward: 1 of 1 "):
        simulation.but(fate=fate, changes=changes).run()
    simulation.run(resume=True)
    check_same(simulation.outcome(), expected, "no reward model")


def test_reference_answers_are_scored_beside_the_policys_own(known: Cases) -> None:
    outcome, _ = known.unbroken("reference answers")
    prompts = {prompt.prompt_id: prompt for prompt in outcome.of(0, "prompts")}
    extra = [s.completion for s in outcome.of(0, "scored") if s.completion.finish_reason == "reference"]
    assert {c.prompt_id for c in extra} == {name for name, prompt in prompts.items() if prompt.answer}
    assert {(c.sample, c.text) for c in extra} == {(N, "Yes.")}
    assert len(outcome.of(0, "scored")) == N * len(prompts) + len(extra)


def test_steps_begin_before_all_pairs_are_there(known: Cases) -> None:
    outcome, ended = known.unbroken("early")
    steps = [call.number for call in ended.ray.begun if call.method == "learn_next"]
    last_answer = max(c.number for c in ended.ray.begun if (c.role, c.method) == ("reward", "work"))
    assert len(steps) >= 1 and steps[0] < last_answer
    pairs, prompts = outcome.of(0, "pairs"), [prompt.prompt_id for prompt in outcome.of(0, "prompts")]
    places = [prompts.index(pair.prompt.prompt_id) for pair in pairs]
    assert places == sorted(places), "batches follow the prompts"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"cluster__layout": "colocated"}, r"cluster\.layout"),
        ({"cluster__sequential_phases": True}, r"cluster\.sequential_phases"),
        ({"training__epochs": 2}, r"training\.epochs"),
        ({"policy__lora": {"rank": 4}}, r"policy\.lora"),
        ({"objective": {"type": "kto"}}, "objective"),
    ],
)
def test_early_training_is_refused_where_it_cannot_be(
    known: Cases, changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    early = {**APART, "training__overlap_training": True, "cluster__policy": {"ranks": 1, "zero_stage": 0}}
    with pytest.raises(
        ConfigError, match=rf"training\.overlap_training.*{key}|{key}.*training\.overlap_training"
    ):
        _ = Simulation(known.models, tmp_path, {**early, **changes}).config


def test_the_next_rounds_answers_come_while_the_policy_learns(known: Cases) -> None:
    """One policy behind: `check_run` says whose they are."""
    _, ended = known.unbroken("overlap")
    steps = [c.number for c in ended.ray.begun if (c.role, c.method, c.rank) == ("policy", "train", 0)]
    answers = [c.number for c in ended.ray.begun if (c.role, c.method) == ("rollout", "work")]
    syncs = [c.number for c in ended.ray.begun if c.method == "pull_weights"]
    for begin, end in zip([0, *syncs], syncs, strict=False):
        ours = [number for number in steps if begin < number < end]
        if ours and any(begin < number < end for number in answers):
            break
    else:
        raise AssertionError("nothing was asked between two syncs")
    assert any(ours[0] < number for number in answers if number < end), (
        "the policy learnt when all were answered"
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"cluster__layout": "colocated"}, r"cluster\.layout"),
        ({"cluster__sequential_phases": True}, r"cluster\.sequential_phases"),
        ({"training__overlap_training": True}, r"training\.overlap_training"),
        ({"run__overlap": 2}, r"run\.overlap"),
    ],
)
def test_overlap_is_refused_where_it_cannot_be(
    known: Cases, changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    overlap = {**APART, "run__overlap": 1, "cluster__policy": {"ranks": 1, "zero_stage": 0}}
    with pytest.raises(ConfigError, match=rf"run\.overlap.*{key}|{key}.*run\.overlap|{key}=2"):
        _ = Simulation(known.models, tmp_path, {**overlap, **changes}).config


def test_a_run_ends_with_its_report(known: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of the simulated run as the report has them, also after a kill while it was written."""
    monkeypatch.setattr(online_run, "write_own_report", lambda run_dir, progress: write_report(run_dir))
    simulation = known.at("benchmarks", tmp_path)
    changes = simulation.run().disk.changes
    page = (tmp_path / "tiny" / "report.html").read_text()
    for row in simulation.outcome().log:
        if "eval_change" in row:
            assert f"{row['eval_change']:+.2f}" in page or f"{row['eval_change']:.2f}" in page
    killed = simulation.but(path=tmp_path / "killed")
    assert killed.run(kill_at=changes - 1).killed
    killed.run(resume=True)
    assert (tmp_path / "killed" / "tiny" / "report.html").is_file()


@pytest.mark.parametrize("name", ["refill", "refill in turn"])
def test_prompts_that_give_no_pair_are_replaced(known: Cases, name: str) -> None:
    """`check_run` says which they must be; here, that there are some, and that not all that may be asked are."""
    outcome, _ = known.unbroken(name)
    config = known.at(name, known.path / name).config
    rounds = [outcome.folders[f"{index:03d}"] for index in range(config.run.rounds)]
    assert any(config.prompts.per_round < found["asked"] < len(found["prompts"]) for found in rounds)
    assert any(len(found["pairs"]) == config.prompts.per_round < found["asked"] for found in rounds)


def test_the_slope_of_length_is_taken_off_every_reward_and_the_raw_one_kept(known: Cases) -> None:
    outcome, _ = known.unbroken("length slope")
    initial = known.path / "length slope" / "tiny" / "initial"
    found = json.loads((initial / "length.json").read_text())["metrics"]
    probe = read_records(ScoredCompletion, initial / "length" / "scored.parquet")
    fit, left = LengthFit(), LengthFit()
    for start in range(0, len(probe), N):
        answers = probe[start : start + N]
        fit.add_answers(answers)
        tokens = [len(s.completion.token_ids) for s in answers]
        left.add((n, s.reward - found["slope"] * n) for s, n in zip(answers, tokens, strict=True))
    held_out = {s.completion.prompt_id for s in outcome.folders["initial"]["evaluation"]}
    assert {s.completion.prompt_id for s in probe} == held_out and found["answers"] == N * len(held_out)
    assert (fit.slope, fit.correlation) == (found["slope"], found["correlation"]) and abs(fit.slope) > 0.001
    assert left.correlation == pytest.approx(0.0, abs=1e-9)
    parts = [outcome.folders["initial"]["evaluation"], outcome.of(0, "scored"), outcome.of(1, "evaluation")]
    for scored in parts:
        for s in scored:
            assert s.reward == s.terms["raw"] - found["slope"] * len(s.completion.token_ids)
            assert s.terms["raw"] == pytest.approx(s.terms["model"] + 0.01 * s.terms["length"])
    metrics = outcome.of(0, "metrics")
    assert metrics["reward_length_slope"] == pytest.approx(found["slope"])
    own = LengthFit()
    for prompt in outcome.of(0, "prompts"):
        own.add_answers([s for s in outcome.of(0, "scored") if s.completion.prompt_id == prompt.prompt_id])
    assert metrics["length_correlation"] == pytest.approx(own.correlation)


def test_a_number_is_taken_off_without_a_look(known: Cases, tmp_path: Path) -> None:
    simulation = known.at("dpo", tmp_path).but(changes={"reward__length_slope": -0.5})
    simulation.run()
    assert not (tmp_path / "tiny" / "initial" / "length.json").exists()
    for s in simulation.outcome().of(0, "scored"):
        assert s.reward == s.terms["raw"] + 0.5 * len(s.completion.token_ids)


def test_a_slope_that_is_gone_cannot_be_fitted_on_another_policy(known: Cases, tmp_path: Path) -> None:
    known.unbroken("length slope")
    simulation = known.at("length slope", tmp_path)
    shutil.copytree(known.path / "length slope" / "tiny", tmp_path / "tiny")
    for file in ("length.json", "evaluation.json"):
        (tmp_path / "tiny" / "initial" / file).unlink()
    (tmp_path / "tiny" / "rounds" / "001" / "commit.json").unlink()
    with pytest.raises(ValueError, match=r"initial/length\.json: "):
        simulation.run(resume=True)


def test_what_length_pays_is_said_before_anything_is_learnt(
    known: Cases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward that is the length: in the first look, before the first step, and in each round."""
    terms = [{"type": "length", "free": 0, "weight": -1.0}]
    early = known.at("early", tmp_path)
    simulation = early.but(changes={**early.changes, "reward": {"terms": terms}})
    simulation.run()
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "+1.00" in line]
    first = next(line for line in lines if line.startswith("round 0 train"))
    assert lines.index(said[0]) < lines.index(first) and "round 0" in said[0] and "0.3" in said[0]
    assert any("round 1" in line for line in said) and all("reward.length_slope" in line for line in said)
    assert simulation.outcome().of(1, "metrics")["length_correlation"] == pytest.approx(1.0)
