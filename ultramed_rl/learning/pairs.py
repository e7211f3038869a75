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
_REWARD = attrgetter("reward")


class PairSelector:
    """Chooses a prompt's pair as its scored answers pass, and counts what became of each prompt.

    With `listwise` a prompt gives all of its answers of different texts, best first, not just two; an empty one
    only if it scores below the best.

    chosen: the highest finite reward among non-empty texts, the lowest sample index where several have it.
    rejected, among completions of other text and lower reward: "worst" the lowest; "random" any, by a hash of
    seed, round and prompt id; "near_low" the nearest to mean - 2 sigma of the prompt's finite rewards.

    Audit, first reason that holds: non_finite (fewer than two finite rewards, because some aren't), too_few
    (fewer than two completions, or none with text), identical (all texts are the chosen's), tied (nothing
    scores lower), small_margin (gap < `min_margin`), length_ratio (longer side > `max_length_ratio` x
    the shorter's tokens), else pairs. Non-finite rewards are set aside and never enter a pair.

    Raises:
        ValueError: an unknown rule.
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
        if rejected not in RULES:
            raise ValueError(f"rejected={rejected!r}: unknown rule; use one of {', '.join(RULES)}")
        self.rule = None if listwise else rejected
        self.min_margin, self.max_length_ratio = min_margin, max_length_ratio
        self.seed, self.round_index = seed, round_index
        self.counts: Counter[str] = Counter()

    @property
    def audit(self) -> SelectionAudit:
        """Every prompt so far in one count."""
        return SelectionAudit(prompts=self.counts.total(), **{"pairs": 0, **self.counts})

    def choose(self, prompt: Prompt, scored: Sequence[ScoredCompletion]) -> PreferenceGroup | None:
        """The pair of a prompt, of which all answers are there; None where it gives none.

        Raises:
            ValueError: no answers, one of another prompt, or one given twice.
        """
        candidates = _by_sample(prompt, scored)
        chosen = _choose(candidates, self.rule, seeded_number(self.seed, self.round_index, prompt.prompt_id))
        if not isinstance(chosen, str):
            pair = _apply_limits(prompt, chosen, self.min_margin, self.max_length_ratio)
            if not isinstance(pair, str):
                self.counts["pairs"] += 1
                return pair
            chosen = pair
        self.counts[chosen] += 1
        return None


def _by_sample(prompt: Prompt, scored: Sequence[ScoredCompletion]) -> list[ScoredCompletion]:
    if not scored:
        raise ValueError(f"prompt {prompt.prompt_id}: no completions; each prompt needs its samples scored")
    found: dict[int, ScoredCompletion] = {}
    for item in scored:
        completion = item.completion
        if completion.prompt_id != prompt.prompt_id:
            raise ValueError(f"completion {completion.completion_id}: not of prompt {prompt.prompt_id}")
        if completion.sample in found:
            raise ValueError(
                f"completion {completion.completion_id}: given twice; give each sample its own index"
            )
        found[completion.sample] = item
    return [found[sample] for sample in sorted(found)]


def _choose(
    candidates: Sequence[ScoredCompletion], rule: str | None, draw: int
) -> tuple[ScoredCompletion, ...] | str:
    """(chosen, rejected), all answers best first without a rule, or the audit's count of a prompt without."""
    finite = [c for c in candidates if math.isfinite(c.reward)]
    if len(finite) < 2:
        return "non_finite" if len(finite) < len(candidates) else "too_few"
    spoken = [c for c in finite if c.completion.text.strip()]
    if not spoken:
        return "too_few"
    chosen = max(spoken, key=_REWARD)  # the first of equals: the lowest sample
    text = chosen.completion.text.strip()
    lower = [c for c in finite if c.reward < chosen.reward and c.completion.text.strip() != text]
    if not lower:
        return "tied" if any(c.completion.text.strip() != text for c in finite) else "identical"
    if rule is not None:
        return chosen, _pick(lower, finite, rule, draw)
    kept = [c for c in finite if c.completion.text.strip() or c.reward < chosen.reward]
    ranked = sorted(kept, key=lambda c: (-c.reward, c.completion.sample))
    best_of_text = {c.completion.text.strip(): c for c in reversed(ranked)}
    return tuple(c for c in ranked if best_of_text[c.completion.text.strip()] is c)


def _pick(
    lower: Sequence[ScoredCompletion], finite: Sequence[ScoredCompletion], rule: str, draw: int
) -> ScoredCompletion:
    if rule == "worst":
        return min(lower, key=_REWARD)
    if rule == "random":
        return lower[draw % len(lower)]
    rewards = [c.reward for c in finite]
    target = fmean(rewards) - 2 * pstdev(rewards)
    return min(lower, key=lambda c: (abs(c.reward - target), c.reward))


def _apply_limits(
    prompt: Prompt,
    answers: tuple[ScoredCompletion, ...],
    min_margin: float,
    max_length_ratio: float | None,
) -> PreferenceGroup | str:
    group = PreferenceGroup(prompt, tuple(a.completion for a in answers), tuple(a.reward for a in answers))
    if group.margin < min_margin:
        return "small_margin"
    shorter, longer = sorted((len(group.chosen.token_ids), len(group.rejected.token_ids)))
    if max_length_ratio is not None and longer > max_length_ratio * shorter:
        return "length_ratio"
    return group
