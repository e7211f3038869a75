"""Tables of a comparison: runs, stages, benchmarks, configs, times, environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ultramed_rl.report.comparison import compare_benchmarks, last_examined, total_seconds
from ultramed_rl.report.cost import phase_words
from ultramed_rl.report.exams import score_words
from ultramed_rl.report.figures import Axes, stacked_figure
from ultramed_rl.report.online_run import OnlineRun
from ultramed_rl.report.presets import ABSENT, flatten
from ultramed_rl.report.setup import environment_rows, shown
from ultramed_rl.report.words import DASH, MARKS, duration, interval_words, number, share_words, spoken
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.page import Note, PageTable, Part, Section

_MOST_FIGURES = 60


def runs_table(runs: Sequence[OnlineRun]) -> PageTable:
    """Each run against its own start."""
    columns = ("Run", "rounds", "reward over start (95%)", "wins (95%)", "tokens", "pairs", "time in phases")
    seconds = total_seconds(runs)
    rows = []
    for run in runs:
        change = run.change(run.policies[0], run.policies[-1]) if run.rounds else None
        pairs = sum(one.metrics.get("pairs", 0.0) for one in run.rounds)
        rows.append(
            (
                run.files.name,
                f"{len(run.rounds)} of {run.files.setting('run.rounds', '?')}",
                DASH if change is None else interval_words(change.reward),
                DASH if change is None else share_words(change.wins),
                number(run.policies[-1].length, ".1f"),
                f"{pairs:,.0f}",
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
        rows.append((f"{result['task']}, {result['protocol']} ({result['score']['items']})", *cells))
    table = PageTable(("Task", *(run.files.name for run in runs)), tuple(rows))
    note = Note(
        f"Accuracy of each run's last examined policy with its 95% interval. {MARKS} Against {runs[0].files.name}."
    )
    return Section("Benchmarks", (table, note))


def time_section(files: Sequence[RunReader]) -> Section:
    """Seconds by phase, a bar for each run."""
    found = [_phases(one) for one in files]
    names = list(dict.fromkeys(name for seconds in found for name in seconds))
    parts = {phase_words(name): [seconds.get(name, 0.0) for seconds in found] for name in names}
    figure = stacked_figure([one.name for one in files], parts, Axes("seconds", ""))
    note = Note(
        "Seconds in phases when they were computed, over all rounds. Machines may differ: see the environments."
    )
    return Section("Time", (figure, note) if names else ("Nothing is finished yet.",))


def _phases(files: RunReader) -> Metrics:
    folders = [files.path, files.path / "initial", *sorted((files.path / "rounds").glob("[0-9]*"))]
    total: Metrics = {}
    for folder in folders:
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
