"""Whether a policy may have been paid by length: the rule, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ultramed_rl.report.answers import Answer, mean
from ultramed_rl.report.online_run import OnlineRun

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
