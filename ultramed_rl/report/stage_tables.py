"""Evaluation tables of stages: policies on benchmarks and held-out prompts, reward models on pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.report.exams import score_words, task_name
from ultramed_rl.report.figures import Axes, interval_figure
from ultramed_rl.report.words import DASH, MARKS, interval_words, number, percent
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.page import Callout, Note, PageTable, Part, Section


def table_of(what: str, values: Mapping[str, float]) -> PageTable:
    """Names and their numbers."""
    return PageTable((what, "value"), tuple((name, number(value, ",.5g")) for name, value in values.items()))


def evaluation_sections(files: RunReader) -> list[Section]:
    """Of policies: the verdict in words, then the tables."""
    found = files.json("results.json")
    if found is None:
        return [Section("", (Callout("plain", "This evaluation is not finished."),))]
    sections = [Section("", (Callout("plain", *evaluation_verdict(found)),))]
    if found.get("rewards"):
        sections.append(_rewards_section(found["rewards"]))
    if found.get("benchmarks"):
        sections.append(_benchmarks_section(found))
    return sections


def evaluation_verdict(found: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """How each policy compares with the first: what its intervals and tests leave no doubt of, and no more."""
    first, *others = found["policies"]
    if not others:
        return f"One policy was evaluated: {first}.", ("There is nothing to compare it with.",)
    lines = []
    for name in others:
        clear = [
            f"{'better' if row['change'] > 0 else 'worse'} on {row['task']}, {row['protocol']} ({row['change']:+.1%})"
            for row in found.get("comparisons", {}).get(name, [])
            if _differs(row)
        ]
        rewards = found.get("rewards", {}).get(name)
        if rewards and (rewards["change_low"] > 0 or rewards["change_high"] < 0):
            way = "higher" if rewards["change"] > 0 else "lower"
            clear.insert(0, f"{way} held-out reward ({rewards['change']:+.2f})")
        lines.append(
            f"{name}: {'; '.join(clear) if clear else 'no measurable difference on anything asked'}."
        )
    return f"Compared with {first}", tuple(lines)


def bench_sections(files: RunReader) -> list[Section]:
    """Of a reward model: accuracy by subset, and the averages."""
    found = files.json("reward_bench.json")
    if found is None:
        return [Section("", (Callout("plain", "This evaluation is not finished."),))]
    averages = found["averages"]
    said = [_average_words(name, average) for name, average in averages.items()]
    heading = f"{found['pairs']:,} pairs were judged by {found['model']}."
    subsets = found["subsets"]
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


def _benchmarks_section(found: Mapping[str, Any]) -> Section:
    policies: Sequence[str] = list(found["benchmarks"])
    cells: dict[str, dict[str, str]] = {}
    for policy in policies:
        tests = {(row["task"], row["protocol"]): row for row in found.get("comparisons", {}).get(policy, [])}
        for result in found["benchmarks"][policy]["results"]:
            test = tests.get((result["task"], result["protocol"]), {})
            cells.setdefault(task_name(result), {})[policy] = score_words(
                result["score"], test.get("p_value")
            )
    rows = tuple((name, *(row.get(policy, DASH) for policy in policies)) for name, row in cells.items())
    parts: list[Part] = [PageTable(("Task", *policies), rows)]
    return Section(
        "Benchmarks",
        (*parts, Note(f"Accuracy with Wilson's 95% interval, marks against {policies[0]}. {MARKS}")),
    )


def _differs(row: Mapping[str, Any]) -> bool:
    """By McNemar's test where there is one, else by the interval."""
    if row.get("p_value") is not None:
        return bool(row["p_value"] < 0.05)
    return bool(row["low"] > 0 or row["high"] < 0)


def _average_words(name: str, average: Mapping[str, Any]) -> str:
    missing = average.get("missing") or []
    without = f", without {len(missing)} of its parts" if missing else ""
    return f"{name}: {percent(average['accuracy'], 1)}{without}."


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
