"""Judged records to preferences: which answers are compared, and which is the better.

judged row --> answers of different texts, best rank first --> binary: the best and a drawn worse one
                                                           --> pairs:  every ordered pair
                                                           --> ranked: all in one row, for every pair at once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ultramed_rl.config.factory_pairs import Pairs
from ultramed_rl.data.factory.judgements import Candidate, Judged, Verdict
from ultramed_rl.learning.seeds import seeded_number

_ROUNDING = 1e-9  # scores are decimal: 4.3 - 3.3 is a gap of 1


@dataclass(frozen=True)
class Answer:
    """A candidate that may be compared, at `place` among its record's candidates."""

    place: int
    candidate: Candidate
    verdict: Verdict

    @property
    def text(self) -> str:
        return self.candidate.text.strip()


Pair = tuple[Answer, Answer]  # the better one, the worse one


def distinct_answers(judged: Judged, counts: Counter[str]) -> list[Answer]:
    """The record's answers, best rank first, each text once at its best rank.

    A text that two models gave would else be better and worse than what is ranked between. Texts count as they
    are read later, trimmed. `counts` gains identical and empty, of answers left out.
    """
    found: dict[str, Answer] = {}
    for place in judged.ranking:
        answer = Answer(place, judged.candidates[place], judged.verdicts[place])
        if not answer.text or answer.text in found:
            counts["identical" if answer.text else "empty"] += 1
        else:
            found[answer.text] = answer
    return list(found.values())


def is_better(one: Answer, other: Answer, min_gap: float) -> bool:
    """Whether the first may be chosen over the second: a better rank, and an overall score higher by `min_gap`
    or more. With 0, equal scores do and the ranking decides; a rank against the scores never counts."""
    gap = one.verdict.overall - other.verdict.overall
    return one.verdict.rank < other.verdict.rank and gap >= min_gap - _ROUNDING


def ordered_pairs(answers: Sequence[Answer], min_gap: float) -> list[Pair]:
    """Every pair of answers of which one `is_better`: C(n, 2) of n that are ranked as they score, with gap 0."""
    ranked = sorted(answers, key=lambda answer: answer.verdict.rank)
    return [pair for pair in combinations(ranked, 2) if is_better(*pair, min_gap)]


def choose_pair(judged: Judged, answers: Sequence[Answer], rules: Pairs) -> Pair | str:
    """UltraMedical's binarised pair, or why there is none: no_chosen, no_rejected.

    Chosen is the top rank; of answers that tie with it in the overall score, that of the model first in
    `strongest`, and models that aren't there by their rank. Rejected is drawn by seed from those it `is_better`
    than. An answer that stops within a sentence may be rejected and is never chosen.
    """
    finished = [answer for answer in answers if not answer.candidate.unfinished]
    if not finished:
        return "no_chosen"
    top = min(finished, key=lambda answer: answer.verdict.rank)
    tied = [answer for answer in finished if answer.verdict.overall == top.verdict.overall]
    chosen = min(tied, key=lambda answer: _strength(answer, rules.strongest))
    worse = [answer for answer in answers if is_better(chosen, answer, rules.min_gap)]
    if not worse:
        return "no_rejected"
    return chosen, worse[seeded_number(rules.seed, "rejected", judged.prompt_id) % len(worse)]


def ranked_answers(answers: Sequence[Answer], min_gap: float) -> list[tuple[Answer, float]]:
    """Answers and scores, best first, whose pairs of different score are pairs that `is_better` allows.

    A row of ranked answers says which pairs to learn from by its scores alone: different ones make a pair. With
    min_gap=0 all do, so scores are n - 1 down to 0; else they are the overall ones, and equal ones make none. An
    answer that is lower than the one before but by less than `min_gap` can't be said so, and is left out. With whole
    scores and min_gap <= 1 none is.
    """
    kept: list[Answer] = []
    for answer in sorted(answers, key=lambda answer: answer.verdict.rank):
        equal = bool(kept) and min_gap > 0 and kept[-1].verdict.overall == answer.verdict.overall
        if not kept or equal or is_better(kept[-1], answer, min_gap):
            kept.append(answer)
    if min_gap > 0:
        return [(answer, answer.verdict.overall) for answer in kept]
    return [(answer, float(len(kept) - 1 - place)) for place, answer in enumerate(kept)]


def _strength(answer: Answer, strongest: Sequence[str]) -> tuple[int, int]:
    model = answer.candidate.model
    known = strongest.index(model) if model in strongest else len(strongest)
    return known, answer.verdict.rank
