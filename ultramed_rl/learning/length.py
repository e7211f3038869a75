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
    """Tokens against reward within prompts, of answers that are added prompt by prompt: a round may have millions."""

    def __init__(self) -> None:
        self._products = self._tokens = self._rewards = 0.0  # sums over answers, of products and of squares

    def add(self, tokens: Sequence[int], rewards: Sequence[float]) -> None:
        """The answers to a prompt; those without a finite reward don't count."""
        kept = [(t, r) for t, r in zip(tokens, rewards, strict=True) if math.isfinite(r)]
        if len(kept) < 2:
            return
        mean_tokens, mean_reward = (math.fsum(column) / len(kept) for column in zip(*kept, strict=True))
        for t, r in kept:
            self._products += (t - mean_tokens) * (r - mean_reward)
            self._tokens += (t - mean_tokens) ** 2
            self._rewards += (r - mean_reward) ** 2

    def add_answers(self, answers: Iterable[ScoredCompletion]) -> None:
        """A prompt's scored answers; the data's own is not the policy's, and doesn't count."""
        own = [a for a in answers if a.completion.finish_reason != "reference"]
        self.add([len(a.completion.token_ids) for a in own], [a.reward for a in own])

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
