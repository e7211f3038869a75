"""The page that compares runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ultramed_rl.report.answers import by_prompt
from ultramed_rl.report.build import FOOTER, write_page
from ultramed_rl.report.comparison import RunPair, compare_runs
from ultramed_rl.report.comparison_tables import (
    benchmark_section,
    config_section,
    environment_section,
    runs_table,
    stage_table,
    time_section,
)
from ultramed_rl.report.figures import Axes, distribution_figure, interval_figure, line_figure
from ultramed_rl.report.length import check_length
from ultramed_rl.report.online_run import OnlineRun, read_online_run
from ultramed_rl.report.outcome import mean_over_prompts, policy_label
from ultramed_rl.report.run_files import RunFiles, read_run
from ultramed_rl.report.words import DASH, interval_words, share_words
from ultramed_rl.tracking.page import page_html
from ultramed_rl.tracking.page_parts import Callout, Heading, Note, PageTable, Part, Section


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
    files = named_apart([read_run(Path(path)) for path in run_dirs])
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


def named_apart(files: Sequence[RunFiles]) -> list[RunFiles]:
    """Runs that share a name get their folder's, and its parent's, so that all names differ."""
    names = [one.name for one in files]
    if len(set(names)) == len(names):
        return list(files)
    apart: list[RunFiles] = []
    for place, one in enumerate(files):
        name = f"{one.path.parent.name}/{one.path.name}" if names.count(one.name) > 1 else one.name
        if any(other.name == name for other in apart):
            name = f"{name} ({place + 1})"
        config = {**one.config, "run": {**one.config.get("run", {}), "name": name}}
        apart.append(RunFiles(one.path, config, one.metrics))
    return apart


def _online_sections(files: Sequence[RunFiles]) -> list[Section]:
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
        means = {policy_label(p): mean_over_prompts(by_prompt(p.answers)) for p in run.policies}
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
    series = {run.files.name: {policy_label(p): change.wins for p, change in run.changes()} for run in runs}
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
