"""Evaluation tables: policies on held-out prompts and benchmarks, of rounds and of stages; reward models on pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.report.answers import mean, share
from ultramed_rl.report.figures import Axes, interval_figure
from ultramed_rl.report.online_run import Change, OnlineRun, Policy
from ultramed_rl.report.words import DASH, MARKS, interval_words, number, percent, share_words, stars
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.page import Callout, Heading, Note, PageTable, Part, Section

_COLUMNS = ("Policy", "reward", "change (95%)", "wins (95%)", "tokens", "refused", "cut off")


def evaluation_section(run: OnlineRun) -> Section:
    """Every policy's held-out figures, and its benchmarks where it sat any."""
    changes = dict((policy.version, change) for policy, change in run.changes())
    rows = tuple(_held_out_row(policy, changes.get(policy.version)) for policy in run.policies)
    parts: list[Part] = [
        Heading("Held-out prompts"),
        PageTable(_COLUMNS, rows),
        Note(
            "* the 95% interval of the paired change from the start does not hold 0; not corrected for the number of rows."
        ),
    ]
    scores = {}
    for policy in run.policies:
        if policy.benchmarks is not None:
            metrics = run.rounds[policy.version - 1].metrics if policy.version else {}
            scores[policy.label] = [
                (result, metrics.get(f"bench_{result['task']}_{result['protocol']}_p"))
                for result in policy.benchmarks["results"]
            ]
    if scores:
        text = (
            f"Accuracy with its 95% interval (Wilson), against the starting policy on the same items. {MARKS}"
        )
        parts += [Heading("Benchmarks"), score_table(scores), Note(text)]
    else:
        parts.append(Note("No benchmarks were asked for (section benchmarks of the config)."))
    return Section("Evaluation", tuple(parts))


def score_table(scores: Mapping[str, Sequence[tuple[Mapping[str, Any], float | None]]]) -> PageTable:
    """A row for each task and protocol, a column for each policy with its results and their p-values."""
    cells: dict[str, dict[str, str]] = {}
    for policy, results in scores.items():
        for result, p_value in results:
            cells.setdefault(task_name(result), {})[policy] = score_words(result["score"], p_value)
    rows = tuple((name, *(row.get(policy, DASH) for policy in scores)) for name, row in cells.items())
    return PageTable(("Task", *scores), rows)


def task_name(result: Mapping[str, Any]) -> str:
    return f"{result['task']}, {result['protocol']} ({result['score']['items']})"


def score_words(score: Mapping[str, Any], p_value: float | None) -> str:
    """An accuracy, its interval and the mark of its difference."""
    low, high = percent(score["low"]), percent(score["high"])
    return f"{percent(score['accuracy'], 1)}{stars(p_value)} ({low} to {high})"


def _held_out_row(policy: Policy, change: Change | None) -> tuple[str, ...]:
    answers = policy.answers
    reward = mean([answer.reward for answer in answers])
    mark = "" if change is None or not change.significant else " *"
    return (
        policy.label,
        number(reward, ".2f"),
        DASH if change is None else interval_words(change.reward) + mark,
        DASH if change is None else share_words(change.wins),
        number(policy.length, ".1f"),
        percent(share(answers, lambda answer: answer.refusal), 1),
        percent(share(answers, lambda answer: answer.cut), 1),
    )


def table_of(what: str, values: Mapping[str, float]) -> PageTable:
    """Names and their numbers."""
    return PageTable((what, "value"), tuple((name, number(value, ",.5g")) for name, value in values.items()))


def evaluation_sections(files: RunReader) -> list[Section]:
    """Of policies: the verdict in words, then the tables."""
    results = files.json("results.json")
    if results is None:
        return [Section("", (Callout("plain", "This evaluation is not finished."),))]
    sections = [Section("", (Callout("plain", *evaluation_verdict(results)),))]
    if results.get("rewards"):
        sections.append(_rewards_section(results["rewards"]))
    if results.get("benchmarks"):
        sections.append(_benchmarks_section(results))
    return sections


def evaluation_verdict(results: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """How each policy compares with the first: what its intervals and tests leave no doubt of, and no more."""
    first, *others = results["policies"]
    if not others:
        return f"One policy was evaluated: {first}.", ("There is nothing to compare it with.",)
    lines = []
    for name in others:
        clear = [
            f"{'better' if row['change'] > 0 else 'worse'} on {row['task']}, {row['protocol']} ({row['change']:+.1%})"
            for row in results.get("comparisons", {}).get(name, [])
            if _differs(row)
        ]
        rewards = results.get("rewards", {}).get(name)
        if rewards and (rewards["change_low"] > 0 or rewards["change_high"] < 0):
            way = "higher" if rewards["change"] > 0 else "lower"
            clear.insert(0, f"{way} held-out reward ({rewards['change']:+.2f})")
        lines.append(
            f"{name}: {'; '.join(clear) if clear else 'no measurable difference on anything asked'}."
        )
    return f"Compared with {first}", tuple(lines)


def bench_sections(files: RunReader) -> list[Section]:
    """Of a reward model: accuracy by subset, and the averages."""
    results = files.json("reward_bench.json")
    if results is None:
        return [Section("", (Callout("plain", "This evaluation is not finished."),))]
    averages = results["averages"]
    said = []
    for name, average in averages.items():
        missing = average.get("missing") or []
        without = f", without {len(missing)} of its parts" if missing else ""
        said.append(f"{name}: {percent(average['accuracy'], 1)}{without}.")
    heading = f"{results['pairs']:,} pairs were judged by {results['model']}."
    subsets = results["subsets"]
    intervals = {
        name: Interval(row["accuracy"], row["low"], row["high"])
        for name, row in subsets.items()
        if "accuracy" in row
    }
    rows = tuple((name, *_subset_cells(row)) for name, row in subsets.items())
    table = PageTable(("Subset", "pairs", "accuracy (95%)", "ties", "not finite", "too long"), rows)
    figure = interval_figure({"accuracy": intervals}, Axes("", "accuracy", 300, percent=True), 0.5)
    figure.update_traces(mode="markers")
    figure.update_yaxes(range=[-0.02, 1.02])
    note = Note(
        "Wilson's 95% intervals; a tie counts a half, and a score that is no number is wrong. Chance is 50%."
    )
    return [
        Section("", (Callout("plain", heading, tuple(said)),)),
        Section("Accuracy", (*([figure] if intervals else []), table, note)),
    ]


def _rewards_section(rewards: Mapping[str, Mapping[str, float]]) -> Section:
    rows = []
    for name, row in rewards.items():
        change = Interval(row["change"], row["change_low"], row["change_high"])
        mark = " *" if change.low > 0 or change.high < 0 else ""
        rows.append(
            (
                name,
                number(row.get("reward_mean"), ".2f"),
                interval_words(change) + mark,
                percent(row.get("win_rate", math.nan)),
                number(row.get("length_mean"), ".1f"),
                percent(row.get("empty_share", math.nan), 1),
                percent(row.get("finished_share", math.nan), 1),
            )
        )
    columns = ("Policy", "reward", "change from the first (95%)", "wins", "tokens", "empty", "ended")
    note = Note("* the 95% interval of the paired bootstrap does not hold 0.")
    return Section("Held-out prompts", (PageTable(columns, tuple(rows)), note))


def _benchmarks_section(results: Mapping[str, Any]) -> Section:
    scores = {}
    for policy, of_policy in results["benchmarks"].items():
        rows = results.get("comparisons", {}).get(policy, [])
        p_values = {(row["task"], row["protocol"]): row.get("p_value") for row in rows}
        scores[policy] = [(one, p_values.get((one["task"], one["protocol"]))) for one in of_policy["results"]]
    note = Note(f"Accuracy with Wilson's 95% interval, marks against {next(iter(scores))}. {MARKS}")
    return Section("Benchmarks", (score_table(scores), note))


def _differs(row: Mapping[str, Any]) -> bool:
    """By McNemar's test where there is one, else by the interval."""
    if row.get("p_value") is not None:
        return bool(row["p_value"] < 0.05)
    return bool(row["low"] > 0 or row["high"] < 0)


def _subset_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    known = "accuracy" in row
    accuracy = (
        f"{percent(row['accuracy'], 1)} ({percent(row['low'])} to {percent(row['high'])})" if known else DASH
    )
    return (
        str(row["pairs"]),
        accuracy,
        *(str(row.get(name, 0)) for name in ("ties", "non_finite", "too_long")),
    )
