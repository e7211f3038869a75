"""Runs of one config at several seeds: each measure by run and over all, from directories as runs leave them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.report_run import Plan, make_run
from ultramed_rl.records import JudgedAnswer
from ultramed_rl.report.online_run import OnlineRun, read_online_run
from ultramed_rl.report.seeds import (
    group_by_config,
    render_seeds,
    seed_differences,
    seed_measures,
    seeds_to_json,
)
from ultramed_rl.store import RunReader
from ultramed_rl.store.tables import write_records

BASE = {1: 1.0, 2: 2.0, 3: 0.0}  # by seed: what a round adds to every held-out reward


def run_of(root: Path, seed: int, gain: float, tokens: int = 0, **changes: object) -> OnlineRun:
    """Two rounds; prompt p's reward rises by 2 (gain + 0.1 p), its answers by 2 `tokens` tokens."""
    plan = Plan(
        held_out=4,
        held_out_reward=lambda v, p, s: v * (gain + 0.1 * p) + p,
        tokens=lambda r, p, s: 20 + tokens * r,
    )
    name = f"{changes.pop('name', 'mine')}-seed{seed}"
    return read_online_run(RunReader.of(make_run(root, plan, run__name=name, run__seed=seed, **changes)))


def judge(run: OnlineRun, version: int, scores: list[float]) -> None:
    folder = run.policies[version].path
    rows = [JudgedAnswer(f"h{p}", 0, {"likeness": score}) for p, score in enumerate(scores)]
    write_records(rows, JudgedAnswer, folder / "judges.parquet")


def test_each_measure_is_of_the_last_policy_against_its_start(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, seed, gain, tokens=-seed) for seed, gain in BASE.items()]
    for run in runs[:2]:
        judge(run, 0, [0.5, 0.5, 0.5, math.nan])
        judge(run, 2, [0.25, 0.5, 0.75, 0.75])
    measures = {one.name: one for one in seed_measures(runs)}
    assert list(measures)[:4] == ["reward_change", "net_wins", "tokens_change", "kl_to_reference"]
    # 2 gain + 0.2 p over p = 0..3.
    reward = measures["reward_change"]
    assert reward.by_run == pytest.approx((2.3, 4.3, 0.3)) and reward.interval is not None
    assert (reward.mean, reward.interval.mean) == pytest.approx((2.3, 2.3))
    assert 0.3 <= reward.interval.low < 1.0 and 3.6 < reward.interval.high <= 4.6, "seeds decide"
    # Of the third run prompt 0 is a tie.
    assert measures["net_wins"].by_run == (1.0, 1.0, 0.75)
    assert measures["tokens_change"].by_run == (-2.0, -4.0, -6.0)
    likeness = measures["judge_likeness_change"]
    assert likeness.by_run[:2] == (0.0, 0.0) and math.isnan(likeness.by_run[2]) and likeness.mean == 0.0
    assert all(math.isfinite(value) for value in measures["kl_to_reference"].by_run)
    found = json.loads(json.dumps(seeds_to_json(runs, list(measures.values()))))["measures"]["reward_change"]
    assert found.pop("by_run") == pytest.approx([2.3, 4.3, 0.3])
    interval = {"mean": 2.3, "low": reward.interval.low, "high": reward.interval.high}
    assert found == pytest.approx(interval)
    table = render_seeds(runs, list(measures.values()))
    assert all(text in table for text in ("seed 1", "seed 3", "+2.300", "+4.300", "judge likeness change"))


def test_a_run_that_ends_with_an_earlier_policy_is_measured_by_that(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, -1.0, run__keep="best", run__keep_by="reward")
    (run.files.path / "verdict.json").write_text(json.dumps({"verdict": "fell", "round": 0}))
    # After the first round: gain + 0.1 p.
    assert seed_measures([run])[0].mean == pytest.approx(-0.85)
    assert seeds_to_json([run], [])["runs"][0]["verdict"] == "fell"


def test_rewards_of_each_run_are_said_to_be_its_own(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, seed, 1.0) for seed in (1, 2)]
    assert not seeds_to_json(runs, [])["own_rewards"] and "digest" not in render_seeds(runs, [])
    for seed, run in enumerate(runs):
        manifest = {"name": "reward_model", "digest": f"{seed}", "seconds": 1.0}
        (run.files.path / "initial" / "reward_model.json").write_text(json.dumps(manifest))
    assert seeds_to_json(runs, [])["own_rewards"] and "digest" in render_seeds(runs, [])


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, 1, 1.0)]
    measures = seed_measures(runs)
    assert measures[0].mean == pytest.approx(2.3) and {one.interval for one in measures} == {None}
    assert "1 seed" in render_seeds(runs, measures)
    assert seeds_to_json(runs, measures)["measures"]["reward_change"]["low"] is None


def test_runs_of_one_config_are_found_whatever_their_names(tmp_path: Path) -> None:
    mine = [run_of(tmp_path, seed, gain) for seed, gain in BASE.items()]
    other = [
        run_of(tmp_path, seed, gain + 1.0, name="kto", objective={"type": "kto_pair"})
        for seed, gain in BASE.items()
    ]
    groups = group_by_config([mine[0], other[0], mine[1], other[1], other[2], mine[2]])
    assert [[run.name for run in group] for group in groups] == [
        ["mine-seed1", "mine-seed2", "mine-seed3"],
        ["kto-seed1", "kto-seed2", "kto-seed3"],
    ]
    found = seed_differences(mine, other)["reward_change"]
    assert found.mean == pytest.approx(2.0) and found.low < 0.5 and found.high > 3.5
    assert seed_differences(mine[:1], other) == {}
