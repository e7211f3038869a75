"""HealthBench's figures, as OpenAI's simple-evals computes them: out of verdicts on criteria, and of a grader against physicians. Pure.

An example's score is its points earned over those to be earned, and may be below 0; means over examples are clipped to 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import fmean

from ultramed_rl.evaluation.rubrics import Criterion, earned_share
from ultramed_rl.evaluation.statistics import Interval, mean_interval

# What 500 characters over 2,000 cost, and 500 under it earn: simple-evals' figures for each set.
LENGTH_COST = {"healthbench": 0.0299, "healthbench_hard": 0.0392, "healthbench_consensus": 0.0020}
_CENTRE, _STEP = 2000, 500
_SHOWN = ("theme:", "axis:")


@dataclass(frozen=True)
class GradedExample:
    """An example's answers with the verdicts on their criteria; those without all verdicts are left out."""

    item_id: str
    tags: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    answers: tuple[tuple[int, tuple[bool, ...]], ...]  # characters of each, and which criteria it meets
    unread: int = 0  # verdicts that did not come

    @property
    def scores(self) -> list[float]:
        """Of each answer, unclipped."""
        return [earned_share(self.criteria, met) for _, met in self.answers]


@dataclass(frozen=True)
class RubricSummary:
    """A set under one protocol. `tags`: by theme and axis the mean and of how many answers; `worst_at`: by k, the mean of the
    worst of k answers."""

    task: str
    protocol: str
    items: int
    answers: int
    unread: int
    score: Interval
    length_adjusted: Interval
    tags: dict[str, tuple[float, int]] = field(default_factory=dict)
    worst_at: dict[int, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures, flat, for a tracker."""
        figures = {"score": self.score.mean, "length_adjusted": self.length_adjusted.mean}
        figures |= {tag.replace(":", "_"): value for tag, (value, _) in self.tags.items()}
        figures |= {f"worst_at_{k}": value for k, value in self.worst_at.items() if k > 1}
        return {f"{self.task}_{self.protocol}_{name}": value for name, value in figures.items()}


def summarize_rubrics(
    task: str, protocol: str, graded: Sequence[GradedExample], resamples: int = 1000, seed: int = 0
) -> RubricSummary | None:
    """The figures over examples, with percentile intervals of the bootstrap over them; None where none was graded."""
    known = [example for example in graded if example.answers]
    if not known:
        return None
    cost = LENGTH_COST.get(task, 0.0)
    adjusted = [
        fmean(
            score - cost * (length - _CENTRE) / _STEP
            for score, (length, _) in zip(example.scores, example.answers, strict=True)
        )
        for example in known
    ]
    least = min(len(example.answers) for example in known)
    return RubricSummary(
        task,
        protocol,
        items=len(known),
        answers=sum(len(example.answers) for example in known),
        unread=sum(example.unread for example in graded),
        score=_mean([fmean(example.scores) for example in known], resamples, seed),
        length_adjusted=_mean(adjusted, resamples, seed),
        tags={tag: (_clip(fmean(values)), len(values)) for tag, values in sorted(_by_tag(known).items())},
        worst_at={k: _clip(fmean(worst_of(e.scores, k) for e in known)) for k in range(1, least + 1)},
    )


def worst_of(scores: Sequence[float], k: int) -> float:
    """The mean, over all choices of k of these answers, of the worst one's score."""
    ordered, n = sorted(scores), len(scores)
    return math.fsum(s * comb(n - i - 1, k - 1) for i, s in enumerate(ordered)) / comb(n, k)


def _by_tag(graded: Sequence[GradedExample]) -> dict[str, list[float]]:
    """By theme the scores of its examples' answers; by axis the scores of the criteria of that axis, where one is positive."""
    values: dict[str, list[float]] = {}
    for example in graded:
        of_criteria = {tag for criterion in example.criteria for tag in criterion.tags}
        for _, met in example.answers:
            whole = earned_share(example.criteria, met)
            found = {tag: whole for tag in example.tags}
            for tag in of_criteria:
                own = [(c, m) for c, m in zip(example.criteria, met, strict=True) if tag in c.tags]
                found[tag] = earned_share([c for c, _ in own], [m for _, m in own])
            for tag, value in found.items():
                if tag.startswith(_SHOWN) and math.isfinite(value):
                    values.setdefault(tag, []).append(value)
    return values


def _mean(values: Sequence[float], resamples: int, seed: int) -> Interval:
    found = mean_interval(values, resamples, seed)
    return Interval(_clip(found.mean), _clip(found.low), _clip(found.high))


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


# -- a grader against physicians ---------------------------------------------------------------------------


@dataclass(frozen=True)
class GraderAgreement:
    """A grader's verdicts against physicians' labels of the same criteria, each label for itself. `f1`: the mean of the F1 scores of
    met and not met, HealthBench's figure for graders; NaN where one of the two never occurs."""

    criteria: int
    unread: int
    agreement: float
    f1: float

    @property
    def metrics(self) -> dict[str, float]:
        """For a tracker."""
        return {"healthbench_grader_f1": self.f1, "healthbench_grader_agreement": self.agreement}


def grader_agreement(verdicts: Sequence[bool | None], labels: Sequence[Sequence[bool]]) -> GraderAgreement:
    """How a grader agrees with physicians: by criterion, its verdict and their labels."""
    pairs = [
        (verdict, label)
        for verdict, own in zip(verdicts, labels, strict=True)
        if verdict is not None
        for label in own
    ]
    share = fmean(verdict == label for verdict, label in pairs) if pairs else math.nan
    f1 = fmean(_f1(pairs, side) for side in (True, False))
    return GraderAgreement(len(verdicts), sum(v is None for v in verdicts), share, f1)


def _f1(pairs: Sequence[tuple[bool, bool]], side: bool) -> float:
    both = sum(verdict == label == side for verdict, label in pairs)
    said, labelled = (sum(pair[i] == side for pair in pairs) for i in (0, 1))
    return 2 * both / (said + labelled) if said and labelled else math.nan
