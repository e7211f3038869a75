"""The page that compares runs, each against the first: verdicts, figures, tables of runs, stages, benchmarks, configs, times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultramed_rl.report.build import FOOTER, write_page
from ultramed_rl.report.comparison import (
    RunPair,
    compare_benchmarks,
    compare_runs,
    last_examined,
    total_seconds,
)
from ultramed_rl.report.cost import phase_figure
from ultramed_rl.report.evaluations import score_words, task_name
from ultramed_rl.report.figures import Axes, distribution_figure, interval_figure, line_figure
from ultramed_rl.report.health import check_length
from ultramed_rl.report.online_run import OnlineRun, read_online_run
from ultramed_rl.report.outcome import mean_over_prompts
from ultramed_rl.report.setup import ABSENT, environment_rows, flatten, shown
from ultramed_rl.report.words import DASH, MARKS, duration, interval_words, number, share_words, spoken
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.page import Callout, Heading, Note, PageTable, Part, Section, page_html

_MOST_FIGURES = 60


def runs_table(runs: Sequence[OnlineRun]) -> PageTable:
    """Each run against its own start."""
    columns = ("Run", "rounds", "reward over start (95%)", "wins (95%)", "tokens", "pairs", "time in phases")
    seconds = total_seconds(runs)
    rows = []
    for run in runs:
        change = run.change(run.policies[0], run.policies[-1]) if run.rounds else None
        rows.append(
            (
                run.files.name,
                f"{len(run.rounds)} of {run.files.setting('run.rounds', '?')}",
                DASH if change is None else interval_words(change.reward),
                DASH if change is None else share_words(change.wins),
                number(run.policies[-1].length, ".1f"),
                f"{run.total('pairs'):,.0f}",
                duration(seconds[run.files.name]),
            )
        )
    return PageTable(columns, tuple(rows))


def stage_table(files: Sequence[RunReader]) -> Section:
    """The figures that stages ended with, side by side; no test: samples' own figures are not kept."""
    figures = {one.name: _stage_figures(one) for one in files}
    names = list(dict.fromkeys(name for found in figures.values() for name in found))
    if not names:
        return Section("Figures", ("None of these stages is finished.",))
    rows = tuple(
        (spoken(name), *(number(figures[one.name].get(name), ",.5g") for one in files))
        for name in names[:_MOST_FIGURES]
    )
    note = Note(
        "What each stage ended with. Differences have no interval: figures of single samples are not kept."
    )
    return Section("Figures", (PageTable(("Figure", *(one.name for one in files)), rows), note))


def _stage_figures(files: RunReader) -> Metrics:
    made = files.manifests()
    for name in ("model", "records", "pairs"):
        if name in made:
            return read_numbers(made[name].get("metrics", {}))
    found: dict[str, Any] = files.json("results.json") or files.json("reward_bench.json") or {}
    if "policies" in found:
        return {f"{policy}: {k}": v for policy, row in found["policies"].items() for k, v in row.items()}
    return {name: row["accuracy"] for name, row in found.get("subsets", {}).items() if "accuracy" in row}


def benchmark_section(runs: Sequence[OnlineRun]) -> Section:
    """The last examined policy of every run, against the first run's on the same items."""
    first = last_examined(runs[0])
    tests = {run.files.name: compare_benchmarks(runs[0], run) for run in runs[1:]}
    if first is None or not any(tests.values()):
        text = "No benchmark was sat by the first run and another on the same items."
        return Section("Benchmarks", (text,))
    rows = []
    for result in (first.benchmarks or {})["results"]:
        cells = [score_words(result["score"], None)]
        for run in runs[1:]:
            same = (
                p
                for p in tests[run.files.name]
                if (p.task, p.protocol) == (result["task"], result["protocol"])
            )
            pair = next(same, None)
            p_value = pair.test.p_value if pair is not None and pair.test is not None else None
            cells.append(DASH if pair is None else score_words(pair.after, p_value))
        rows.append((task_name(result), *cells))
    table = PageTable(("Task", *(run.files.name for run in runs)), tuple(rows))
    note = Note(
        f"Accuracy of each run's last examined policy with its 95% interval. {MARKS} Against {runs[0].files.name}."
    )
    return Section("Benchmarks", (table, note))


def time_section(files: Sequence[RunReader]) -> Section:
    """Seconds by phase, a bar for each run."""
    phases = {one.name: _phases(one) for one in files}
    if not any(phases.values()):
        return Section("Time", ("Nothing is finished yet.",))
    note = Note(
        "Seconds in phases when they were computed, over all rounds. Machines may differ: see the environments."
    )
    return Section("Time", (phase_figure(phases)[0], note))


def _phases(files: RunReader) -> Metrics:
    total: Metrics = {}
    for folder in (files.path, files.path / "initial", *sorted((files.path / "rounds").glob("[0-9]*"))):
        for name, seconds in files.seconds(folder).items():
            total[name] = total.get(name, 0.0) + (seconds if math.isfinite(seconds) else 0.0)
    return total


def config_section(files: Sequence[RunReader]) -> Section:
    """The settings in which the runs differ."""
    flat = [flatten(one.config) for one in files]
    return _differences("Config", "Setting", files, flat, lambda key: key.startswith("run."))


def environment_section(files: Sequence[RunReader]) -> Section:
    """The versions and machines in which the runs differ."""
    found = [one.environment() for one in files]
    unknown = [one.name for one, (_, recorded) in zip(files, found, strict=True) if not recorded]
    flat = [dict(environment_rows(environment)) if recorded else {} for environment, recorded in found]
    section = _differences("Environment", "What", files, flat, lambda _: False)
    if not unknown:
        return section
    said = f"{', '.join(unknown)}: recorded no environment, so that nothing is known of it."
    if len(unknown) >= len(files) - 1:
        return Section(section.heading, (said,))
    return Section(section.heading, (said, *section.parts))


def _differences(
    heading: str,
    what: str,
    files: Sequence[RunReader],
    values: Sequence[Mapping[str, Any]],
    leave_out: Callable[[str], bool],
) -> Section:
    """A row for each key whose values are not the same in all runs."""
    keys = sorted({key for row in values for key in row})
    rows = []
    for key in keys:
        cells = [row.get(key, ABSENT) for row in values]
        if not leave_out(key) and any(cell != cells[0] for cell in cells):
            rows.append((key, *(shown(cell) for cell in cells)))
    seeds = [row["run.seed"] for row in values if "run.seed" in row]
    if len(set(seeds)) > 1:
        rows.append(("run.seed", *map(str, seeds)))
    if not rows:
        return Section(heading, ("No difference.",))
    parts: tuple[Part, ...] = (PageTable((what, *(one.name for one in files)), tuple(rows), words=True),)
    return Section(heading, parts)


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
    files = named_apart([RunReader.of(Path(path)) for path in run_dirs])
    twice = [
        one.path for place, one in enumerate(files) if one.path in [other.path for other in files[:place]]
    ]
    if twice:
        raise ValueError(f"{twice[0]}: given twice; name each run once")
    types = sorted({one.type for one in files})
    if len(types) > 1:
        raise ValueError(f"runs of types {', '.join(types)}: only runs of one type compare; name such")
    sections = _online_sections(files) if types == ["online"] else [stage_table(files), time_section(files)]
    sections += [config_section(files), environment_section(files)]
    title = (
        " against ".join([*(one.name for one in files[1:3]), files[0].name])
        if len(files) < 4
        else f"{len(files)} runs"
    )
    subtitle = f"{types[0]} · each against {files[0].name}"
    return write_page(page_html(title, sections, subtitle, FOOTER), Path(output))


def named_apart(files: Sequence[RunReader]) -> list[RunReader]:
    """Runs that share a name get their folder's, and its parent's, so that all names differ."""
    names = [one.name for one in files]
    if len(set(names)) == len(names):
        return list(files)
    apart: list[RunReader] = []
    for place, one in enumerate(files):
        name = f"{one.path.parent.name}/{one.path.name}" if names.count(one.name) > 1 else one.name
        if any(other.name == name for other in apart):
            name = f"{name} ({place + 1})"
        apart.append(RunReader(one.path, name))
    return apart


def _online_sections(files: Sequence[RunReader]) -> list[Section]:
    runs = [read_online_run(one) for one in files]
    pairs = [compare_runs(runs[0], other) for other in runs[1:]]
    return [
        _verdict(runs, pairs),
        _reward_section(runs, pairs),
        _wins_section(runs, pairs),
        _health_section(runs),
        benchmark_section(runs),
        time_section(files),
    ]


def _verdict(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Section:
    first = runs[0].files.name
    callouts = [pair_callout(pair, first) for pair in pairs]
    return Section("", (*callouts, runs_table(runs)))


def pair_callout(pair: RunPair, first: str) -> Callout:
    """How a run compares with the first, in words."""
    if pair.change is None:
        heading = f"{pair.name}: its reward cannot be compared with that of {first}, since {pair.why_not}."
        return Callout("plain", heading, _win_lines(pair, first))
    change = pair.change.reward
    shared = f"paired over {pair.change.prompts} shared held-out prompts"
    detail = f"Difference of the mean reward: {interval_words(change)}, 95% bootstrap interval, {shared}."
    wins = f"Its answers score higher on {share_words(pair.change.wins)} of these prompts, ties by halves."
    if not pair.change.significant:
        heading = f"{pair.name} and {first} do not differ measurably in held-out reward."
        return Callout("plain", heading, (detail, wins))
    better = change.low > 0
    heading = f"{pair.name} ends with a {'higher' if better else 'lower'} held-out reward than {first}."
    return Callout("good" if better else "bad", heading, (detail, wins))


def _win_lines(pair: RunPair, first: str) -> tuple[str, ...]:
    if pair.wins is None:
        return ()
    points = f"{100 * pair.wins.mean:+.0f} points ({100 * pair.wins.low:+.0f} to {100 * pair.wins.high:+.0f})"
    return (
        f"Prompts won over its own start, less those of {first}: {points}, 95% bootstrap interval, paired over "
        f"{pair.shared} shared prompts. Each run is judged by its own reward.",
    )


def _reward_section(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Section:
    series = {}
    for run in runs:
        means = {p.label: mean_over_prompts(p.answers) for p in run.policies}
        series[run.files.name] = {label: found for label, found in means.items() if found is not None}
    last = {run.files.name: [a.reward for a in run.policies[-1].answers] for run in runs}
    apart = [pair for pair in pairs if pair.why_not]
    parts: list[Part] = [
        Heading("Mean held-out reward by policy"),
        interval_figure(
            {name: points for name, points in series.items() if points}, Axes("", "reward"), None
        ),
        Heading("Held-out reward of each run's last policy"),
        distribution_figure(last, Axes("", "reward")),
        Note(
            "Bars are 95% bootstrap intervals over prompts, of each run alone; the paired differences above are tighter."
        ),
    ]
    if apart:
        names = ", ".join(pair.name for pair in apart)
        parts.append(
            Note(f"Of {names} and {runs[0].files.name} the levels are not comparable: {apart[0].why_not}.")
        )
    return Section("Reward", tuple(parts))


def _wins_section(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Section:
    series = {run.files.name: {p.label: change.wins for p, change in run.changes()} for run in runs}
    figure = interval_figure(
        {k: v for k, v in series.items() if v}, Axes("", "prompts won", percent=True), 0.5
    )
    figure.update_yaxes(range=[-0.02, 1.02])
    rows = tuple((pair.name, str(pair.shared), _points(pair)) for pair in pairs)
    columns = ("Run", "shared prompts", f"points over {runs[0].files.name} (95%)")
    note = Note(
        "Prompts won over each run's own start, by its own reward; Wilson's 95% intervals, ties by halves."
    )
    return Section("Wins over the start", (figure, note, PageTable(columns, rows)))


def _points(pair: RunPair) -> str:
    if pair.wins is None:
        return DASH
    mark = " *" if pair.wins.low > 0 or pair.wins.high < 0 else ""
    return f"{100 * pair.wins.mean:+.0f} ({100 * pair.wins.low:+.0f} to {100 * pair.wins.high:+.0f}){mark}"


def _health_section(runs: Sequence[OnlineRun]) -> Section:
    """KL, lengths and margins of each run by round."""
    parts: list[Part] = []
    for name, heading in (
        ("kl_to_reference", "KL from the reference, nats an answer"),
        ("length_mean", "Tokens a sample"),
        ("margin_mean", "Mean reward margin of the pairs"),
    ):
        series: Mapping[str, tuple[list[int], list[float]]] = {
            run.files.name: ([one.index for one in run.rounds], [one.metrics[name] for one in run.rounds])
            for run in runs
            if run.rounds and all(math.isfinite(one.metrics.get(name, math.nan)) for one in run.rounds)
        }
        if series:
            figure = line_figure(series, Axes("round", "", 280, zero=True))
            figure.update_xaxes(dtick=1 if max(len(run.rounds) for run in runs) < 20 else None)
            parts += [Heading(heading), figure]
    rows = tuple((run.files.name, _flag(run)) for run in runs)
    return Section("KL, length, margin", (*parts, PageTable(("Run", "length"), rows, words=True)))


def _flag(run: OnlineRun) -> str:
    check = check_length(run)
    return f"{'Flagged. ' if check.flagged else ''}{check.words}"
