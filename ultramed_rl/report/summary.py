"""The first thing that a report of an online run says: what the run came to, and how sure that is."""

from __future__ import annotations

import math

from ultramed_rl.report.health import refusal_share
from ultramed_rl.report.length import LengthCheck
from ultramed_rl.report.online_run import Change, OnlineRun
from ultramed_rl.report.words import duration, interval_words, number, percent, share_words
from ultramed_rl.tracking.page import Callout, Fact, Facts, Part, Section, Tone

_FEW_PROMPTS = 100
_MORE_BAD = 0.02  # of refused, empty or unfinished answers


def summary_section(run: OnlineRun, length: LengthCheck) -> Section:
    """The verdict, what speaks against it, and the run in numbers."""
    if not run.rounds:
        lines = ("Its rounds appear here as they are finished.",)
        return Section("", (Callout("plain", "No round of this run is finished yet.", lines),))
    change = run.change(run.policies[0], run.policies[-1])
    parts: list[Part] = [verdict_callout(run, change)]
    warnings = run_warnings(run, change, length)
    if warnings:
        parts.append(Callout("warning", "Reasons for caution", tuple(warnings)))
    parts.append(_facts(run, change, length))
    return Section("", tuple(parts))


def verdict_callout(run: OnlineRun, change: Change | None) -> Callout:
    """The reward's change from the starting policy to the last, in words, with its 95% interval."""
    rounds = f"after {len(run.rounds)} round{'s' if len(run.rounds) > 1 else ''}"
    if change is None:
        heading = f"The run was not compared with its start ({rounds}): evaluations are missing."
        return Callout("plain", heading)
    tone, moved = direction(change)
    by = "" if tone == "plain" else f" by {abs(change.reward.mean):.2f}"
    heading = f"The held-out reward {moved}{by} {rounds}."
    size = f"{change.prompts} held-out prompt{'s' if change.prompts > 1 else ''}"
    detail = (
        f"Mean change of the reward from the starting policy: {interval_words(change.reward)}, 95% interval of a paired "
        f"bootstrap over {size}."
    )
    wins = f"The last policy's answers score higher on {share_words(change.wins)} of them, ties by halves."
    return Callout(tone, heading, (detail, wins))


def direction(change: Change) -> tuple[Tone, str]:
    """Which way a change goes, if its interval leaves no doubt."""
    if change.reward.low > 0:
        return "good", "rose"
    if change.reward.high < 0:
        return "bad", "fell"
    return "plain", "did not move measurably"


def run_warnings(run: OnlineRun, change: Change | None, length: LengthCheck) -> list[str]:
    """What a careful reader should know before the verdict is believed."""
    found = []
    if length.flagged:
        found.append(f"Length. {length.words}")
    first, last = run.policies[0].answers, run.policies[-1].answers
    for name, share in (
        ("refusals", refusal_share),
        ("empty answers", lambda answers: _share([a.empty for a in answers])),
        ("answers cut off", lambda answers: _share([a.finish == "length" for a in answers])),
    ):
        before, after = share(first), share(last)
        if after - before > _MORE_BAD:
            found.append(
                f"More {name}: {percent(before, 1)} of held-out answers at the start, {percent(after, 1)} now."
            )
    lost = sum(not answer.scored for answer in last)
    if lost:
        found.append(
            f"{lost} of {len(last)} held-out answers of the last policy have no finite reward: left out."
        )
    if run.files.setting("reward.train") is not None:
        found.append(
            "Reward. The reward model was trained within this run on few examples: a rise says that training works, "
            "not that answers are better medicine."
        )
    if change is not None and change.prompts < _FEW_PROMPTS:
        found.append(f"Size. Only {change.prompts} held-out prompts: intervals are wide.")
    planned = int(run.files.setting("run.rounds", len(run.rounds)))
    if len(run.rounds) < planned:
        found.append(f"Unfinished. {len(run.rounds)} of {planned} rounds are committed.")
    return found


def _facts(run: OnlineRun, change: Change | None, length: LengthCheck) -> Facts:
    last = run.rounds[-1].metrics
    seconds = sum(one.metrics.get("seconds", 0.0) for one in run.rounds)
    facts = []
    if change is not None:
        low, high = change.reward.low, change.reward.high
        facts.append(
            Fact("Reward over start", f"{change.reward.mean:+.2f}", f"{low:+.2f} to {high:+.2f} (95%)")
        )
        low, high = change.wins.low, change.wins.high
        facts.append(
            Fact("Wins over start", percent(change.wins.mean), f"{percent(low)} to {percent(high)} (95%)")
        )
    if "kl_to_reference" in last:
        note = "nats an answer, of the last round's samples"
        facts.append(Fact("KL from reference", number(last["kl_to_reference"], ".2f"), note))
    if not math.isnan(length.growth):
        note = f"tokens, {length.first:.0f} at the start ({length.growth:+.0%})"
        facts.append(Fact("Answer length", f"{length.last:.0f}", note))
    pairs = sum(one.metrics.get("pairs", 0.0) for one in run.rounds)
    prompts = sum(one.metrics.get("pairs_prompts", 0.0) for one in run.rounds)
    facts.append(Fact("Preference pairs", f"{pairs:,.0f}", f"of {prompts:,.0f} prompts"))
    return Facts((*facts, Fact("Time in phases", duration(seconds), "without starting Ray and engines")))


def _share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else math.nan
