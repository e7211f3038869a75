"""The verdict from intervals: each outcome, its boundaries, since when, what stops a run and which round is best."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rounds import finish_round
from tests.tiny import tiny_run
from ultramed_rl.config import parse_config
from ultramed_rl.kinds import KINDS
from ultramed_rl.store import RunDirectory, RunReader
from ultramed_rl.tracking.verdict import (
    MeasuredChange,
    best_round,
    decide,
    fallen_for,
    give_verdict,
    kept_round,
    run_verdict,
    write_verdict,
)

UP, FLAT, DOWN = (0.1, 0.3), (-0.1, 0.1), (-0.3, -0.1)
TYPES = {"near": "likeness", "skill": "rule"}
Bounds = tuple[float, float]


def change(bounds: Bounds, mean: float = 0.0) -> MeasuredChange:
    low, high = bounds
    return MeasuredChange(mean, (low + high) / 2, low, high, 48, 0.5)


def row(index: int, reward: Bounds = UP, **judges: Bounds) -> dict[str, float]:
    """A round's metrics; means are the middles of the intervals."""
    found: dict[str, float] = {"round": float(index)}
    for prefix, (low, high) in {"eval": reward, **{f"judge_{n}": b for n, b in judges.items()}}.items():
        middle = (low + high) / 2
        found |= {f"{prefix}_change": middle, f"{prefix}_change_low": low, f"{prefix}_change_high": high}
        found |= {f"{prefix}_win_rate": 0.75, f"{prefix}_prompts": 48.0}
        found["eval_reward_mean" if prefix == "eval" else f"{prefix}_mean"] = middle
    return found


@pytest.mark.parametrize(
    ("reward", "judges", "outcome"),
    [
        (UP, [UP], "rose"),
        (UP, [UP, UP], "rose"),
        (UP, [], "rose by its reward alone"),
        (UP, [FLAT], "rose by its reward alone"),
        (UP, [UP, FLAT], "rose by its reward alone"),
        (UP, [DOWN], "over-optimised"),
        (UP, [UP, DOWN, FLAT], "over-optimised"),
        (FLAT, [], "nothing moved"),
        (FLAT, [UP], "nothing moved"),
        (FLAT, [UP, DOWN], "fell"),
        (DOWN, [], "fell"),
        (DOWN, [UP], "fell"),
        # An interval that touches 0 leaves a doubt.
        ((0.0, 0.3), [UP], "nothing moved"),
        ((-0.3, 0.0), [UP], "nothing moved"),
        (UP, [(-0.3, 0.0)], "rose by its reward alone"),
        (UP, [(0.0, 0.3)], "rose by its reward alone"),
        ((1e-12, 0.3), [(1e-12, 1.0)], "rose"),
        (UP, [(-1.0, -1e-12)], "over-optimised"),
    ],
)
def test_the_verdict_follows_from_intervals(reward: Bounds, judges: list[Bounds], outcome: str) -> None:
    assert decide(change(reward), map(change, judges)) == outcome


BOUNDS = st.sampled_from([UP, FLAT, DOWN, (0.0, 0.1), (-0.1, 0.0)])


@given(BOUNDS, st.lists(BOUNDS, max_size=4))
def test_a_judge_more_makes_no_verdict_better(reward: Bounds, judges: list[Bounds]) -> None:
    """Once there is one: from worst to best, and nobody's order matters."""
    ranks = ["fell", "over-optimised", "nothing moved", "rose by its reward alone", "rose"]
    rank = lambda found: ranks.index(decide(change(reward), map(change, found)))
    assert rank(judges) == rank(judges[::-1])
    if judges:
        assert rank([*judges, FLAT]) <= rank(judges) and rank([*judges, DOWN]) <= rank(judges)


def test_a_judge_has_fallen_since_the_first_of_the_last_rounds_in_a_row() -> None:
    rounds = [
        row(0, near=DOWN),
        row(1, near=FLAT),
        row(2, near=DOWN),
        {"round": 3.0},
        row(4, near=DOWN),
        {"round": 5.0},
    ]
    verdict = give_verdict(rounds, TYPES)
    assert verdict is not None and (verdict.outcome, verdict.round) == ("over-optimised", 4)
    assert verdict.since == {"near": 2} and "near since round 2" in verdict.headline
    assert list(verdict.judges) == ["near"], "one that said nothing is no judge of it"


def test_the_verdict_is_of_the_round_that_is_asked_for() -> None:
    rounds = [row(0, near=UP), {"round": 1.0}, row(2, near=DOWN)]
    outcomes = [
        found and found.outcome for found in (give_verdict(rounds, TYPES, at) for at in (0, 1, 2, None))
    ]
    assert outcomes == ["rose", None, "over-optimised", "over-optimised"]
    assert (
        give_verdict([], TYPES) is None
        and give_verdict([{"round": 0.0, "eval_change": math.nan}], TYPES) is None
    )


@pytest.mark.parametrize(
    ("length", "kl", "reward", "flags"),
    [
        (-0.21, 0.0, UP, ["length"]),
        (0.21, 0.0, UP, ["length"]),
        (-0.19, 9.9, UP, []),
        (0.0, 10.0, UP, ["kl"]),  # 20 tokens an answer: 0.5 nats each
        (-0.5, 10.0, FLAT, []),
        (-0.5, 10.0, UP, ["length", "kl"]),
        (math.nan, math.nan, UP, []),
    ],
)
def test_answers_of_another_length_and_a_policy_far_away_are_flags(
    length: float, kl: float, reward: Bounds, flags: list[str]
) -> None:
    last = row(0, reward) | {
        "eval_length_mean": 16.0,
        "eval_length_change": length,
        "length_mean": 20.0,
        "kl_to_reference": kl,
    }
    verdict = give_verdict([last], {})
    assert verdict is not None and list(verdict.flags) == flags
    assert math.isnan(length) or verdict.length == pytest.approx((16.0 / (1 + length), 16.0))


def test_a_run_ends_when_the_same_judge_has_fallen_for_so_many_evaluations() -> None:
    one, other = row(0, near=DOWN, skill=UP), row(1, near=UP, skill=DOWN)
    assert fallen_for([one, other], TYPES, 2) is None and fallen_for([one, other], TYPES, 1) == "skill"
    both = [one, {"round": 1.0}, row(2, near=DOWN, skill=DOWN)]
    assert fallen_for(both, TYPES, 2) == "near" and fallen_for(both, TYPES, 3) is None


def test_the_best_round_is_the_first_that_is_rated_highest() -> None:
    rounds = [row(0, FLAT, near=UP), {"round": 1.0}, row(2, UP, near=UP), row(3, UP, near=DOWN)]
    assert (best_round(rounds, "near"), best_round(rounds, "reward"), best_round(rounds, "skill")) == (
        0,
        2,
        None,
    )


def test_a_run_keeps_its_verdict_and_the_policy_that_it_is_of(tmp_path: Path) -> None:
    judges = [{"type": "rule", "name": "skill", "ended": True}, {"type": "likeness", "name": "near"}]
    settings = tiny_run(
        tmp_path, evaluation__judges=judges, run__keep="best", run__keep_by="skill", run__rounds=3
    )
    config = parse_config(settings)
    with RunDirectory.open(config, resume=False) as store:
        for index, bounds in enumerate([FLAT, UP, DOWN]):
            finish_round(
                store, index, row(index, UP, skill=bounds, near=FLAT) | {"judge_near_agreement": 0.625}
            )
            run = RunReader(store.path)
            write_verdict(run)
            store.prune_checkpoints(1, kept_round(run))
    kept = json.loads((store.path / "verdict.json").read_text())
    assert (kept["verdict"], kept["round"], kept["finished"]) == ("rose by its reward alone", 1, True)
    assert kept["rules"]["skill"] == {
        "mean": pytest.approx(0.2),
        "change": pytest.approx(0.2),
        "low": 0.1,
        "high": 0.3,
        "n": 48,
        "wins": 0.75,
        "since": None,
        "agreement": None,
        "type": "rule",
    }
    assert kept["judges"]["near"]["agreement"] == 0.625 and list(kept["judges"]) == ["near"]
    assert (kept["kl"], kept["length"]["change"], kept["flags"]) == (None, None, {})
    assert kept["reward"]["low"] == 0.1
    made = KINDS["online"].output_of(config)
    assert (
        made == store.path / kept["checkpoint"]
        and made == store.path / "rounds/001/checkpoint"
        and made.is_dir()
    )
    there = [(store.path / f"rounds/00{index}/checkpoint").is_dir() for index in range(3)]
    assert there == [False, True, True], "the best is kept beside the last"
    last = give_verdict(RunReader(store.path).rounds, TYPES)
    assert last is not None and last.outcome == "over-optimised"
    found = run_verdict(RunReader(store.path))
    assert found is not None and found.outcome == kept["verdict"]


def test_a_run_that_a_judge_stopped_is_finished(tmp_path: Path) -> None:
    with RunDirectory.open(parse_config(tiny_run(tmp_path, run__rounds=3)), resume=False) as store:
        finish_round(store, 0, row(0))
        assert not RunReader(store.path).finished
        finish_round(store, 1, row(1) | {"stopped": 1.0})
    assert RunReader(store.path).finished
