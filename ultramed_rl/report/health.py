"""Sections on what can go wrong beside the reward: whether length is paid, refusals, empty and cut answers, poor pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ultramed_rl.report.answers import Answer, mean, share
from ultramed_rl.report.figures import Axes, distribution_figure, line_figure, stacked_figure
from ultramed_rl.report.online_run import OnlineRun
from ultramed_rl.report.words import number, percent
from ultramed_rl.tracking.page import Callout, Heading, Note, PageTable, Part, Section, Tone

# Why a prompt gave no pair: the column's heading, and the words of the figure.
_REASONS = {
    "tied": ("tied", "tied: nothing scores lower"),
    "identical": ("identical", "identical: all texts are alike"),
    "small_margin": ("margin", "margin below pairs.min_margin"),
    "length_ratio": ("length ratio", "beyond pairs.max_length_ratio"),
    "non_finite": ("not finite", "rewards not finite"),
    "too_few": ("too few", "fewer than two answers"),
}
GROWTH = 0.2
CORRELATION = 0.3
RULE = (
    f"Rule: flagged where the last policy's held-out answers are at least {GROWTH:.0%} longer (or shorter) than "
    f"the starting policy's, and reward and length correlate by at least {CORRELATION} in that direction within "
    "prompts, over the samples of all rounds (Pearson's r of tokens and reward, each less its prompt's mean)."
)


@dataclass(frozen=True)
class LengthCheck:
    """`growth` is the change of the held-out answers' mean length as a share; NaN where either is not known.

    `correlation` of reward and length within prompts, -1 to 1; NaN where one of them never varies.
    """

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
    first = run.policies[0].length if len(run.policies) > 1 else math.nan
    last = run.policies[-1].length if len(run.policies) > 1 else math.nan
    growth = last / first - 1 if first > 0 else math.nan
    groups = (group for one in run.rounds for group in one.by_prompt)
    return LengthCheck(first, last, growth, within_correlation(groups))


def within_correlation(groups: Iterable[Sequence[Answer]]) -> float:
    """Pearson's correlation of tokens and reward after each group's means are taken off; NaN without variance."""
    products = squares_of_tokens = squares_of_rewards = 0.0
    for group in groups:
        scored = [answer for answer in group if answer.scored]
        tokens, reward = mean([float(a.tokens) for a in scored]), mean([a.reward for a in scored])
        for answer in scored:
            products += (answer.tokens - tokens) * (answer.reward - reward)
            squares_of_tokens += (answer.tokens - tokens) ** 2
            squares_of_rewards += (answer.reward - reward) ** 2
    if squares_of_tokens <= 1e-12 or squares_of_rewards <= 1e-12:
        return math.nan
    return products / math.sqrt(squares_of_tokens * squares_of_rewards)


def length_section(run: OnlineRun, check: LengthCheck) -> Section:
    """Lengths by policy and side, and whether the length rule flags them."""
    tone: Tone = "warning" if check.flagged else "plain"
    heading = f"Length exploitation: {'flagged' if check.flagged else 'not flagged'}"
    parts: list[Part] = [Callout(tone, heading, (check.words,)), Note(RULE)]
    lengths = {p.label: [float(a.tokens) for a in p.answers] for p in run.policies if p.answers}
    if lengths:
        figure = distribution_figure(lengths, Axes("", "tokens", zero=True))
        parts += [Heading("Tokens of held-out answers"), figure]
    names = {"chosen_length": "chosen", "rejected_length": "rejected", "length_mean": "all samples"}
    labels = [one.label for one in run.rounds]
    sides = {side: (labels, [one.number(name) for one in run.rounds]) for name, side in names.items()}
    correlations = [number(within_correlation(one.by_prompt), "+.2f") for one in run.rounds]
    parts += [
        Heading("Mean tokens in each round"),
        line_figure(sides, Axes("", "tokens", 300, zero=True)),
        Heading("Reward and length within prompts"),
        PageTable(("Samples of", "correlation"), tuple(zip(labels, correlations, strict=True))),
    ]
    return Section("Length", tuple(parts))


def refusal_section(run: OnlineRun) -> Section:
    """Refused, empty and cut answers, of the held-out prompts and of the rounds' samples."""
    asked = [(policy.label, policy.answers) for policy in run.policies]
    asked += [(f"{one.label}, samples", tuple(one.sampled)) for one in run.rounds]
    rows = tuple(_ending_row(label, answers) for label, answers in asked if answers)
    if not rows:
        return Section("Refused, empty and cut answers", ("No answers are kept in this run's folder.",))
    columns = ("Answers of", "answers", "refused", "empty", "cut off", "no finite reward")
    note = Note(
        "Refused: begins as a refusal does, by the data factory's patterns, so that a refusal in other words is not counted. "
        "Cut off: met the limit of new tokens. Rows of policies are held-out answers."
    )
    return Section("Refused, empty and cut answers", (PageTable(columns, rows), note))


def _ending_row(label: str, answers: Sequence[Answer]) -> tuple[str, ...]:
    kinds = (lambda a: a.refusal, lambda a: a.empty, lambda a: a.cut, lambda a: not a.scored)
    return label, f"{len(answers):,}", *(percent(share(answers, kind), 1) for kind in kinds)


def pair_section(run: OnlineRun) -> Section:
    """What selection kept and dropped in each round, and the margins of what it kept."""
    outcome = {"pairs": [one.metrics.get("pairs", 0.0) for one in run.rounds]}
    outcome |= {words: [one.dropped[name] for one in run.rounds] for name, (_, words) in _REASONS.items()}
    columns = ("Round", "prompts", "pairs", *(column for column, _ in _REASONS.values()))
    counts = [(one.number("pairs_prompts"), one.number("pairs"), *one.dropped.values()) for one in run.rounds]
    rows = tuple((str(i), *(number(count, ",.0f") for count in row)) for i, row in enumerate(counts))
    parts: list[Part] = [
        Heading("What became of each round's prompts"),
        stacked_figure([one.label for one in run.rounds], outcome, Axes("prompts", "")),
        PageTable(columns, rows),
        Note(
            "Each prompt is in one count, by the first reason that holds; columns after pairs are prompts without one."
        ),
    ]
    margins = {one.label: [pair.margin for pair in one.pairs] for one in run.rounds if one.pairs}
    if margins:
        parts += [
            Heading("Reward margin between chosen and rejected"),
            distribution_figure(margins, Axes("", "margin", zero=True)),
            Note(
                "Margins that shrink from round to round mean that samples grow alike in reward, and pairs say less."
            ),
        ]
    return Section("Preference pairs", tuple(parts))
