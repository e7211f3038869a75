"""Runs against each other, each against the first: on the same held-out prompts in pairs, where prompts and reward are the
same; and their page of verdicts, figures, tables of runs, stages, benchmarks, configs, times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.evaluation.statistics import Interval, McNemar, mcnemar, paired_bootstrap
from ultramed_rl.report.build import FOOTER, filled_sections, write_page
from ultramed_rl.report.figures import distribution_figure, interval_figure, line_figure
from ultramed_rl.report.health import phase_figure
from ultramed_rl.report.online_run import (
    RESAMPLES,
    Change,
    OnlineRun,
    Policy,
    compare_prompts,
    mean_over_prompts,
    read_online_run,
    won_prompts,
)
from ultramed_rl.report.setup import ABSENT, environment_rows, flatten, shown
from ultramed_rl.report.stage import score_table
from ultramed_rl.report.words import DASH, MARKS, duration, interval_words, number, share_words, spoken
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.store.run_reader import Metrics, RunReader, read_rows
from ultramed_rl.tracking.page import Callout, Heading, Note, PageTable, Parts, page_html

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
    section, costs = run.files.setting("reward", {}), ("micro_batch_tokens", "precision")
    return {f"reward.{key}": value for key, value in section.items() if key not in costs}


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


# -- the page ----------------------------------------------------------------------------------------------


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
    parts = _online_parts(files) if types == ["online"] else {"Figures": _figures(files)}
    parts |= {"Time": _times(files), "Config": _config(files), "Environment": _environment(files)}
    sections = filled_sections(parts)
    title = " against ".join([*others, first]) if len(files) < 4 else f"{len(files)} runs"
    return write_page(page_html(title, sections, f"{types[0]} · each against {first}", FOOTER), Path(output))


def _online_parts(files: Sequence[RunReader]) -> dict[str, Parts]:
    runs = [read_online_run(one) for one in files]
    pairs = [compare_runs(runs[0], other) for other in runs[1:]]
    return {
        "": _summary(runs, pairs),
        "Reward": _rewards(runs, pairs),
        "Wins over the start": _wins(runs, pairs),
        "KL, length, margin": _health(runs),
        "Benchmarks": _benchmarks(runs),
    }


def _summary(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Parts:
    """How each run compares with the first, in words, and each against its own start."""
    yield from (_verdict(pair, runs[0].name) for pair in pairs)
    rows = []
    for run in runs:
        folders = [run.files.path / "initial", *(one.path for one in run.rounds)]
        manifests = [manifest for folder in folders for manifest in run.files.manifests(folder).values()]
        # Where phases went on at once, each has its own seconds, which are no time of the run.
        seconds = [one["seconds"] for one in manifests if not isinstance(one["seconds"], dict)]
        rows.append(
            (
                run.name,
                f"{len(run.rounds)} of {run.files.setting('run.rounds', '?')}",
                interval_words(run.change.reward if run.change else None),
                share_words(run.change.wins if run.change else None),
                number(run.policies[-1].length, ".1f"),
                f"{run.total('pairs'):,.0f}",
                duration(math.fsum(seconds)),
            )
        )
    columns = ("Run", "rounds", "reward over start (95%)", "wins (95%)", "tokens", "pairs", "time in phases")
    yield PageTable(columns, rows)


def _verdict(pair: RunPair, first: str) -> Callout:
    if pair.change is None:
        heading = f"{pair.name}: its reward cannot be compared with that of {first}, since {pair.why_not}."
        line = pair.wins and (
            f"Prompts won over its own start, less those of {first}: {_points(pair.wins, ' points')}, 95% bootstrap interval, "
            f"paired over {pair.shared} shared prompts. Each run is judged by its own reward."
        )
        return Callout("plain", heading, [line] if line else [])
    change = pair.change.reward
    shared = f"paired over {pair.change.prompts} shared held-out prompts"
    lines = [
        f"Difference of the mean reward: {interval_words(change)}, 95% bootstrap interval, {shared}.",
        f"Its answers score higher on {share_words(pair.change.wins)} of these prompts, ties by halves.",
    ]
    if change.low > 0:
        return Callout("good", f"{pair.name} ends with a higher held-out reward than {first}.", lines)
    if change.high < 0:
        return Callout("bad", f"{pair.name} ends with a lower held-out reward than {first}.", lines)
    return Callout("plain", f"{pair.name} and {first} do not differ measurably in held-out reward.", lines)


def _points(wins: Interval, unit: str = "") -> str:
    return f"{100 * wins.mean:+.0f}{unit} ({100 * wins.low:+.0f} to {100 * wins.high:+.0f})"


def _rewards(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Parts:
    series = {}
    for run in runs:
        means = {policy.label: mean_over_prompts(policy.answers) for policy in run.policies}
        series[run.name] = {label: point for label, point in means.items() if point is not None}
    yield Heading("Mean held-out reward by policy")
    yield interval_figure({name: points for name, points in series.items() if points}, "reward")
    yield Heading("Held-out reward of each run's last policy")
    last = {run.name: [answer.reward for answer in run.policies[-1].answers] for run in runs}
    yield distribution_figure(last, "reward")
    yield Note(
        "Bars are 95% bootstrap intervals over prompts, of each run alone; the paired differences above are tighter."
    )
    apart = [pair for pair in pairs if pair.why_not]
    if apart:
        names = f"{', '.join(pair.name for pair in apart)} and {runs[0].name}"
        yield Note(f"Of {names} the levels are not comparable: {apart[0].why_not}.")


def _wins(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Parts:
    wins = {run.name: {label: change.wins for label, change in run.changes.items()} for run in runs}
    yield interval_figure({run: points for run, points in wins.items() if points}, "prompts won", shares=True)
    yield Note(
        "Prompts won over each run's own start, by its own reward; Wilson's 95% intervals, ties by halves."
    )
    rows = []
    for pair in pairs:
        mark = " *" if pair.wins and (pair.wins.low > 0 or pair.wins.high < 0) else ""
        rows.append((pair.name, str(pair.shared), DASH if pair.wins is None else _points(pair.wins) + mark))
    yield PageTable(("Run", "shared prompts", f"points over {runs[0].name} (95%)"), rows)


def _health(runs: Sequence[OnlineRun]) -> Parts:
    """KL, lengths and margins of each run by round."""
    for name, heading in (
        ("kl_to_reference", "KL from the reference, nats an answer"),
        ("length_mean", "Tokens a sample"),
        ("margin_mean", "Mean reward margin of the pairs"),
    ):
        series = {
            run.name: ([one.index for one in run.rounds], [one.number(name) for one in run.rounds])
            for run in runs
            if run.rounds and all(math.isfinite(one.number(name)) for one in run.rounds)
        }
        if series:
            figure = line_figure(series, "round")
            figure.update_xaxes(dtick=1 if max(len(run.rounds) for run in runs) < 20 else None)
            yield Heading(heading)
            yield figure
    rows = [(run.name, f"{'Flagged. ' if run.length.flagged else ''}{run.length.words}") for run in runs]
    yield PageTable(("Run", "length"), rows, words=True)


def _benchmarks(runs: Sequence[OnlineRun]) -> Parts:
    """The last examined policy of every run, against the first run's on the same items."""
    first, *others = runs
    compared = {run.name: list(compare_benchmarks(first, run).values()) for run in others}
    if first.benchmarked is None or not any(compared.values()):
        yield "No benchmark was sat by the first run and another on the same items."
        return
    scores: dict[str, list[tuple[Mapping[str, Any], float | None]]] = {}
    scores[first.name] = [(result, None) for result in first.benchmarked.benchmarks.values()]
    for name, results in compared.items():
        scores[name] = [(result, test.p_value if test else None) for result, test in results]
    yield score_table(scores)
    yield Note(
        f"Accuracy of each run's last examined policy with its 95% interval. {MARKS} Against {first.name}."
    )


def _figures(files: Sequence[RunReader]) -> Parts:
    """The figures that stages ended with, side by side; no test: samples' own figures are not kept."""
    figures = [_stage_figures(one) for one in files]
    names = list(dict.fromkeys(name for of_stage in figures for name in of_stage))[:_MOST_FIGURES]
    if not names:
        yield "None of these stages is finished."
        return
    rows = [(spoken(name), *(number(one.get(name), ",.5g") for one in figures)) for name in names]
    yield PageTable(("Figure", *(one.name for one in files)), rows)
    yield Note(
        "What each stage ended with. Differences have no interval: figures of single samples are not kept."
    )


def _stage_figures(files: RunReader) -> Metrics:
    made = files.manifests()
    for name in ("model", "records", "pairs"):
        if name in made:
            return read_numbers(made[name].get("metrics", {}))
    result: dict[str, Any] = files.json("results.json") or files.json("reward_bench.json") or {}
    if "policies" in result:
        return {f"{policy}: {k}": v for policy, row in result["policies"].items() for k, v in row.items()}
    return {name: row["accuracy"] for name, row in result.get("subsets", {}).items() if "accuracy" in row}


def _times(files: Sequence[RunReader]) -> Parts:
    """Seconds by phase, a bar for each run."""
    phases: dict[str, Metrics] = {}
    for one in files:
        total = phases.setdefault(one.name, {})
        for folder in (one.path, one.path / "initial", *sorted((one.path / "rounds").glob("[0-9]*"))):
            for name, seconds in one.seconds(folder).items():
                total[name] = total.get(name, 0.0) + (seconds if math.isfinite(seconds) else 0.0)
    if not any(phases.values()):
        yield "Nothing is finished yet."
        return
    yield phase_figure(phases)[0]
    yield Note(
        "Seconds in phases when they were computed, over all rounds. Machines may differ: see the environments."
    )


def _config(files: Sequence[RunReader]) -> Parts:
    """The settings in which the runs differ; of those of `run` the seed alone."""
    settings = [flatten(one.config) for one in files]
    rows = _differences([{k: v for k, v in one.items() if not k.startswith("run.")} for one in settings])
    seeds = [one["run.seed"] for one in settings if "run.seed" in one]
    if len(set(seeds)) > 1:
        rows.append(("run.seed", *map(str, seeds)))
    yield _table_of("Setting", files, rows)


def _environment(files: Sequence[RunReader]) -> Parts:
    """The versions and machines in which the runs differ."""
    environments = [one.environment() for one in files]
    unknown = [one.name for one, (_, recorded) in zip(files, environments, strict=True) if not recorded]
    if unknown:
        yield f"{', '.join(unknown)}: recorded no environment, so that nothing is known of it."
    if len(unknown) < max(1, len(files) - 1):
        rows = [dict(environment_rows(one)) if recorded else {} for one, recorded in environments]
        yield _table_of("What", files, _differences(rows))


def _differences(values: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each key whose values are not the same in all runs."""
    cells = {key: [row.get(key, ABSENT) for row in values] for key in sorted(set().union(*values))}
    return [(key, *map(shown, row)) for key, row in cells.items() if any(cell != row[0] for cell in row)]


def _table_of(what: str, files: Sequence[RunReader], rows: Sequence[tuple[str, ...]]) -> PageTable | str:
    return PageTable((what, *(one.name for one in files)), rows, words=True) if rows else "No difference."
