"""Runs of one config that differ in their seed, taken together: each measure of the policies that they end with against their
start, with an interval over seeds and prompts. One seed's interval says nothing of training's own chance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ultramed_rl.config.base import flatten
from ultramed_rl.evaluation.metrics import means_by_prompt
from ultramed_rl.evaluation.statistics import Interval, seeds_bootstrap
from ultramed_rl.records import JudgedAnswer
from ultramed_rl.report.answers import RESAMPLES, by_prompt, mean, won_prompts
from ultramed_rl.report.online_run import OnlineRun, Policy, reward_difference
from ultramed_rl.store.tables import read_records
from ultramed_rl.tracking.tables import Columns, render_table

Values = Mapping[str, list[float]]  # by measure: of each prompt, or one number of the whole run
_PLACE = ("run.seed", "run.name", "run.directory", "run.scratch", "run.publish_every_s")
_SCALARS = re.compile(r"kl_to_reference|(judge|bench)_.*_change")


@dataclass(frozen=True)
class Measure:
    """One measure of several runs."""

    name: str
    by_run: tuple[float, ...]  # NaN of a run that lacks it
    interval: Interval | None  # over seeds and prompts; None where fewer than two runs have it

    @property
    def mean(self) -> float:
        return mean(self.by_run)


def run_values(run: OnlineRun) -> dict[str, list[float]]:
    """What each measure is of a run: the change from its start by held-out prompt, where that is kept; else one number.
    `net_wins` is 1 for a prompt whose reward is higher than at the start, -1 for one whose is lower."""
    first, last = run.policies[0], run.policy
    values: dict[str, list[float]] = {"reward_change": _changes(first.rewards, last.rewards)}
    values["net_wins"] = [2 * won - 1 for won in won_prompts(first.rewards, last.rewards).values()]
    values["tokens_change"] = _changes(_tokens(first), _tokens(last))
    before, after = _judged(first), _judged(last)
    for judge in before.keys() & after.keys():
        values[f"judge_{judge}_change"] = _changes(before[judge], after[judge])
    metrics = run.rounds[last.version - 1].metrics if last.version else {}
    scalars = {name: [value] for name, value in metrics.items() if _SCALARS.fullmatch(name)}
    return {name: of for name, of in (scalars | values).items() if of and all(map(math.isfinite, of))}


def seed_measures(runs: Sequence[OnlineRun]) -> list[Measure]:
    """Every measure of runs of one config, in the order of `run_values`, judges and benchmarks by their names."""
    values = [run_values(run) for run in runs]
    measures = []
    for name in _names(values):
        known = [of[name] for of in values if name in of]
        interval = seeds_bootstrap(known, RESAMPLES, 0) if len(known) > 1 else None
        measures.append(Measure(name, tuple(mean(of.get(name, ())) for of in values), interval))
    return measures


def seed_differences(first: Sequence[OnlineRun], other: Sequence[OnlineRun]) -> dict[str, Interval]:
    """Each measure of another config's runs, less that of the first's, where both have it in two runs or more."""
    sides = [[run_values(run) for run in runs] for runs in (first, other)]
    found = {}
    for name in _names([of for side in sides for of in side]):
        one, two = ([of[name] for of in side if name in of] for side in sides)
        if min(len(one), len(two)) > 1:
            found[name] = seeds_bootstrap(two, RESAMPLES, 0, less=one)
    return found


def group_by_config(runs: Sequence[OnlineRun]) -> list[list[OnlineRun]]:
    """The runs of each config, whatever their names and places, in which seeds differ; in the order of their first runs."""
    groups: dict[str, list[OnlineRun]] = {}
    for run in runs:
        own = {key: value for key, value in flatten(run.files.config).items() if key not in _PLACE}
        groups.setdefault(repr(sorted(own.items())), []).append(run)
    return list(groups.values())


def seed_columns(runs: Sequence[OnlineRun]) -> Columns:
    """Of a table of measures: each run's value by its seed, then all together."""
    seeds = [f"seed {run.files.setting('run.seed', '?')}" for run in runs]
    return [
        ("measure", "{name:words}"),
        *[(seed, f"{{by_run.{place}:+.3f}}") for place, seed in enumerate(seeds)],
        ("mean", "{mean:+.3f}"),
        ("95 % over seeds and prompts", "{interval.low:+.3f} to {interval.high:+.3f}"),
    ]


def render_seeds(runs: Sequence[OnlineRun], measures: Sequence[Measure]) -> str:
    """The table as plain text, and what it can't tell."""
    lines = [render_table(seed_columns(runs), measures)]
    if why := own_rewards(runs):
        lines.append(f"reward change: by each run's own reward ({why}); net wins have one scale for all")
    if len(runs) < 2:
        lines.append("1 seed: what another one would give can't be told; give two or more")
    return "\n".join(lines)


def seeds_to_json(runs: Sequence[OnlineRun], measures: Sequence[Measure]) -> dict[str, Any]:
    """For programs: the runs, and each measure by its name."""
    described = [
        {
            "seed": run.files.setting("run.seed"),
            "directory": str(run.files.path),
            "rounds": len(run.rounds),
            "verdict": (run.files.json("verdict.json") or {}).get("verdict"),
        }
        for run in runs
    ]
    numbers = {
        one.name: {
            "mean": one.mean,
            "low": one.interval and one.interval.low,
            "high": one.interval and one.interval.high,
            "by_run": list(one.by_run),
        }
        for one in measures
    }
    return {"runs": described, "measures": numbers, "own_rewards": bool(own_rewards(runs))}


def own_rewards(runs: Sequence[OnlineRun]) -> str:
    """In what the runs' rewards differ, as where each trains its own reward model; empty where they are the same."""
    return next((why for other in runs[1:] if (why := reward_difference(runs[0], other))), "")


def _names(values: Sequence[Values]) -> list[str]:
    names = dict.fromkeys(name for of in values for name in of)
    first = [n for n in ("reward_change", "net_wins", "tokens_change", "kl_to_reference") if n in names]
    return [*first, *sorted(names.keys() - set(first))]


def _changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[float]:
    return [after[p] - before[p] for p in sorted(before.keys() & after.keys())]


def _tokens(policy: Policy) -> dict[str, float]:
    return {answers[0].prompt_id: fmean(a.tokens for a in answers) for answers in by_prompt(policy.answers)}


def _judged(policy: Policy) -> dict[str, dict[str, float]]:
    """By judge, its mean score of each prompt that it has one of."""
    path = policy.path / "judges.parquet"
    judged = read_records(JudgedAnswer, path) if path.is_file() else []
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for one in judged for name in one.scores):
        means = means_by_prompt((one.prompt_id, one.scores.get(name, math.nan)) for one in judged)
        found[name] = {prompt: value for prompt, value in means.items() if math.isfinite(value)}
    return found
