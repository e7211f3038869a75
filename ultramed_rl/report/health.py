"""Sections on what can go wrong beside the reward, and on what a run took: whether length is paid, refusals, empty and cut
answers, poor pairs; losses, seconds by phase, rates, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ultramed_rl.report.figures import distribution_figure, line_figure, stacked_figure
from ultramed_rl.report.online_run import (
    CORRELATION,
    GROWTH,
    REASONS,
    OnlineRun,
    by_prompt,
    mean,
    share,
    within_correlation,
)
from ultramed_rl.report.words import duration, number, percent, spoken
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.page import Callout, Heading, Note, PageTable, Parts

_RULE = (
    f"Rule: flagged where the last policy's held-out answers are at least {GROWTH:.0%} longer (or shorter) than "
    f"the starting policy's, and reward and length correlate by at least {CORRELATION} in that direction within "
    "prompts, over the samples of all rounds (Pearson's r of tokens and reward, each less its prompt's mean)."
)
_CURVES = {
    "loss": "Loss",
    "accuracy": "Implicit accuracy: the share of pairs whose chosen side the policy prefers",
    "implicit_margin": "Implicit margin",
    "grad_norm": "Gradient norm before clipping",
    "learning_rate": "Learning rate",
}
_RATES = {"completions": "generate", "scored": "score", "reference": "reference", "training": "train"}
_PHASES = {
    "completions": "generate",
    "scored": "score",
    "pairs": "pair",
    "reference": "reference logprobs",
    "checkpoint": "train and save",
    "reference_model": "average the reference",
    "evaluation": "evaluate",
    "reward_model": "train the reward model",
    "prompts": "choose prompts",
}


def lengths(run: OnlineRun) -> Parts:
    """Lengths by policy and side, and whether the length rule flags them."""
    flagged = run.length.flagged
    heading = f"Length exploitation: {'flagged' if flagged else 'not flagged'}"
    yield Callout("warning" if flagged else "plain", heading, [run.length.words])
    yield Note(_RULE)
    held_out = {p.label: [float(a.tokens) for a in p.answers] for p in run.policies if p.answers}
    if held_out:
        yield Heading("Tokens of held-out answers")
        yield distribution_figure(held_out, "tokens", zero=True)
    names = {"chosen_length": "chosen", "rejected_length": "rejected", "length_mean": "all samples"}
    labels = [one.label for one in run.rounds]
    sides = {side: (labels, [one.number(name) for one in run.rounds]) for name, side in names.items()}
    yield Heading("Mean tokens in each round")
    yield line_figure(sides, y="tokens", height=300)
    yield Heading("Reward and length within prompts")
    rows = [(one.label, number(within_correlation(by_prompt(one.sampled)), "+.2f")) for one in run.rounds]
    yield PageTable(("Samples of", "correlation"), rows)


def endings(run: OnlineRun) -> Parts:
    """Refused, empty and cut answers, of the held-out prompts and of the rounds' samples."""
    asked = [(policy.label, policy.answers) for policy in run.policies]
    asked += [(f"{one.label}, samples", one.sampled) for one in run.rounds]
    rows = [
        (
            label,
            f"{len(answers):,}",
            *(percent(share(answers, ending), 1) for ending in ("refusal", "empty", "cut")),
            percent(mean(not answer.scored for answer in answers), 1),
        )
        for label, answers in asked
        if answers
    ]
    if not rows:
        yield "No answers are kept in this run's folder."
        return
    columns = ("Answers of", "answers", "refused", "empty", "cut off", "no finite reward")
    yield PageTable(columns, rows)
    yield Note(
        "Refused: begins as a refusal does, by the data factory's patterns, so that a refusal in other words is not counted. "
        "Cut off: met the limit of new tokens. Rows of policies are held-out answers."
    )


def pairs(run: OnlineRun) -> Parts:
    """What selection kept and dropped in each round, and the margins of what it kept."""
    outcome = {"pairs": [one.metrics.get("pairs", 0.0) for one in run.rounds]}
    outcome |= {words: [one.dropped[name] for one in run.rounds] for name, (_, words) in REASONS.items()}
    yield Heading("What became of each round's prompts")
    yield stacked_figure([one.label for one in run.rounds], outcome, "prompts")
    counts = [(one.number("pairs_prompts"), one.number("pairs"), *one.dropped.values()) for one in run.rounds]
    rows = [(str(i), *(number(count, ",.0f") for count in row)) for i, row in enumerate(counts)]
    yield PageTable(("Round", "prompts", "pairs", *(column for column, _ in REASONS.values())), rows)
    yield Note(
        "Each prompt is in one count, by the first reason that holds; columns after pairs are prompts without one."
    )
    margins = {one.label: [pair.margin for pair in one.pairs] for one in run.rounds if one.pairs}
    if margins:
        yield Heading("Reward margin between chosen and rejected")
        yield distribution_figure(margins, "margin", zero=True)
        yield Note(
            "Margins that shrink from round to round mean that samples grow alike in reward, and pairs say less."
        )


def training(run: OnlineRun) -> Parts:
    """What every optimizer step logged; nothing where none did."""
    curves = list(curve_parts(run.files.rows("step"), _CURVES, "step_index", "optimizer step of the run"))
    yield from curves
    if curves:
        yield Note("Every point is one step on its own batch of pairs, so that curves are rough.")


def curve_parts(rows: Sequence[Mapping[str, Any]], curves: Mapping[str, str], index: str, axis: str) -> Parts:
    """A heading and a line for each curve that has numbers."""
    for name, words in curves.items():
        points = [(row[index], float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
        if points:
            xs, ys = zip(*points, strict=True)
            yield Heading(words)
            yield line_figure({name: (xs, ys)}, axis, height=240, zero=False)


def times(run: OnlineRun) -> Parts:
    """Seconds by phase and round, and rates."""
    phases = {"before round 0": run.files.seconds("initial")}
    for one in run.rounds:
        sync = one.number("sync_seconds")  # the transfer of weights, which is no phase
        phases[one.label] = one.seconds | ({"send weights": sync} if math.isfinite(sync) else {})
    figure, parts = phase_figure({label: seconds for label, seconds in phases.items() if seconds})
    yield figure
    yield Note(
        "Seconds that each phase took when it was computed; what a resumed run read back counts as it took at first. Starting "
        "Ray, engines and ranks is not in it."
    )
    totals = {name: sum(values) for name, values in parts.items()}
    shares = [
        (name, duration(total), percent(total / sum(totals.values())))
        for name, total in sorted(totals.items(), key=lambda item: -item[1])
        if total >= 0.05
    ]
    yield PageTable(("Phase", "seconds in all", "share"), shares)
    rates = [
        (
            one.label,
            *(number(one.number(f"tokens_per_second_{name}"), ",.0f") for name in _RATES),
            percent(one.number("mfu"), 1),
            duration(one.number("seconds")),
        )
        for one in run.rounds
    ]
    yield PageTable(("Tokens a second", *_RATES.values(), "training MFU", "time"), rates)
    yield Note(
        "MFU: the model's FLOPs a second as a share of a matrix multiplication's rate, measured on this device before "
        "training; on shared CPU cores it may pass 100%."
    )


def phase_figure(phases: Mapping[str, Metrics]) -> tuple[go.Figure, dict[str, list[float]]]:
    """Bars of seconds by phase, one for each label, and the same by the phase's words."""
    names = dict.fromkeys(name for seconds in phases.values() for name in seconds)
    parts = {phase_words(name): [seconds.get(name, 0.0) for seconds in phases.values()] for name in names}
    return stacked_figure(list(phases), parts, "seconds"), parts


def phase_words(name: str) -> str:
    """A phase's name as people say it."""
    return _PHASES.get(name, spoken(name).replace("-", " "))


def memory(files: RunReader) -> Parts:
    """Peak memory of each role; of the attempt that used most, where a run was resumed."""
    peaks: dict[str, float] = {}
    for row in files.metrics:
        for name, value in row.items():
            if name.startswith("peak_memory_") and isinstance(value, int | float):
                role = name.removeprefix("peak_memory_")
                peaks[role] = max(peaks.get(role, 0.0), float(value))
    if not peaks:
        yield "This run has logged no peak memory; online runs do at their end."
        return
    rows = [
        (role, f"{value / 2**30:.2f}") for role, value in sorted(peaks.items(), key=lambda item: -item[1])
    ]
    yield PageTable(("Role", "peak GiB"), rows)
    room = files.setting("cluster.device_memory_gib")
    on_cpu = files.setting("cluster.device", "cuda") == "cpu"
    held = "resident memory of its process" if on_cpu else "memory of its GPU"
    has = f" A device has {room:g} GiB by the config (cluster.device_memory_gib)." if room else ""
    yield Note(f"The most that any worker of a role held ({held}).{has}")
