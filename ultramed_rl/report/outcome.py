"""Sections on reward: how it moved, how often it wins, and how far the policy went for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import plotly.graph_objects as go

from ultramed_rl.evaluation.statistics import Interval, paired_bootstrap
from ultramed_rl.report.answers import Answer, by_prompt
from ultramed_rl.report.figures import Axes, distribution_figure, dressed, interval_figure
from ultramed_rl.report.online_run import OnlineRun, Policy
from ultramed_rl.tracking.page_parts import Heading, Note, Part, Section

_NOTHING = "No answers to held-out prompts are kept in this run's folder."


def policy_label(policy: Policy) -> str:
    return "start" if policy.version == 0 else f"policy {policy.version}"


def reward_section(run: OnlineRun) -> Section:
    """Distributions of the reward, held out and in the rounds' own samples, and the paired change."""
    held_out = {policy_label(p): _rewards(p.answers) for p in run.policies if _rewards(p.answers)}
    if not held_out:
        return Section("Reward", (_NOTHING,))
    parts: list[Part] = [
        "Every policy answers the same held-out prompts with the same seeds. Policy 1 is what round 0 trained.",
        Heading("Held-out reward of each policy"),
        distribution_figure(held_out, Axes("", "reward")),
        Note("One value an answer: box of quartiles, dashed line at the mean."),
    ]
    changes = {policy_label(policy): change.reward for policy, change in run.changes()}
    if changes:
        axes = Axes("", "change of the mean reward", 280)
        parts += [
            Heading("Change from the starting policy"),
            interval_figure({"change": {"start": Interval(0.0, 0.0, 0.0), **changes}}, axes, 0.0),
            Note(
                "Mean of the paired differences by prompt, with 95% intervals of the bootstrap over prompts."
            ),
        ]
    sampled = {f"round {one.index}": _rewards(one.sampled) for one in run.rounds if _rewards(one.sampled)}
    if sampled:
        parts += [
            Heading("Reward of the samples that each round trained on"),
            distribution_figure(sampled, Axes("", "reward")),
            Note("Each round has prompts of its own, so that rounds differ by their prompts too."),
        ]
    return Section("Reward", tuple(parts))


def win_section(run: OnlineRun) -> Section:
    """Win rates over the starting policy."""
    wins = {policy_label(policy): change.wins for policy, change in run.changes()}
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
        figure.add_trace(
            go.Scatter(
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
        )
    most = max(divergence) or 1.0
    figure.update_xaxes(range=[-0.06 * most, 1.08 * most], zeroline=False)
    return dressed(figure, Axes("KL from the reference, nats an answer", "mean reward", 360))


def _rewards(answers: Sequence[Answer]) -> list[float]:
    return [answer.reward for answer in answers if answer.scored]
