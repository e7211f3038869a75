"""The evaluation table: held-out reward by policy, and benchmarks with their significance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ultramed_rl.report.answers import mean
from ultramed_rl.report.online_run import Change, OnlineRun, Policy
from ultramed_rl.report.outcome import policy_label
from ultramed_rl.report.words import DASH, MARKS, interval_words, number, percent, share_words, stars
from ultramed_rl.tracking.page import Heading, Note, PageTable, Part, Section

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
    sat = [policy for policy in run.policies if policy.benchmarks is not None]
    if sat:
        parts += [Heading("Benchmarks"), benchmark_table(run, sat), Note(_BENCHMARKS + MARKS)]
    else:
        parts.append(Note("No benchmarks were asked for (section benchmarks of the config)."))
    return Section("Evaluation", tuple(parts))


_BENCHMARKS = "Accuracy with its 95% interval (Wilson), against the starting policy on the same items. "


def benchmark_table(run: OnlineRun, sat: Sequence[Policy]) -> PageTable:
    """A row for each task and protocol, a column for each policy that sat them."""
    found: dict[str, dict[int, str]] = {}
    for policy in sat:
        metrics = run.rounds[policy.version - 1].metrics if policy.version else {}
        for result in (policy.benchmarks or {})["results"]:
            p_value = metrics.get(f"bench_{result['task']}_{result['protocol']}_p")
            found.setdefault(task_name(result), {})[policy.version] = score_words(result["score"], p_value)
    rows = tuple(
        (name, *(cells.get(policy.version, DASH) for policy in sat)) for name, cells in found.items()
    )
    return PageTable(("Task", *(policy_label(policy) for policy in sat)), rows)


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
        policy_label(policy),
        number(reward, ".2f"),
        DASH if change is None else interval_words(change.reward) + mark,
        DASH if change is None else share_words(change.wins),
        number(policy.length, ".1f"),
        percent(mean([float(a.refusal) for a in answers]) if answers else math.nan, 1),
        percent(mean([float(a.finish == "length") for a in answers]) if answers else math.nan, 1),
    )
