"""The page that compares runs, each against the first: verdicts, figures, tables of runs, stages, benchmarks, configs, times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.report.answers import by_prompt
from ultramed_rl.report.build import FOOTER, write_page
from ultramed_rl.report.comparison import RunPair, compare_benchmarks, compare_runs, last_benchmarked
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
    paths = [one.path for one in files]
    twice = [path for place, path in enumerate(paths) if path in paths[:place]]
    if twice:
        raise ValueError(f"{twice[0]}: given twice; name each run once")
    types = sorted({one.type for one in files})
    if len(types) > 1:
        raise ValueError(f"runs of types {', '.join(types)}: only runs of one type compare; name such")
    first, *others = (one.name for one in files)
    sections = _online_sections(files) if types == ["online"] else [stage_table(files)]
    sections += [time_section(files), config_section(files), environment_section(files)]
    title = " against ".join([*others, first]) if len(files) < 4 else f"{len(files)} runs"
    return write_page(page_html(title, sections, f"{types[0]} · each against {first}", FOOTER), Path(output))


def named_apart(files: Sequence[RunReader]) -> list[RunReader]:
    """Runs that share a name get their folder's, and its parent's, so that all names differ."""
    names = [one.name for one in files]
    apart: list[RunReader] = []
    for place, one in enumerate(files):
        name = f"{one.path.parent.name}/{one.path.name}" if names.count(one.name) > 1 else one.name
        if any(other.name == name for other in apart):
            name = f"{name} ({place + 1})"
        apart.append(RunReader(one.path, name))
    return apart


# -- online runs -------------------------------------------------------------------------------------------


def _online_sections(files: Sequence[RunReader]) -> list[Section]:
    runs = [read_online_run(one) for one in files]
    pairs = [compare_runs(runs[0], other) for other in runs[1:]]
    verdicts = [pair_callout(pair, runs[0].name) for pair in pairs]
    return [
        Section("", (*verdicts, runs_table(runs))),
        _reward_section(runs, pairs),
        _wins_section(runs, pairs),
        _health_section(runs),
        benchmark_section(runs),
    ]


def pair_callout(pair: RunPair, first: str) -> Callout:
    """How a run compares with the first, in words."""
    if pair.change is None:
        heading = f"{pair.name}: its reward cannot be compared with that of {first}, since {pair.why_not}."
        if pair.wins is None:
            return Callout("plain", heading)
        line = (
            f"Prompts won over its own start, less those of {first}: {_points(pair.wins, ' points')}, 95% bootstrap interval, "
            f"paired over {pair.shared} shared prompts. Each run is judged by its own reward."
        )
        return Callout("plain", heading, (line,))
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


def _points(wins: Interval, unit: str = "") -> str:
    return f"{100 * wins.mean:+.0f}{unit} ({100 * wins.low:+.0f} to {100 * wins.high:+.0f})"


def runs_table(runs: Sequence[OnlineRun]) -> PageTable:
    """Each run against its own start."""
    columns = ("Run", "rounds", "reward over start (95%)", "wins (95%)", "tokens", "pairs", "time in phases")
    rows = []
    for run in runs:
        change = run.change(run.policies[0], run.policies[-1]) if run.rounds else None
        folders = [run.files.path / "initial", *(one.path for one in run.rounds)]
        manifests = [manifest for folder in folders for manifest in run.files.manifests(folder).values()]
        # Where phases went on at once, each has its own seconds, which are no time of the run.
        seconds = [one["seconds"] for one in manifests if not isinstance(one["seconds"], dict)]
        rows.append(
            (
                run.name,
                f"{len(run.rounds)} of {run.files.setting('run.rounds', '?')}",
                DASH if change is None else interval_words(change.reward),
                DASH if change is None else share_words(change.wins),
                number(run.policies[-1].length, ".1f"),
                f"{run.total('pairs'):,.0f}",
                duration(math.fsum(seconds)),
            )
        )
    return PageTable(columns, tuple(rows))


def _reward_section(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Section:
    series = {}
    for run in runs:
        means = {policy.label: mean_over_prompts(by_prompt(policy.answers)) for policy in run.policies}
        series[run.name] = {label: point for label, point in means.items() if point is not None}
    last = {run.name: [answer.reward for answer in run.policies[-1].answers] for run in runs}
    parts: list[Part] = [
        Heading("Mean held-out reward by policy"),
        interval_figure({name: points for name, points in series.items() if points}, Axes("", "reward")),
        Heading("Held-out reward of each run's last policy"),
        distribution_figure(last, Axes("", "reward")),
        Note(
            "Bars are 95% bootstrap intervals over prompts, of each run alone; the paired differences above are tighter."
        ),
    ]
    apart = [pair for pair in pairs if pair.why_not]
    if apart:
        names = f"{', '.join(pair.name for pair in apart)} and {runs[0].name}"
        parts.append(Note(f"Of {names} the levels are not comparable: {apart[0].why_not}."))
    return Section("Reward", tuple(parts))


def _wins_section(runs: Sequence[OnlineRun], pairs: Sequence[RunPair]) -> Section:
    series = {run.name: {policy.label: change.wins for policy, change in run.changes()} for run in runs}
    compared = {name: wins for name, wins in series.items() if wins}
    figure = interval_figure(compared, Axes("", "prompts won", percent=True), 0.5)
    figure.update_yaxes(range=[-0.02, 1.02])
    rows = []
    for pair in pairs:
        mark = " *" if pair.wins and (pair.wins.low > 0 or pair.wins.high < 0) else ""
        rows.append((pair.name, str(pair.shared), DASH if pair.wins is None else _points(pair.wins) + mark))
    table = PageTable(("Run", "shared prompts", f"points over {runs[0].name} (95%)"), tuple(rows))
    note = Note(
        "Prompts won over each run's own start, by its own reward; Wilson's 95% intervals, ties by halves."
    )
    return Section("Wins over the start", (figure, note, table))


def _health_section(runs: Sequence[OnlineRun]) -> Section:
    """KL, lengths and margins of each run by round."""
    parts: list[Part] = []
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
            figure = line_figure(series, Axes("round", "", 280, zero=True))
            figure.update_xaxes(dtick=1 if max(len(run.rounds) for run in runs) < 20 else None)
            parts += [Heading(heading), figure]
    checks = [(run.name, check_length(run)) for run in runs]
    rows = tuple((name, f"{'Flagged. ' if check.flagged else ''}{check.words}") for name, check in checks)
    return Section("KL, length, margin", (*parts, PageTable(("Run", "length"), rows, words=True)))


def benchmark_section(runs: Sequence[OnlineRun]) -> Section:
    """The last examined policy of every run, against the first run's on the same items."""
    first = last_benchmarked(runs[0])
    tests = [
        {(pair.task, pair.protocol): pair for pair in compare_benchmarks(runs[0], run)} for run in runs[1:]
    ]
    if first is None or not any(tests):
        text = "No benchmark was sat by the first run and another on the same items."
        return Section("Benchmarks", (text,))
    rows = []
    for result in (first.benchmarks or {})["results"]:
        cells = [score_words(result["score"], None)]
        for of_run in tests:
            pair = of_run.get((result["task"], result["protocol"]))
            p_value = pair.test.p_value if pair is not None and pair.test is not None else None
            cells.append(DASH if pair is None else score_words(pair.after, p_value))
        rows.append((task_name(result), *cells))
    table = PageTable(("Task", *(run.name for run in runs)), tuple(rows))
    note = Note(
        f"Accuracy of each run's last examined policy with its 95% interval. {MARKS} Against {runs[0].name}."
    )
    return Section("Benchmarks", (table, note))


# -- runs of any type --------------------------------------------------------------------------------------


def stage_table(files: Sequence[RunReader]) -> Section:
    """The figures that stages ended with, side by side; no test: samples' own figures are not kept."""
    figures = [_stage_figures(one) for one in files]
    names = list(dict.fromkeys(name for of_stage in figures for name in of_stage))[:_MOST_FIGURES]
    if not names:
        return Section("Figures", ("None of these stages is finished.",))
    rows = tuple((spoken(name), *(number(one.get(name), ",.5g") for one in figures)) for name in names)
    note = Note(
        "What each stage ended with. Differences have no interval: figures of single samples are not kept."
    )
    return Section("Figures", (PageTable(("Figure", *(one.name for one in files)), rows), note))


def _stage_figures(files: RunReader) -> Metrics:
    made = files.manifests()
    for name in ("model", "records", "pairs"):
        if name in made:
            return read_numbers(made[name].get("metrics", {}))
    result: dict[str, Any] = files.json("results.json") or files.json("reward_bench.json") or {}
    if "policies" in result:
        return {f"{policy}: {k}": v for policy, row in result["policies"].items() for k, v in row.items()}
    return {name: row["accuracy"] for name, row in result.get("subsets", {}).items() if "accuracy" in row}


def time_section(files: Sequence[RunReader]) -> Section:
    """Seconds by phase, a bar for each run."""
    phases: dict[str, Metrics] = {}
    for one in files:
        total = phases.setdefault(one.name, {})
        for folder in (one.path, one.path / "initial", *sorted((one.path / "rounds").glob("[0-9]*"))):
            for name, seconds in one.seconds(folder).items():
                total[name] = total.get(name, 0.0) + (seconds if math.isfinite(seconds) else 0.0)
    if not any(phases.values()):
        return Section("Time", ("Nothing is finished yet.",))
    note = Note(
        "Seconds in phases when they were computed, over all rounds. Machines may differ: see the environments."
    )
    return Section("Time", (phase_figure(phases)[0], note))


def config_section(files: Sequence[RunReader]) -> Section:
    """The settings in which the runs differ; of those of `run` the seed alone."""
    settings = [flatten(one.config) for one in files]
    rows = _differences([{k: v for k, v in one.items() if not k.startswith("run.")} for one in settings])
    seeds = [one["run.seed"] for one in settings if "run.seed" in one]
    if len(set(seeds)) > 1:
        rows.append(("run.seed", *map(str, seeds)))
    return Section("Config", (_table_of("Setting", files, rows),))


def environment_section(files: Sequence[RunReader]) -> Section:
    """The versions and machines in which the runs differ."""
    environments = [one.environment() for one in files]
    unknown = [one.name for one, (_, recorded) in zip(files, environments, strict=True) if not recorded]
    words = f"{', '.join(unknown)}: recorded no environment, so that nothing is known of it."
    if unknown and len(unknown) >= len(files) - 1:
        return Section("Environment", (words,))
    rows = _differences([dict(environment_rows(one)) if recorded else {} for one, recorded in environments])
    return Section("Environment", (*([words] if unknown else []), _table_of("What", files, rows)))


def _differences(values: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each key whose values are not the same in all runs."""
    cells = {key: [row.get(key, ABSENT) for row in values] for key in sorted(set().union(*values))}
    return [(key, *map(shown, row)) for key, row in cells.items() if any(cell != row[0] for cell in row)]


def _table_of(what: str, files: Sequence[RunReader], rows: Sequence[tuple[str, ...]]) -> PageTable | str:
    if not rows:
        return "No difference."
    return PageTable((what, *(one.name for one in files)), tuple(rows), words=True)
