"""What length alone says of rewards and preferences.

A reward that pays for length teaches a policy length. Prompts have long and short answers of their own, so what is told here
is told within prompts: of answers to the same prompt, each less the prompt's mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from ultramed_rl.records import PreferenceGroup, ScoredCompletion

PAYS = 0.3  # the correlation, in size, from which on a reward pays for length
_NOTHING = 1e-12  # a sum of squares that is only rounding


class LengthFit:
    """Tokens of the answers, without their reasoning, against reward within prompts, of answers that are added prompt by prompt: a round may have millions."""

    def __init__(self) -> None:
        self._products = self._tokens = self._rewards = 0.0  # sums over answers, of products and of squares

    def add(self, answers: Iterable[tuple[int, float]]) -> None:
        """The answers to a prompt, tokens and reward of each; those without a finite reward don't count."""
        # Sums of differences from the first answer, so that what never varies is exactly zero.
        count = first_tokens = tokens = squared_tokens = 0
        first_reward = rewards = squared_rewards = products = 0.0
        for length, reward in answers:
            if not math.isfinite(reward):
                continue
            if not count:
                first_tokens, first_reward = length, reward
            count += 1
            x, y = length - first_tokens, reward - first_reward
            tokens += x
            rewards += y
            squared_tokens += x * x
            squared_rewards += y * y
            products += x * y
        if count > 1:
            self._products += products - tokens * rewards / count
            self._tokens += squared_tokens - tokens * tokens / count
            self._rewards += squared_rewards - rewards * rewards / count

    def add_answers(self, answers: Iterable[ScoredCompletion]) -> None:
        """A prompt's scored answers; the data's own is not the policy's, and doesn't count."""
        self.add(
            (a.completion.answer_tokens, a.reward)
            for a in answers
            if a.completion.finish_reason != "reference"
        )

    @property
    def correlation(self) -> float:
        """Pearson's, -1 to 1; NaN where length or reward never varies within a prompt."""
        if self._tokens <= _NOTHING or self._rewards <= _NOTHING:
            return math.nan
        return self._products / math.sqrt(self._tokens * self._rewards)

    @property
    def slope(self) -> float:
        """Least squares: reward per token. 0 where lengths never vary within a prompt."""
        return self._products / self._tokens if self._tokens > _NOTHING else 0.0


def length_words(correlation: float) -> str:
    """What a correlation within prompts says."""
    if math.isnan(correlation):
        return "reward or length never varies within a prompt"
    return f"reward and length correlate by {correlation:+.2f} within prompts"


def length_warning(correlation: float, fitted: bool) -> str:
    """What to do about a reward that pays for length; nothing where it doesn't. `fitted`: a slope is taken off already."""
    if not abs(correlation) >= PAYS:
        return ""
    fix = (
        "the slope is the start's, and the reward pays by another one now"
        if fitted
        else "see reward.length_slope"
    )
    return f", over {PAYS}: {'longer' if correlation > 0 else 'shorter'} answers are paid for; {fix}"


def length_accuracies(groups: Sequence[PreferenceGroup]) -> dict[str, float]:
    """`length_accuracy`: the share of pairs that length alone gets right, by the better of two rules, the longer answer and
    the shorter one, ties by halves; the same by kind, `length_accuracy_KIND`, where there are several.

    Of answers of different score each two are a pair. Of few pairs the better rule is over one half by chance.
    """
    by_kind: dict[str, list[float]] = {}
    for group in groups:
        sides = zip(group.rewards, group.completions, strict=True)
        ranked = [(score, len(answer.token_ids)) for score, answer in sides]
        for one, two in combinations(ranked, 2):
            (_, worse), (_, better) = sorted((one, two))
            if one[0] != two[0]:
                right = 0.5 if better == worse else float(better > worse)
                by_kind.setdefault(group.prompt.kind, []).append(right)
    named = {f"length_accuracy_{kind}": of for kind, of in sorted(by_kind.items())}
    shares = {"length_accuracy": [right for of in by_kind.values() for right in of]}
    shares |= named if len(named) > 1 else {}
    means = {name: math.fsum(of) / len(of) for name, of in shares.items() if of}
    return {name: max(mean, 1.0 - mean) for name, mean in means.items()}
