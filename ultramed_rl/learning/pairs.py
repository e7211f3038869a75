"""Preference pairs out of scored completions: the best of a prompt's samples against a worse one.

UltraMedical pairs the best with the worst or a random lower one; near_low follows arXiv 2502.16825, which
finds mean - 2 sigma a better rejected side than the minimum as the number of samples grows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from statistics import fmean, pstdev

from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import PreferenceGroup, Prompt, ScoredCompletion, SelectionAudit

RULES = ("worst", "random", "near_low")
_REWARD, _SAMPLE = attrgetter("reward"), attrgetter("completion.sample")
_NAME = attrgetter("completion.prompt_id", "completion.sample")


class PairSelector:
    """Chooses a prompt's pair as its scored answers pass, and counts what became of each prompt.

    With `listwise` a prompt gives all of its answers of different texts, best first, not just two; an empty one
    only if it scores below the best.

    chosen: the highest finite reward among non-empty answers, the lowest sample index where several have it; one that is
    all reasoning is empty.
    rejected, among completions of other text and lower reward: "worst" the lowest; "random" any, by a hash of
    seed, round and prompt id; "near_low" the nearest to mean - 2 sigma of the prompt's finite rewards.

    Audit, first reason that holds: non_finite (fewer than two finite rewards, because some aren't), too_few
    (fewer than two completions, or none with text), identical (all texts are the chosen's), tied (nothing
    scores lower), small_margin (gap < `min_margin`), length_ratio (longer side > `max_length_ratio` x
    the shorter's tokens), else pairs. Non-finite rewards are set aside and never enter a pair.
    """

    def __init__(
        self,
        *,
        rejected: str,
        min_margin: float,
        max_length_ratio: float | None,
        seed: int,
        round_index: int,
        listwise: bool = False,
    ) -> None:
        assert rejected in RULES, f"rejected={rejected!r}: none of {', '.join(RULES)}"
        self.rule, self.listwise = rejected, listwise
        self.min_margin, self.max_length_ratio = min_margin, max_length_ratio
        self.seed, self.round_index = seed, round_index
        self.counts: Counter[str] = Counter()

    @property
    def audit(self) -> SelectionAudit:
        """Every prompt so far in one count."""
        return SelectionAudit(prompts=self.counts.total(), **{"pairs": 0, **self.counts})

    def choose(self, prompt: Prompt, scored: Sequence[ScoredCompletion]) -> PreferenceGroup | None:
        """The pair of a prompt, of which all answers are there; None where it gives none."""
        asked = {answer.completion.prompt_id for answer in scored}
        assert asked == {prompt.prompt_id}, f"answers {[*map(_NAME, scored)]} of {prompt.prompt_id}"
        assert len(set(map(_SAMPLE, scored))) == len(scored), f"given twice: one of {[*map(_NAME, scored)]}"
        pair = self._pair(prompt, sorted(scored, key=_SAMPLE))
        self.counts[pair if isinstance(pair, str) else "pairs"] += 1
        return None if isinstance(pair, str) else pair

    def _pair(self, prompt: Prompt, answers: Sequence[ScoredCompletion]) -> PreferenceGroup | str:
        """A prompt's pair, or the audit's name of why it has none."""
        finite = [c for c in answers if math.isfinite(c.reward)]
        if len(finite) < 2:
            return "non_finite" if len(finite) < len(answers) else "too_few"
        spoken = [c for c in finite if c.completion.answer.strip()]
        if not spoken:
            return "too_few"
        chosen = max(spoken, key=_REWARD)  # the first of equals: the lowest sample
        text = _text(chosen)
        others = [c for c in finite if _text(c) != text]
        lower = [c for c in others if c.reward < chosen.reward]
        if not lower:
            return "tied" if others else "identical"
        kept = _ranked(finite, chosen) if self.listwise else [chosen, self._reject(prompt, lower, finite)]
        group = PreferenceGroup(prompt, tuple(c.completion for c in kept), tuple(c.reward for c in kept))
        if group.margin < self.min_margin:
            return "small_margin"
        shorter, longer = sorted((len(group.chosen.token_ids), len(group.rejected.token_ids)))
        if self.max_length_ratio is not None and longer > self.max_length_ratio * shorter:
            return "length_ratio"
        return group

    def _reject(
        self, prompt: Prompt, lower: Sequence[ScoredCompletion], finite: Sequence[ScoredCompletion]
    ) -> ScoredCompletion:
        if self.rule == "worst":
            return min(lower, key=_REWARD)
        if self.rule == "random":
            return lower[seeded_number(self.seed, self.round_index, prompt.prompt_id) % len(lower)]
        rewards = [c.reward for c in finite]
        target = fmean(rewards) - 2 * pstdev(rewards)
        return min(lower, key=lambda c: (abs(c.reward - target), c.reward))


def _ranked(finite: Sequence[ScoredCompletion], chosen: ScoredCompletion) -> list[ScoredCompletion]:
    """The best answer of each text, best first; an empty one only below the chosen."""
    kept = [c for c in finite if c.completion.answer.strip() or c.reward < chosen.reward]
    best_of_text: dict[str, ScoredCompletion] = {}
    for answer in sorted(kept, key=lambda c: (-c.reward, c.completion.sample)):
        best_of_text.setdefault(_text(answer), answer)
    return list(best_of_text.values())


def _text(answer: ScoredCompletion) -> str:
    return answer.completion.text.strip()
