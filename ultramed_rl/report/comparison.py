"""Runs against each other: on the same held-out prompts in pairs, where prompts and reward are the same.

The first run is what the others are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.evaluation.statistics import Interval, McNemar, mcnemar, paired_bootstrap
from ultramed_rl.report.online_run import Change, OnlineRun, Policy, compare_prompts, win_shares

_RESAMPLES = 2000


@dataclass(frozen=True)
class RunPair:
    """A run against the first, by their last policies.

    `change` is of rewards on shared prompts, None where they cannot be compared for the reason `why_not`. `wins` is
    the change of the share of shared prompts won over each run's own start, which needs no common reward.
    """

    name: str
    shared: int
    change: Change | None
    why_not: str
    wins: Interval | None


@dataclass(frozen=True)
class BenchmarkPair:
    """One task and protocol under two runs' last policies; the test is None where items are not right or wrong."""

    task: str
    protocol: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    test: McNemar | None


def compare_runs(first: OnlineRun, other: OnlineRun) -> RunPair:
    """The other run's last policy against the first's."""
    why_not = reward_difference(first, other)
    one, two = first.policies[-1].prompt_rewards, other.policies[-1].prompt_rewards
    shared = sorted(one.keys() & two.keys())
    if not shared:
        why_not = why_not or "they share no held-out prompt"
    seed = int(first.files.setting("run.seed", 0))
    change = None if why_not else compare_prompts(one, two, _RESAMPLES, seed)
    return RunPair(other.name, len(shared), change, why_not, _wins_change(first, other, seed))


def reward_difference(first: OnlineRun, other: OnlineRun) -> str:
    """Why two runs' rewards are not on one scale; empty where they are."""
    one, two = _reward_identity(first), _reward_identity(other)
    differing = [key for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
    return f"they differ in {', '.join(differing)}" if differing else ""


def _reward_identity(run: OnlineRun) -> dict[str, Any]:
    """What makes the reward: the digest of a model that the run trained, else what its config names."""
    trained = run.files.manifests("initial").get("reward_model")
    if trained is not None:
        return {"the trained reward model's digest": trained["digest"]}
    section = run.files.setting("reward", {})
    costs = ("micro_batch_tokens", "precision")
    return {f"reward.{key}": value for key, value in section.items() if key not in costs}


def _wins_change(first: OnlineRun, other: OnlineRun, seed: int) -> Interval | None:
    one, two = wins_by_prompt(first), wins_by_prompt(other)
    shared = sorted(one.keys() & two.keys())
    if not shared:
        return None
    return paired_bootstrap([one[p] for p in shared], [two[p] for p in shared], _RESAMPLES, seed)


def wins_by_prompt(run: OnlineRun) -> dict[str, float]:
    """Of each held-out prompt whether the last policy beats the run's start on it: 1, a half for a tie, or 0."""
    start, end = run.policies[0].prompt_rewards, run.policies[-1].prompt_rewards
    shared = sorted(start.keys() & end.keys())
    shares = win_shares([start[p] for p in shared], [end[p] for p in shared])
    return dict(zip(shared, shares, strict=True))


def compare_benchmarks(first: OnlineRun, other: OnlineRun) -> list[BenchmarkPair]:
    """Every task and protocol that both runs' last examined policies sat, on equally many items."""
    one, two = last_benchmarked(first), last_benchmarked(other)
    # Which items a limit leaves is drawn by the seed.
    asked = [[run.files.setting(key) for key in ("benchmarks.tasks", "run.seed")] for run in (first, other)]
    if one is None or two is None or asked[0] != asked[1]:
        return []
    pairs = []
    theirs = {(result["task"], result["protocol"]): result for result in (two.benchmarks or {})["results"]}
    for result in (one.benchmarks or {})["results"]:
        task, protocol = key = result["task"], result["protocol"]
        if key in theirs and theirs[key]["score"]["items"] == result["score"]["items"]:
            test = _failure_test(one, two, f"{task}-{protocol}.jsonl", result["score"]["items"])
            pairs.append(BenchmarkPair(task, protocol, result["score"], theirs[key]["score"], test))
    return pairs


def last_benchmarked(run: OnlineRun) -> Policy | None:
    """The newest policy that sat the benchmarks."""
    return next((policy for policy in reversed(run.policies) if policy.benchmarks is not None), None)


def _failure_test(one: Policy, two: Policy, name: str, items: int) -> McNemar | None:
    """McNemar's test out of the lists of failures: items in neither are right on both sides."""
    before, after = _failures(one.path, name), _failures(two.path, name)
    if before is None or after is None:
        return None
    wrong = sorted(before | after)
    right = [True] * (items - len(wrong))
    return mcnemar([key not in before for key in wrong] + right, [key not in after for key in wrong] + right)


def _failures(folder: Path, name: str) -> set[str] | None:
    """Ids of questions that were not answered right; None where some are partly right, or nothing is kept."""
    path = folder / "benchmarks" / "failures" / name
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return None if any(row["score"] for row in rows) else {row["question_id"] for row in rows}
