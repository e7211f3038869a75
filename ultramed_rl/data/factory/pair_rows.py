"""Preferences as rows of UltraMedical-Preference, split by prompt, as a stream. All forms give a prompt the same split.

- binary: one pair a prompt, for DPO and KTO, as UltraMedical publishes.
- ranked: one row a prompt with `completions`, best first, and `scores`. Our reward stage learns every pair of such a
  row, weighs the prompt as one, and computes each answer once: 8 answers for 28 pairs, where pair rows compute 56.
- pairs: a row for each of up to C(n, 2) ordered pairs. For trainers that read nothing else, and for the bench.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from ultramed_rl.config.factory_steps import Pairs, SplitSizes
from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.judgements import Candidate, Judged, Verdict, read_judged
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.identity import choose_held_out, prompt_key
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Message

logger = logging.getLogger(__name__)
Split = Literal["train", "dev", "test"]
Read = Callable[[], Iterable[Row]]
_ROUNDING = 1e-9  # scores are decimal: 4.3 - 3.3 is a gap of 1


def build_pairs(read: Read, rules: Pairs, counts: Counter[str]) -> Iterator[tuple[Split, Row]]:
    """Judged rows to preference rows with their splits, in the order of the input.

    Columns: prompt_id, prompt, chosen and rejected (turns from the user's on; in the ranked form `completions` and
    `scores` instead), metadata, label_type (none yet), feedback. metadata has models, scores, ranks and places in
    the order of the answers, the judge, and a pair's pair_id.

    The input is read twice. Memory holds the keys of the dev and test prompts alone.

    Args:
        read: opens the judged rows; the same ones at each call.
        counts: gains prompts (judged rows), without (of these, no preference came), and of those why: no_chosen,
            no_rejected; identical and empty (answers left out), near (left out of a ranking by min_gap), pairs
            (that the rows hold), train, dev, test (rows).

    Raises:
        ValueError: a row that no judge wrote, or splits that leave no prompt to train on.
    """
    splits = choose_splits((_key(question_text(row)) for row in read()), rules.splits, rules.seed)
    counts.update(prompts=0, without=0, pairs=0, train=0, dev=0, test=0)
    models: set[str] = set()
    for row in read():
        judged = read_judged(row)
        models.update(candidate.model for candidate in judged.candidates)
        counts["prompts"] += 1
        split = splits.get(_key(judged.prompt), "train")
        rows = preference_rows(judged, rules, counts)
        counts["without"] += not rows
        counts[split] += len(rows)
        yield from ((split, one) for one in rows)
    for model in rules.strongest:
        if model not in models:
            logger.warning("strongest: no candidate is of model %r; models are %s", model, sorted(models))


def choose_splits(keys: Iterable[str], sizes: SplitSizes, seed: int) -> dict[str, Split]:
    """The dev and test prompts by key; all others train. Each key's own hash decides, whatever the order. Raises
    ValueError: no prompt would be left to train on."""
    try:
        chosen = choose_held_out(keys, sizes.dev + sizes.test, seed)
    except ValueError:
        raise ValueError(
            f"splits.dev={sizes.dev} and splits.test={sizes.test} leave no prompt to train on; lower them or judge "
            "more records"
        ) from None
    drawn = sorted(chosen, key=lambda key: (seeded_number(seed, "split", key), key))
    return {key: "test" if place < sizes.test else "dev" for place, key in enumerate(drawn)}


def preference_rows(judged: Judged, rules: Pairs, counts: Counter[str]) -> list[Row]:
    """The rows of one judged record, none where its answers give no preference. Counts as `build_pairs`."""
    answers = distinct_answers(judged, counts)
    if rules.form == "ranked":
        ranked = ranked_answers(answers, rules.min_gap)
        counts["near"] += len(answers) - len(ranked)
        pairs = sum(better > worse for (_, better), (_, worse) in combinations(ranked, 2))
        counts["pairs"] += pairs
        return [_ranked_row(judged, ranked)] if pairs else []
    if rules.form == "pairs":
        preferences = ordered_pairs(answers, rules.min_gap)
    elif isinstance(chosen := choose_pair(judged, answers, rules), str):
        preferences = []
        counts[chosen] += 1
    else:
        preferences = [chosen]
    counts["pairs"] += len(preferences)
    return [_pair_row(judged, *pair) for pair in preferences]


def _pair_row(judged: Judged, chosen: RatedAnswer, rejected: RatedAnswer) -> Row:
    """A pair with UltraMedical-Preference's columns."""
    asked = Message(role="user", content=judged.prompt)
    sides = {"chosen": chosen, "rejected": rejected}
    turns = {side: [asked, Message(role="assistant", content=one.text)] for side, one in sides.items()}
    feedback = {side: _feedback(one) for side, one in sides.items()}
    name = f"{judged.prompt_id}#{chosen.place}-{rejected.place}"
    return _row(judged, [chosen, rejected], turns, feedback, pair_id=name)


def _ranked_row(judged: Judged, ranked: Sequence[tuple[RatedAnswer, float]]) -> Row:
    """A ranking with the columns that `preference_formats` reads as such. An answer that stops within a sentence is
    marked as cut off, so that no one learns to end there."""
    answers = [answer for answer, _ in ranked]
    completions = [
        {"text": one.text, "finish_reason": "length" if one.candidate.unfinished else "stop"}
        for one in answers
    ]
    compared = {"completions": completions, "scores": [score for _, score in ranked]}
    return _row(judged, answers, compared, [_feedback(answer) for answer in answers])


def _row(judged: Judged, answers: Sequence[RatedAnswer], compared: Row, feedback: Any, **names: str) -> Row:
    metadata = {
        "models": [answer.candidate.model for answer in answers],
        "scores": [float(answer.verdict.overall) for answer in answers],
        "ranks": [answer.verdict.rank for answer in answers],
        "places": [answer.place for answer in answers],
        "judge": judged.judge,
        **names,
    }
    asked = {"prompt_id": judged.prompt_id, "prompt": judged.prompt}
    return {**asked, **compared, "metadata": metadata, "label_type": None, "feedback": feedback}


def _feedback(answer: RatedAnswer) -> dict[str, Any]:
    scores = {name: float(score) for name, score in answer.verdict.scores.items()}
    return {"evaluation": answer.verdict.evaluation, "scores": scores}


def _key(prompt: str) -> str:
    return prompt_key([Message(role="user", content=prompt)])


@dataclass(frozen=True)
class RatedAnswer:
    """A candidate that may be compared, at `place` among its record's candidates; its text is trimmed."""

    place: int
    text: str
    candidate: Candidate
    verdict: Verdict


Pair = tuple[RatedAnswer, RatedAnswer]  # the better one, the worse one


def distinct_answers(judged: Judged, counts: Counter[str]) -> list[RatedAnswer]:
    """The record's answers, best rank first, each text once at its best rank. A text that two models gave would else be
    better and worse than what is ranked between. Texts count as they are read later, trimmed. `counts` gains identical
    and empty, of answers left out."""
    answers: dict[str, RatedAnswer] = {}
    for place in judged.ranking:
        candidate = judged.candidates[place]
        text = candidate.text.strip()
        if not text or text in answers:
            counts["identical" if text else "empty"] += 1
        else:
            answers[text] = RatedAnswer(place, text, candidate, judged.verdicts[place])
    return list(answers.values())


def is_better(one: RatedAnswer, other: RatedAnswer, min_gap: float) -> bool:
    """Whether the first may be chosen over the second: a better rank, and an overall score higher by `min_gap`
    or more. With 0, equal scores do and the ranking decides; a rank against the scores never counts."""
    gap = one.verdict.overall - other.verdict.overall
    return one.verdict.rank < other.verdict.rank and gap >= min_gap - _ROUNDING


def ordered_pairs(answers: Sequence[RatedAnswer], min_gap: float) -> list[Pair]:
    """Of answers, best rank first, every pair of which one `is_better`: C(n, 2) of n that are ranked as they score,
    with gap 0."""
    return [pair for pair in combinations(answers, 2) if is_better(*pair, min_gap)]


def choose_pair(judged: Judged, answers: Sequence[RatedAnswer], rules: Pairs) -> Pair | str:
    """UltraMedical's binarised pair out of answers, best rank first, or why there is none: no_chosen, no_rejected.

    Chosen is the top rank; of answers that tie with it in the overall score, that of the model first in
    `strongest`, and models that aren't there by their rank. Rejected is drawn by seed from those it `is_better`
    than. An answer that stops within a sentence may be rejected and is never chosen.
    """
    finished = [answer for answer in answers if not answer.candidate.unfinished]
    if not finished:
        return "no_chosen"
    tied = [answer for answer in finished if answer.verdict.overall == finished[0].verdict.overall]
    order = [*rules.strongest, *(answer.candidate.model for answer in tied)]
    chosen = min(tied, key=lambda answer: order.index(answer.candidate.model))
    worse = [answer for answer in answers if is_better(chosen, answer, rules.min_gap)]
    if not worse:
        return "no_rejected"
    return chosen, worse[seeded_number(rules.seed, "rejected", judged.prompt_id) % len(worse)]


def ranked_answers(answers: Sequence[RatedAnswer], min_gap: float) -> list[tuple[RatedAnswer, float]]:
    """Of answers, best rank first, those with scores whose pairs of different score are pairs that `is_better` allows.

    A row of ranked answers says which pairs to learn from by its scores alone: different ones make a pair. With
    min_gap=0 all do, so scores are n - 1 down to 0; else they are the overall ones, and equal ones make none. An
    answer that is lower than the one before but by less than `min_gap` can't be said so, and is left out. With whole
    scores and min_gap <= 1 none is.
    """
    kept: list[RatedAnswer] = []
    for answer in answers:
        equal = bool(kept) and min_gap > 0 and kept[-1].verdict.overall == answer.verdict.overall
        if not kept or equal or is_better(kept[-1], answer, min_gap):
            kept.append(answer)
    if min_gap > 0:
        return [(answer, answer.verdict.overall) for answer in kept]
    return [(answer, float(len(kept) - 1 - place)) for place, answer in enumerate(kept)]
