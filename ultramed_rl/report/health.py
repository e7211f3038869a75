"""Sections on what can go wrong beside the reward: lengths, refusals, empty and cut answers, poor pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ultramed_rl.report.answers import Answer, mean
from ultramed_rl.report.figures import Axes, distribution_figure, line_figure, stacked_figure
from ultramed_rl.report.length import RULE, LengthCheck, within_correlation
from ultramed_rl.report.online_run import OnlineRun, Round
from ultramed_rl.report.outcome import policy_label
from ultramed_rl.report.words import number, percent
from ultramed_rl.tracking.page_parts import Callout, Heading, Note, PageTable, Part, Section, Tone

_REASONS = {
    "tied": "tied: nothing scores lower",
    "identical": "identical: all texts are alike",
    "small_margin": "margin below pairs.min_margin",
    "length_ratio": "beyond pairs.max_length_ratio",
    "non_finite": "rewards not finite",
    "too_few": "fewer than two answers",
}


def length_section(run: OnlineRun, check: LengthCheck) -> Section:
    """Lengths by policy and side, and whether the length rule flags them."""
    tone: Tone = "warning" if check.flagged else "plain"
    heading = "Length exploitation: flagged" if check.flagged else "Length exploitation: not flagged"
    lengths = {policy_label(p): [float(a.tokens) for a in p.answers] for p in run.policies if p.answers}
    parts: list[Part] = [Callout(tone, heading, (check.words,)), Note(RULE)]
    if lengths:
        parts += [
            Heading("Tokens of held-out answers"),
            distribution_figure(lengths, Axes("", "tokens", zero=True)),
        ]
    rounds = [f"round {one.index}" for one in run.rounds]
    sides = {
        "chosen": (rounds, [one.metrics.get("chosen_length", math.nan) for one in run.rounds]),
        "rejected": (rounds, [one.metrics.get("rejected_length", math.nan) for one in run.rounds]),
        "all samples": (rounds, [one.metrics.get("length_mean", math.nan) for one in run.rounds]),
    }
    rows = tuple(
        (f"round {one.index}", number(within_correlation(one.by_prompt), "+.2f")) for one in run.rounds
    )
    parts += [
        Heading("Mean tokens in each round"),
        line_figure(sides, Axes("", "tokens", 300, zero=True)),
        Heading("Reward and length within prompts"),
        PageTable(("Samples of", "correlation"), rows),
    ]
    return Section("Length", tuple(parts))


def refusal_section(run: OnlineRun) -> Section:
    """Refused, empty and cut answers, of the held-out prompts and of the rounds' samples."""
    asked = [(policy_label(p), p.answers) for p in run.policies if p.answers]
    sampled = [(f"round {one.index}, samples", one.sampled) for one in run.rounds if one.sampled]
    rows = tuple(_ending_row(label, answers) for label, answers in [*asked, *sampled])
    if not rows:
        return Section("Refused, empty and cut answers", ("No answers are kept in this run's folder.",))
    columns = ("Answers of", "answers", "refused", "empty", "cut off", "no finite reward")
    note = Note(
        "Refused: begins as a refusal does, by the data factory's patterns, so that a refusal in other words is not counted. "
        "Cut off: met the limit of new tokens. Rows of policies are held-out answers."
    )
    return Section("Refused, empty and cut answers", (PageTable(columns, rows), note))


def pair_section(run: OnlineRun) -> Section:
    """What selection kept and dropped in each round, and the margins of what it kept."""
    rounds = [f"round {one.index}" for one in run.rounds]
    outcome = {"pairs": [one.metrics.get("pairs", 0.0) for one in run.rounds]}
    outcome |= {words: [one.dropped[name] for one in run.rounds] for name, words in _REASONS.items()}
    margins = {f"round {one.index}": [pair.margin for pair in one.pairs] for one in run.rounds if one.pairs}
    columns = (
        "Round",
        "prompts",
        "pairs",
        "tied",
        "identical",
        "margin",
        "length ratio",
        "not finite",
        "too few",
    )
    parts: list[Part] = [
        Heading("What became of each round's prompts"),
        stacked_figure(rounds, outcome, Axes("prompts", "")),
        PageTable(columns, tuple(_audit_row(one) for one in run.rounds)),
        Note(
            "Each prompt is in one count, by the first reason that holds; columns after pairs are prompts without one."
        ),
    ]
    if margins:
        parts += [
            Heading("Reward margin between chosen and rejected"),
            distribution_figure(margins, Axes("", "margin", zero=True)),
            Note(
                "Margins that shrink from round to round mean that samples grow alike in reward, and pairs say less."
            ),
        ]
    return Section("Preference pairs", tuple(parts))


def refusal_share(answers: Sequence[Answer]) -> float:
    """The share of answers that begin as a refusal; NaN of none."""
    return mean([float(answer.refusal) for answer in answers])


def _ending_row(label: str, answers: Sequence[Answer]) -> tuple[str, ...]:
    shares = (
        refusal_share(answers),
        mean([float(a.empty) for a in answers]),
        mean([float(a.finish == "length") for a in answers]),
        mean([float(not a.scored) for a in answers]),
    )
    return label, f"{len(answers):,}", *(percent(share, 1) for share in shares)


def _audit_row(one: Round) -> tuple[str, ...]:
    prompts = one.metrics.get("pairs_prompts", math.nan)
    counts = (prompts, one.metrics.get("pairs", math.nan), *one.dropped.values())
    return str(one.index), *(number(count, ",.0f") for count in counts)
