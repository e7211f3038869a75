"""Runs against each other, each against the first: on the same held-out prompts in pairs, where prompts and reward are the
same. html/comparison.html.jinja is their page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ultramed_rl.config.base import flatten
from ultramed_rl.evaluation.statistics import Interval, McNemar, mcnemar, paired_bootstrap
from ultramed_rl.report.answers import RESAMPLES, Change, compare_prompts, won_prompts
from ultramed_rl.report.build import FOOTER, HTML, TOOLS
from ultramed_rl.report.contents import ABSENT, Scores, environment_rows, numbers_of, shown
from ultramed_rl.report.online_run import OnlineRun, Policy, phase_times, read_online_run, reward_difference
from ultramed_rl.report.seeds import Measure, group_by_config, seed_columns, seed_differences, seed_measures
from ultramed_rl.store.atomic import write_text
from ultramed_rl.store.run_reader import Metrics, RunReader, read_rows
from ultramed_rl.tracking.page import page_html
from ultramed_rl.tracking.tables import Columns, spoken

_MOST_FIGURES = 60


@dataclass(frozen=True)
class RunPair:
    """A run against the first, by their last policies, on held-out prompts that they share."""

    name: str
    shared: int
    change: Change | None  # of rewards; None where they cannot be compared
    why_not: str
    # Change of the share of prompts won over each run's own start, which needs no common reward.
    wins: Interval | None

    @property
    def points(self) -> Interval | None:
        return self.wins and Interval(100 * self.wins.mean, 100 * self.wins.low, 100 * self.wins.high)


def compare_runs(first: OnlineRun, other: OnlineRun) -> RunPair:
    """The other run's last policy against the first's."""
    one, two = first.policies[-1].rewards, other.policies[-1].rewards
    shared = len(one.keys() & two.keys())
    why_not = reward_difference(first, other) or ("" if shared else "they share no held-out prompt")
    seed = int(first.files.setting("run.seed", 0))
    change = None if why_not else compare_prompts(one, two, RESAMPLES, seed)
    before, after = (won_prompts(run.policies[0].rewards, run.policies[-1].rewards) for run in (first, other))
    wins, prompts = None, sorted(before.keys() & after.keys())
    if prompts:
        wins = paired_bootstrap([before[p] for p in prompts], [after[p] for p in prompts], RESAMPLES, seed)
    return RunPair(other.name, shared, change, why_not, wins)


def compare_benchmarks(
    first: OnlineRun, other: OnlineRun
) -> dict[tuple[str, str], tuple[dict[str, Any], McNemar | None]]:
    """The other run's results in every task and protocol that both runs' last examined policies sat, on equally many items,
    with the test against the first's: None where items are not right or wrong."""
    one, two = first.benchmarked, other.benchmarked
    # Which items a limit leaves is drawn by the seed.
    asked = [[run.files.setting(key) for key in ("benchmarks.tasks", "run.seed")] for run in (first, other)]
    if one is None or two is None or asked[0] != asked[1]:
        return {}
    compared = {}
    for key, result in one.benchmarks.items():
        theirs, items = two.benchmarks.get(key), result["score"]["items"]
        if theirs is not None and theirs["score"]["items"] == items:
            compared[key] = theirs, _failure_test(one, two, "-".join(key), items)
    return compared


def _failure_test(one: Policy, two: Policy, benchmark: str, items: int) -> McNemar | None:
    """McNemar's test out of the lists of failures: items in neither are right on both sides. None where some are partly
    right, or no list is kept."""
    failures = []
    for policy in (one, two):
        path = policy.path / "benchmarks" / "failures" / f"{benchmark}.jsonl"
        rows = list(read_rows(path))
        if not path.is_file() or any(row["score"] for row in rows):
            return None
        failures.append({row["question_id"] for row in rows})
    wrong = sorted(failures[0] | failures[1])
    before, after = (
        [key not in of_one for key in wrong] + [True] * (items - len(wrong)) for of_one in failures
    )
    return mcnemar(before, after)


def write_comparison(run_dirs: Sequence[Path], output: Path) -> Path:
    """Write a page that compares runs of one type, each against the first; returns its path.

    Raises:
        ValueError: fewer than two runs, two of different types, or as `write_report`.
        RuntimeError: the disk is full.
    """
    if len(run_dirs) < 2:
        raise ValueError(
            f"{len(run_dirs)} runs given: a comparison needs two or more; name another run's folder"
        )
    files: list[RunReader] = []
    given = [RunReader.of(Path(path)) for path in run_dirs]
    for one in given:
        # Runs that share a name get their folder's, and its parent's, so that all names differ.
        shared = sum(other.name == one.name for other in given) > 1
        name = f"{one.path.parent.name}/{one.path.name}" if shared else one.name
        if any(other.name == name for other in files):
            name = f"{name} ({len(files) + 1})"
        if any(other.path == one.path for other in files):
            raise ValueError(f"{one.path}: given twice; name each run once")
        files.append(RunReader(one.path, name))
    types = sorted({one.type for one in files})
    if len(types) > 1:
        raise ValueError(f"runs of types {', '.join(types)}: only runs of one type compare; name such")
    first, *others = (one.name for one in files)
    comparison = RunComparison(files, [read_online_run(one) for one in files] if types == ["online"] else [])
    title = " against ".join([*others, first]) if len(files) < 4 else f"{len(files)} runs"
    subtitle = f"{types[0]} · each against {first}"
    html = page_html(HTML / "comparison.html.jinja", title, subtitle, FOOTER, compared=comparison, **TOOLS)
    write_text(Path(output), html)
    return Path(output)


@dataclass(frozen=True)
class SeedGroup:
    """A config's runs at several seeds, and what they say together."""

    runs: Sequence[OnlineRun]
    measures: Sequence[Measure]
    differences: Mapping[str, Interval]  # by measure, from the first group's
    why_not: str  # the reward's difference says nothing; empty where it does

    @property
    def label(self) -> str:
        return ", ".join(run.name for run in self.runs)

    @property
    def columns(self) -> Columns:
        return seed_columns(self.runs)


@dataclass(frozen=True)
class RunComparison:
    """What the page shows of runs; `online` are the same read back, where they are online runs."""

    files: Sequence[RunReader]
    online: Sequence[OnlineRun]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.files]

    @cached_property
    def pairs(self) -> list[RunPair]:
        return [compare_runs(self.online[0], other) for other in self.online[1:]]

    @property
    def seeds(self) -> list[SeedGroup]:
        """The configs of which several runs are given, that differ in their seed; each against the first of them."""
        groups = [group for group in group_by_config(self.online) if len(group) > 1]
        return [
            SeedGroup(
                group,
                seed_measures(group),
                seed_differences(groups[0], group) if number else {},
                reward_difference(groups[0][0], group[0]) if number else "",
            )
            for number, group in enumerate(groups)
        ]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """Each online run and its numbers. Where phases went on at once, each has its own seconds, which are no time of the
        run: they are left out."""
        rows = []
        for run in self.online:
            folders = [run.files.path / "initial", *(one.path for one in run.rounds)]
            manifests = [made for folder in folders for made in run.files.manifests(folder).values()]
            seconds = (made["seconds"] for made in manifests if not isinstance(made["seconds"], dict))
            rounds = f"{len(run.rounds)} of {run.files.setting('run.rounds', '?')}"
            numbers = {"rounds": rounds, "pairs": run.total("pairs"), "seconds": math.fsum(seconds)}
            rows.append({"run": run, "last": run.policies[-1], **numbers})
        return rows

    @property
    def rewards(self) -> dict[str, list[tuple[str, Interval]]]:
        return {
            run.name: [(p.label, p.mean_reward) for p in run.policies if p.mean_reward is not None]
            for run in self.online
        }

    @property
    def last_rewards(self) -> dict[str, list[float]]:
        return {run.name: run.policies[-1].values("reward") for run in self.online}

    @property
    def wins(self) -> dict[str, dict[str, Interval]]:
        """The share of prompts that each run's policies won over its own start."""
        return {run.name: run.wins for run in self.online if run.wins}

    def by_round(self, metric: str) -> dict[str, tuple[list[str], list[float]]]:
        """A metric of each run's rounds; a run that lacks it in one is left out."""
        series = {run.name: run.numbers(metric) for run in self.online if run.rounds}
        return {name: line for name, line in series.items() if all(map(math.isfinite, line[1]))}

    @property
    def benchmarks(self) -> Scores:
        """The last benchmarked policy of every run, with its test against the first run's on the same items; none without a
        second run on the same items."""
        first, *others = self.online
        compared = {run.name: compare_benchmarks(first, run).values() for run in others}
        if first.benchmarked is None or not any(compared.values()):
            return {}
        scores: dict[str, list[tuple[Mapping[str, Any], float | None]]] = {}
        scores[first.name] = [(result, None) for result in first.benchmarked.benchmarks.values()]
        for name, results in compared.items():
            scores[name] = [(result, test.p_value if test else None) for result, test in results]
        return scores

    @property
    def figures(self) -> list[tuple[Any, ...]]:
        """What each stage ended with, side by side: a figure's name and its value in each."""
        of_stages = [_stage_figures(one) for one in self.files]
        names = list(dict.fromkeys(name for of_stage in of_stages for name in of_stage))[:_MOST_FIGURES]
        return [(spoken(name), *(of_stage.get(name) for of_stage in of_stages)) for name in names]

    @property
    def phases(self) -> dict[str, dict[str, float]]:
        """Seconds by phase of each run, over all rounds."""
        phases: dict[str, dict[str, float]] = {}
        for one in self.files:
            totals = phases.setdefault(one.name, {})
            for folder in (one.path, one.path / "initial", *sorted((one.path / "rounds").glob("[0-9]*"))):
                for name, seconds in phase_times(one, folder).items():
                    if math.isfinite(seconds):
                        totals[name] = totals.get(name, 0.0) + seconds
        return phases if any(phases.values()) else {}

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """The settings in which the runs differ; of those of `run` the seed alone."""
        settings = [flatten(one.config) for one in self.files]
        told = [{k: v for k, v in one.items() if not k.startswith(("run.", "type"))} for one in settings]
        rows = _differences(told)
        seeds = [one["run.seed"] for one in settings if "run.seed" in one]
        return [*rows, ("run.seed", *map(str, seeds))] if len(set(seeds)) > 1 else rows

    @property
    def environments(self) -> tuple[list[str], list[tuple[str, ...]] | None]:
        """The runs that recorded no environment, and in what those of the others differ; None where fewer than two did."""
        environments = [one.environment() for one in self.files]
        unknown = [one.name for one, (_, known) in zip(self.files, environments, strict=True) if not known]
        rows = [dict(environment_rows(described)) if known else {} for described, known in environments]
        return unknown, _differences(rows) if len(unknown) < max(1, len(rows) - 1) else None


def _stage_figures(files: RunReader) -> Metrics:
    for name in ("model", "records", "pairs"):
        if (numbers := numbers_of(files, name)) is not None:
            return numbers
    result: dict[str, Any] = files.json("results.json") or files.json("reward_bench.json") or {}
    if "policies" in result:
        return {f"{policy}: {k}": v for policy, row in result["policies"].items() for k, v in row.items()}
    return {name: row["accuracy"] for name, row in result.get("subsets", {}).items() if "accuracy" in row}


def _differences(values: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each key whose values are not the same in all runs."""
    cells = {key: [row.get(key, ABSENT) for row in values] for key in sorted(set().union(*values))}
    return [(key, *map(shown, row)) for key, row in cells.items() if any(cell != row[0] for cell in row)]
