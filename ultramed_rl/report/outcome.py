"""What an online run came to: the verdict with its cautions, how the reward moved, how often it wins, and how far the policy
went for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import plotly.graph_objects as go

from ultramed_rl.evaluation.statistics import Interval, paired_bootstrap
from ultramed_rl.report.answers import Answer, by_prompt, share
from ultramed_rl.report.figures import Axes, distribution_figure, dressed, interval_figure
from ultramed_rl.report.health import LengthCheck
from ultramed_rl.report.online_run import Change, OnlineRun
from ultramed_rl.report.words import duration, interval_words, number, percent, share_words
from ultramed_rl.tracking.page import Callout, Fact, Facts, Heading, Note, Part, Section, Tone

_NOTHING = "No answers to held-out prompts are kept in this run's folder."
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
    cautions = []
    if length.flagged:
        cautions.append(f"Length. {length.words}")
    first, last = run.policies[0].answers, run.policies[-1].answers
    for name, kind in (
        ("refusals", lambda answer: answer.refusal),
        ("empty answers", lambda answer: answer.empty),
        ("answers cut off", lambda answer: answer.cut),
    ):
        before, after = share(first, kind), share(last, kind)
        if after - before > _MORE_BAD:
            cautions.append(
                f"More {name}: {percent(before, 1)} of held-out answers at the start, {percent(after, 1)} now."
            )
    lost = sum(not answer.scored for answer in last)
    if lost:
        cautions.append(
            f"{lost} of {len(last)} held-out answers of the last policy have no finite reward: left out."
        )
    if run.files.setting("reward.train") is not None:
        cautions.append(
            "Reward. The reward model was trained within this run on few examples: a rise says that training works, "
            "not that answers are better medicine."
        )
    if change is not None and change.prompts < _FEW_PROMPTS:
        cautions.append(f"Size. Only {change.prompts} held-out prompts: intervals are wide.")
    planned = int(run.files.setting("run.rounds", len(run.rounds)))
    if len(run.rounds) < planned:
        cautions.append(f"Unfinished. {len(run.rounds)} of {planned} rounds are committed.")
    return cautions


def _facts(run: OnlineRun, change: Change | None, length: LengthCheck) -> Facts:
    facts = []
    if change is not None:
        reward, wins = change.reward, change.wins
        interval = f"{reward.low:+.2f} to {reward.high:+.2f} (95%)"
        facts.append(Fact("Reward over start", f"{reward.mean:+.2f}", interval))
        interval = f"{percent(wins.low)} to {percent(wins.high)} (95%)"
        facts.append(Fact("Wins over start", percent(wins.mean), interval))
    divergence = run.rounds[-1].metrics.get("kl_to_reference")
    if divergence is not None:
        note = "nats an answer, of the last round's samples"
        facts.append(Fact("KL from reference", number(divergence, ".2f"), note))
    if not math.isnan(length.growth):
        note = f"tokens, {length.first:.0f} at the start ({length.growth:+.0%})"
        facts.append(Fact("Answer length", f"{length.last:.0f}", note))
    pairs, prompts, seconds = map(run.total, ("pairs", "pairs_prompts", "seconds"))
    facts.append(Fact("Preference pairs", f"{pairs:,.0f}", f"of {prompts:,.0f} prompts"))
    return Facts((*facts, Fact("Time in phases", duration(seconds), "without starting Ray and engines")))


def reward_section(run: OnlineRun) -> Section:
    """Distributions of the reward, held out and in the rounds' own samples, and the paired change."""
    held_out = {p.label: _rewards(p.answers) for p in run.policies if _rewards(p.answers)}
    if not held_out:
        return Section("Reward", (_NOTHING,))
    parts: list[Part] = [
        "Every policy answers the same held-out prompts with the same seeds. Policy 1 is what round 0 trained.",
        Heading("Held-out reward of each policy"),
        distribution_figure(held_out, Axes("", "reward")),
        Note("One value an answer: box of quartiles, dashed line at the mean."),
    ]
    changes = {policy.label: change.reward for policy, change in run.changes()}
    if changes:
        axes = Axes("", "change of the mean reward", 280)
        parts += [
            Heading("Change from the starting policy"),
            interval_figure({"change": {"start": Interval(0.0, 0.0, 0.0), **changes}}, axes, 0.0),
            Note(
                "Mean of the paired differences by prompt, with 95% intervals of the bootstrap over prompts."
            ),
        ]
    sampled = {one.label: _rewards(one.sampled) for one in run.rounds if _rewards(one.sampled)}
    if sampled:
        parts += [
            Heading("Reward of the samples that each round trained on"),
            distribution_figure(sampled, Axes("", "reward")),
            Note("Each round has prompts of its own, so that rounds differ by their prompts too."),
        ]
    return Section("Reward", tuple(parts))


def win_section(run: OnlineRun) -> Section:
    """Win rates over the starting policy."""
    wins = {policy.label: change.wins for policy, change in run.changes()}
    if not wins:
        return Section("Wins over the start", (_NOTHING,))
    figure = interval_figure({"wins": wins}, Axes("", "prompts won", 280, percent=True), 0.5)
    figure.update_yaxes(range=[-0.02, 1.02])
    note = Note(
        "The share of held-out prompts on which a policy's mean reward is higher than the starting policy's, ties by "
        "halves, with Wilson's 95% intervals. At 50% neither is better."
    )
    return Section("Wins over the start", (figure, note))


def frontier_section(run: OnlineRun) -> Section | None:
    """Reward against KL, the over-optimisation frontier (Gao et al. 2022); None without a reference."""
    rounds = [one for one in run.rounds if math.isfinite(one.metrics.get("kl_to_reference", math.nan))]
    if not rounds:
        return None
    divergence = [max(0.0, one.metrics["kl_to_reference"]) for one in rounds]
    sampled = [mean_over_prompts(one.by_prompt) for one in rounds]
    held_out = [mean_over_prompts(by_prompt(run.policies[one.index].answers)) for one in rounds]
    figure = _frontier({"held-out prompts": held_out, "the round's own samples": sampled}, divergence)
    anchor = str(run.files.setting("reference.update", "initial"))
    kept = (
        "the starting policy"
        if anchor == "initial"
        else f"a reference that moves (reference.update={anchor})"
    )
    note = Note(
        f"KL from {kept}, in nats an answer, estimated on the answers in pairs: the mean of log π(y) − log π_ref(y). "
        "Each point is the policy that sampled in a round; the last policy has not sampled yet. A curve that bends down "
        "as KL grows is over-optimisation; one that still rises proves nothing, since the reward is the one trained on. "
        "Bars are 95% intervals of the bootstrap over prompts."
    )
    return Section("Reward against KL", (figure, note))


def mean_over_prompts(prompts: Iterable[Sequence[Answer]]) -> Interval | None:
    """The mean reward over prompts, of which these are the answers, with its bootstrap interval; None without a finite
    reward."""
    groups = [_rewards(answers) for answers in prompts]
    means = [fmean(group) for group in groups if group]
    return paired_bootstrap([0.0] * len(means), means, 1000, 0) if means else None


def _frontier(series: dict[str, list[Interval | None]], divergence: list[float]) -> go.Figure:
    figure = go.Figure()
    for name, points in series.items():
        known = [(place, point) for place, point in enumerate(points) if point is not None]
        if not known:
            continue
        figure.add_scatter(
            x=[divergence[place] for place, _ in known],
            y=[point.mean for _, point in known],
            text=[f"policy {place}" if place else "start" for place, _ in known],
            cliponaxis=False,
            error_y={
                "array": [point.high - point.mean for _, point in known],
                "arrayminus": [point.mean - point.low for _, point in known],
                "thickness": 1.2,
                "width": 4,
            },
            # The other series has the same policies under these.
            mode="lines+markers" if figure.data else "lines+markers+text",
            textposition="top center",
            textfont={"size": 11},
            name=name,
            marker={"size": 8},
            hovertemplate="%{text}: KL %{x:.3g}, reward %{y:.3g}<extra></extra>",
        )
    most = max(divergence) or 1.0
    figure.update_xaxes(range=[-0.06 * most, 1.08 * most], zeroline=False)
    return dressed(figure, Axes("KL from the reference, nats an answer", "mean reward", 360))


def _rewards(answers: Sequence[Answer]) -> list[float]:
    return [answer.reward for answer in answers if answer.scored]
