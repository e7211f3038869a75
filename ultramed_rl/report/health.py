"""Sections on what can go wrong beside the reward, and on what a run took: whether length is paid, refusals, empty and cut
answers, poor pairs; losses, seconds by phase, rates, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ultramed_rl.report.figures import (
    distribution_figure,
    duration,
    line_figure,
    number,
    percent,
    spoken,
    stacked_figure,
)
from ultramed_rl.report.online_run import REASONS, Answer, OnlineRun, by_prompt, mean, share
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.page import Callout, Heading, Note, PageTable, Part, Section

GROWTH = 0.2
CORRELATION = 0.3
RULE = (
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


@dataclass(frozen=True)
class LengthCheck:
    """Tokens of the first and the last policy's held-out answers. `growth` is the change as a share; NaN where either is
    not known. `correlation` of reward and length within prompts, -1 to 1; NaN where one of them never varies."""

    first: float
    last: float
    growth: float
    correlation: float

    @property
    def flagged(self) -> bool:
        """Whether lengths moved far in the direction that the reward pays for."""
        paid = self.correlation * math.copysign(1.0, self.growth)
        return abs(self.growth) >= GROWTH and paid >= CORRELATION

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        if math.isnan(self.growth):
            return "Lengths could not be compared: the held-out answers of the first or the last policy are missing."
        moved = f"went from {self.first:.1f} to {self.last:.1f} tokens ({self.growth:+.0%})"
        if math.isnan(self.correlation):
            return f"Held-out answers {moved}; reward or length never varied within a prompt."
        paid = f"reward and length correlate by {self.correlation:+.2f} within prompts"
        if self.flagged:
            way = "longer" if self.growth > 0 else "shorter"
            return f"Held-out answers {moved}, and {paid}: part of the gain may be pay for {way} answers."
        return f"Held-out answers {moved}; {paid}: not flagged."


def check_length(run: OnlineRun) -> LengthCheck:
    """The rule applied to a run; with fewer than two evaluated policies there is no growth."""
    first, last = (run.policies[at].length if len(run.policies) > 1 else math.nan for at in (0, -1))
    growth = last / first - 1 if first > 0 else math.nan
    groups = (group for one in run.rounds for group in by_prompt(one.sampled))
    return LengthCheck(first, last, growth, within_correlation(groups))


def within_correlation(groups: Iterable[Sequence[Answer]]) -> float:
    """Pearson's correlation of tokens and reward after each group's means are taken off; NaN without variance."""
    products = squares_of_tokens = squares_of_rewards = 0.0
    for group in groups:
        scored = [answer for answer in group if answer.scored]
        tokens, reward = mean(a.tokens for a in scored), mean(a.reward for a in scored)
        for answer in scored:
            products += (answer.tokens - tokens) * (answer.reward - reward)
            squares_of_tokens += (answer.tokens - tokens) ** 2
            squares_of_rewards += (answer.reward - reward) ** 2
    if squares_of_tokens <= 1e-12 or squares_of_rewards <= 1e-12:
        return math.nan
    return products / math.sqrt(squares_of_tokens * squares_of_rewards)


def length_section(run: OnlineRun, check: LengthCheck) -> Section:
    """Lengths by policy and side, and whether the length rule flags them."""
    heading = f"Length exploitation: {'flagged' if check.flagged else 'not flagged'}"
    parts: list[Part] = [Callout("warning" if check.flagged else "plain", heading, [check.words]), Note(RULE)]
    lengths = {p.label: [float(a.tokens) for a in p.answers] for p in run.policies if p.answers}
    if lengths:
        parts += [Heading("Tokens of held-out answers"), distribution_figure(lengths, "tokens", zero=True)]
    names = {"chosen_length": "chosen", "rejected_length": "rejected", "length_mean": "all samples"}
    labels = [one.label for one in run.rounds]
    sides = {side: (labels, [one.number(name) for one in run.rounds]) for name, side in names.items()}
    rows = [(one.label, number(within_correlation(by_prompt(one.sampled)), "+.2f")) for one in run.rounds]
    parts += [
        Heading("Mean tokens in each round"),
        line_figure(sides, y="tokens", height=300),
        Heading("Reward and length within prompts"),
        PageTable(("Samples of", "correlation"), rows),
    ]
    return Section("Length", parts)


def refusal_section(run: OnlineRun) -> Section:
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
        return Section("Refused, empty and cut answers", ["No answers are kept in this run's folder."])
    columns = ("Answers of", "answers", "refused", "empty", "cut off", "no finite reward")
    note = Note(
        "Refused: begins as a refusal does, by the data factory's patterns, so that a refusal in other words is not counted. "
        "Cut off: met the limit of new tokens. Rows of policies are held-out answers."
    )
    return Section("Refused, empty and cut answers", [PageTable(columns, rows), note])


def pair_section(run: OnlineRun) -> Section:
    """What selection kept and dropped in each round, and the margins of what it kept."""
    outcome = {"pairs": [one.metrics.get("pairs", 0.0) for one in run.rounds]}
    outcome |= {words: [one.dropped[name] for one in run.rounds] for name, (_, words) in REASONS.items()}
    columns = ("Round", "prompts", "pairs", *(column for column, _ in REASONS.values()))
    counts = [(one.number("pairs_prompts"), one.number("pairs"), *one.dropped.values()) for one in run.rounds]
    rows = [(str(i), *(number(count, ",.0f") for count in row)) for i, row in enumerate(counts)]
    parts: list[Part] = [
        Heading("What became of each round's prompts"),
        stacked_figure([one.label for one in run.rounds], outcome, "prompts"),
        PageTable(columns, rows),
        Note(
            "Each prompt is in one count, by the first reason that holds; columns after pairs are prompts without one."
        ),
    ]
    margins = {one.label: [pair.margin for pair in one.pairs] for one in run.rounds if one.pairs}
    if margins:
        parts += [
            Heading("Reward margin between chosen and rejected"),
            distribution_figure(margins, "margin", zero=True),
            Note(
                "Margins that shrink from round to round mean that samples grow alike in reward, and pairs say less."
            ),
        ]
    return Section("Preference pairs", parts)


def training_section(run: OnlineRun) -> Section | None:
    """What every optimizer step logged; None where none did."""
    parts = curve_parts(run.files.rows("step"), _CURVES, "step_index", "optimizer step of the run")
    note = Note("Every point is one step on its own batch of pairs, so that curves are rough.")
    return Section("Training", [*parts, note]) if parts else None


def curve_parts(
    rows: Sequence[Mapping[str, Any]], curves: Mapping[str, str], index: str, axis: str
) -> list[Part]:
    """A heading and a line for each curve that has numbers."""
    parts: list[Part] = []
    for name, words in curves.items():
        points = [(row[index], float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
        if points:
            xs, ys = zip(*points, strict=True)
            parts += [Heading(words), line_figure({name: (xs, ys)}, axis, height=240, zero=False)]
    return parts


def time_section(run: OnlineRun) -> Section:
    """Seconds by phase and round, and rates."""
    phases = {"before round 0": run.files.seconds("initial")}
    for one in run.rounds:
        sync = one.number("sync_seconds")  # the transfer of weights, which is no phase
        phases[one.label] = one.seconds | ({"send weights": sync} if math.isfinite(sync) else {})
    figure, parts = phase_figure({label: seconds for label, seconds in phases.items() if seconds})
    note = Note(
        "Seconds that each phase took when it was computed; what a resumed run read back counts as it took at first. Starting "
        "Ray, engines and ranks is not in it."
    )
    totals = {name: sum(values) for name, values in parts.items()}
    shares = [
        (name, duration(total), percent(total / sum(totals.values())))
        for name, total in sorted(totals.items(), key=lambda item: -item[1])
        if total >= 0.05
    ]
    rates = [
        (
            one.label,
            *(number(one.number(f"tokens_per_second_{name}"), ",.0f") for name in _RATES),
            percent(one.number("mfu"), 1),
            duration(one.number("seconds")),
        )
        for one in run.rounds
    ]
    explained = Note(
        "MFU: the model's FLOPs a second as a share of a matrix multiplication's rate, measured on this device before "
        "training; on shared CPU cores it may pass 100%."
    )
    columns = ("Tokens a second", *_RATES.values(), "training MFU", "time")
    tables = PageTable(("Phase", "seconds in all", "share"), shares), PageTable(columns, rates)
    return Section("Time and utilisation", [figure, note, *tables, explained])


def phase_figure(phases: Mapping[str, Metrics]) -> tuple[go.Figure, dict[str, list[float]]]:
    """Bars of seconds by phase, one for each label, and the same by the phase's words."""
    names = dict.fromkeys(name for seconds in phases.values() for name in seconds)
    parts = {phase_words(name): [seconds.get(name, 0.0) for seconds in phases.values()] for name in names}
    return stacked_figure(list(phases), parts, "seconds"), parts


def phase_words(name: str) -> str:
    """A phase's name as people say it."""
    return _PHASES.get(name, spoken(name).replace("-", " "))


def memory_section(files: RunReader) -> Section:
    """Peak memory of each role; of the attempt that used most, where a run was resumed."""
    peaks: dict[str, float] = {}
    for row in files.metrics:
        for name, value in row.items():
            if name.startswith("peak_memory_") and isinstance(value, int | float):
                role = name.removeprefix("peak_memory_")
                peaks[role] = max(peaks.get(role, 0.0), float(value))
    if not peaks:
        return Section("Memory", ["This run has logged no peak memory; online runs do at their end."])
    rows = [
        (role, f"{value / 2**30:.2f}") for role, value in sorted(peaks.items(), key=lambda item: -item[1])
    ]
    room = files.setting("cluster.device_memory_gib")
    on_cpu = files.setting("cluster.device", "cuda") == "cpu"
    held = "resident memory of its process" if on_cpu else "memory of its GPU"
    has = f" A device has {room:g} GiB by the config (cluster.device_memory_gib)." if room else ""
    note = Note(f"The most that any worker of a role held ({held}).{has}")
    return Section("Memory", [PageTable(("Role", "peak GiB"), rows), note])
