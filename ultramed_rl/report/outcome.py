"""What an online run came to: the verdict with its cautions, how the reward moved, how often it wins, how far the policy
went for it, and the tables of held-out prompts and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.report.figures import distribution_figure, dressed, interval_figure
from ultramed_rl.report.online_run import Change, OnlineRun, ScoredAnswer, mean, mean_over_prompts, share
from ultramed_rl.report.stage import score_table
from ultramed_rl.report.words import MARKS, duration, interval_words, marked, number, percent, share_words
from ultramed_rl.tracking.page import Callout, Facts, Heading, Note, PageTable, Parts, Tone

_NOTHING = "No answers to held-out prompts are kept in this run's folder."
_FEW_PROMPTS = 100
_MORE_BAD = 0.02  # of refused, empty or unfinished answers
_ENDINGS = {"refusals": "refusal", "empty answers": "empty", "answers cut off": "cut"}


def summary(run: OnlineRun) -> Parts:
    """The verdict, what speaks against it, and the run in numbers."""
    if not run.rounds:
        lines = ["Its rounds appear here as they are finished."]
        yield Callout("plain", "No round of this run is finished yet.", lines)
        return
    yield verdict_callout(run, run.change)
    if cautions := list(_cautions(run)):
        yield Callout("warning", "Reasons for caution", cautions)
    yield Facts(list(_facts(run)))


def verdict_callout(run: OnlineRun, change: Change | None) -> Callout:
    """The reward's change from the starting policy to the last, in words, with its 95% interval."""
    rounds = f"after {len(run.rounds)} round{'s' if len(run.rounds) > 1 else ''}"
    if change is None:
        heading = f"The run was not compared with its start ({rounds}): evaluations are missing."
        return Callout("plain", heading)
    tone: Tone = "plain"
    moved = "did not move measurably"
    if change.reward.low > 0:
        tone, moved = "good", f"rose by {change.reward.mean:.2f}"
    elif change.reward.high < 0:
        tone, moved = "bad", f"fell by {-change.reward.mean:.2f}"
    size = f"{change.prompts} held-out prompt{'s' if change.prompts > 1 else ''}"
    detail = (
        f"Mean change of the reward from the starting policy: {interval_words(change.reward)}, 95% interval of a paired "
        f"bootstrap over {size}."
    )
    wins = f"The last policy's answers score higher on {share_words(change.wins)} of them, ties by halves."
    return Callout(tone, f"The held-out reward {moved} {rounds}.", (detail, wins))


def _cautions(run: OnlineRun) -> Iterator[str]:
    """What a careful reader should know before the verdict is believed."""
    if run.length.flagged:
        yield f"Length. {run.length.words}"
    first, last = run.policies[0].answers, run.policies[-1].answers
    for words, ending in _ENDINGS.items():
        before, after = share(first, ending), share(last, ending)
        if after - before > _MORE_BAD:
            yield f"More {words}: {percent(before, 1)} of held-out answers at the start, {percent(after, 1)} now."
    if lost := sum(not answer.scored for answer in last):
        yield f"{lost} of {len(last)} held-out answers of the last policy have no finite reward: left out."
    if run.files.setting("reward.train") is not None:
        yield (
            "Reward. The reward model was trained within this run on few examples: a rise says that training works, "
            "not that answers are better medicine."
        )
    if run.change is not None and run.change.prompts < _FEW_PROMPTS:
        yield f"Size. Only {run.change.prompts} held-out prompts: intervals are wide."
    planned = int(run.files.setting("run.rounds", len(run.rounds)))
    if len(run.rounds) < planned:
        yield f"Unfinished. {len(run.rounds)} of {planned} rounds are committed."


def _facts(run: OnlineRun) -> Iterator[tuple[str, str, str]]:
    if run.change is not None:
        reward, wins = run.change.reward, run.change.wins
        between = f"{reward.low:+.2f} to {reward.high:+.2f} (95%)"
        yield "Reward over start", f"{reward.mean:+.2f}", between
        yield "Wins over start", percent(wins.mean), f"{percent(wins.low)} to {percent(wins.high)} (95%)"
    divergence = run.rounds[-1].metrics.get("kl_to_reference")
    if divergence is not None:
        yield "KL from reference", number(divergence, ".2f"), "nats an answer, of the last round's samples"
    length = run.length
    if not math.isnan(length.growth):
        note = f"tokens, {length.first:.0f} at the start ({length.growth:+.0%})"
        yield "Answer length", f"{length.last:.0f}", note
    pairs, prompts, seconds = map(run.total, ("pairs", "pairs_prompts", "seconds"))
    yield "Preference pairs", f"{pairs:,.0f}", f"of {prompts:,.0f} prompts"
    yield "Time in phases", duration(seconds), "without starting Ray and engines"


def rewards(run: OnlineRun) -> Parts:
    """Distributions of the reward, held out and in the rounds' own samples, and the paired change."""
    held_out = {policy.label: finite for policy in run.policies if (finite := _finite(policy.answers))}
    if not held_out:
        yield _NOTHING
        return
    yield "Every policy answers the same held-out prompts with the same seeds. Policy 1 is what round 0 trained."
    yield Heading("Held-out reward of each policy")
    yield distribution_figure(held_out, "reward")
    yield Note("One value an answer: box of quartiles, dashed line at the mean.")
    if run.changes:
        points = {"start": Interval(0.0, 0.0, 0.0)} | {name: c.reward for name, c in run.changes.items()}
        yield Heading("Change from the starting policy")
        yield interval_figure({"change": points}, "change of the mean reward", 280, 0.0)
        yield Note(
            "Mean of the paired differences by prompt, with 95% intervals of the bootstrap over prompts."
        )
    sampled = {one.label: finite for one in run.rounds if (finite := _finite(one.sampled))}
    if sampled:
        yield Heading("Reward of the samples that each round trained on")
        yield distribution_figure(sampled, "reward")
        yield Note("Each round has prompts of its own, so that rounds differ by their prompts too.")


def wins(run: OnlineRun) -> Parts:
    """Win rates over the starting policy."""
    if not run.changes:
        yield _NOTHING
        return
    shares = {label: change.wins for label, change in run.changes.items()}
    yield interval_figure({"wins": shares}, "prompts won", 280, shares=True)
    yield Note(
        "The share of held-out prompts on which a policy's mean reward is higher than the starting policy's, ties by "
        "halves, with Wilson's 95% intervals. At 50% neither is better."
    )


def frontier(run: OnlineRun) -> Parts:
    """Reward against KL, the over-optimisation frontier (Gao et al. 2022); nothing without a reference."""
    divergence = {one.index: one.number("kl_to_reference") for one in run.rounds}
    divergence = {index: max(0.0, value) for index, value in divergence.items() if math.isfinite(value)}
    if not divergence:
        return
    series: dict[str, dict[int, Sequence[ScoredAnswer]]] = {
        "held-out prompts": {index: run.policies[index].answers for index in divergence},
        "the round's own samples": {index: run.rounds[index].sampled for index in divergence},
    }
    figure = go.Figure()
    for name, answers in series.items():
        points = {i: point for i, of in answers.items() if (point := mean_over_prompts(of)) is not None}
        if not points:
            continue
        figure.add_scatter(
            x=[divergence[index] for index in points],
            y=[point.mean for point in points.values()],
            text=[run.policies[index].label for index in points],
            cliponaxis=False,
            error_y={
                "array": [point.high - point.mean for point in points.values()],
                "arrayminus": [point.mean - point.low for point in points.values()],
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
    most = max(divergence.values()) or 1.0
    figure.update_xaxes(range=[-0.06 * most, 1.08 * most], zeroline=False)
    yield dressed(figure, "KL from the reference, nats an answer", "mean reward", 360)
    anchor = run.files.setting("reference.update", "initial")
    kept = (
        "the starting policy"
        if anchor == "initial"
        else f"a reference that moves (reference.update={anchor})"
    )
    yield Note(
        f"KL from {kept}, in nats an answer, estimated on the answers in pairs: the mean of log π(y) − log π_ref(y). "
        "Each point is the policy that sampled in a round; the last policy has not sampled yet. A curve that bends down "
        "as KL grows is over-optimisation; one that still rises proves nothing, since the reward is the one trained on. "
        "Bars are 95% intervals of the bootstrap over prompts."
    )


def evaluation(run: OnlineRun) -> Parts:
    """Every policy's held-out figures, and its benchmarks where it sat any."""
    rows, scores = [], {}
    for policy in run.policies:
        answers, change = policy.answers, run.changes.get(policy.label)
        rows.append(
            (
                policy.label,
                number(mean(answer.reward for answer in answers), ".2f"),
                marked(change.reward if change else None),
                share_words(change.wins if change else None),
                number(policy.length, ".1f"),
                *(percent(share(answers, ending), 1) for ending in ("refusal", "cut")),
            )
        )
        if policy.benchmarks:
            metrics = run.rounds[policy.version - 1].metrics if policy.version else {}
            scores[policy.label] = [
                (result, metrics.get(f"bench_{task}_{protocol}_p"))
                for (task, protocol), result in policy.benchmarks.items()
            ]
    columns = ("Policy", "reward", "change (95%)", "wins (95%)", "tokens", "refused", "cut off")
    yield Heading("Held-out prompts")
    yield PageTable(columns, rows)
    yield Note(
        "* the 95% interval of the paired change from the start does not hold 0; not corrected for the number of rows."
    )
    if not scores:
        yield Note("No benchmarks were asked for (section benchmarks of the config).")
        return
    yield Heading("Benchmarks")
    yield score_table(scores)
    words = "Accuracy with its 95% interval (Wilson), against the starting policy on the same items."
    yield Note(f"{words} {MARKS}")


def _finite(answers: Sequence[ScoredAnswer]) -> list[float]:
    return [answer.reward for answer in answers if answer.scored]
