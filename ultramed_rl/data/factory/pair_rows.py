"""Preferences as rows of UltraMedical-Preference, split by prompt, as a stream.

Which form for what:

- binary: one pair a prompt, for DPO and KTO, as UltraMedical publishes.
- ranked: one row a prompt with `completions`, best first, and `scores`. Our reward stage learns every pair of such a
  row, weighs the prompt as one, and computes each answer once: 8 answers for 28 pairs, where pair rows compute 56.
- pairs: a row for each of up to C(n, 2) ordered pairs, 1.8 M for UltraMedical. For trainers that read nothing else,
  and for the bench.

All three give a prompt the same split.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from ultramed_rl.config.factory_pairs import Pairs, SplitSizes
from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.judgements import Judged, read_judged
from ultramed_rl.data.factory.pairs import (
    Answer,
    Pair,
    choose_pair,
    distinct_answers,
    ordered_pairs,
    ranked_answers,
)
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.identity import prompt_key
from ultramed_rl.data.mixtures import choose_held_out
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Message

logger = logging.getLogger(__name__)

Split = Literal["train", "dev", "test"]
Read = Callable[[], Iterable[Row]]


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
        found = preference_rows(judged, rules, counts)
        counts["without"] += not found
        counts[split] += len(found)
        yield from ((split, one) for one in found)
    for model in rules.strongest:
        if model not in models:
            logger.warning("strongest: no candidate is of model %r; models are %s", model, sorted(models))


def choose_splits(keys: Iterable[str], sizes: SplitSizes, seed: int) -> dict[str, Split]:
    """The dev and test prompts by key; all others train. Each key's own hash decides, whatever the order.

    Raises:
        ValueError: no prompt would be left to train on.
    """
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
        scores = [score for _, score in ranked]
        pairs = sum(better > worse for place, better in enumerate(scores) for worse in scores[place + 1 :])
        counts["pairs"] += pairs
        return [ranked_row(judged, ranked)] if pairs else []
    if rules.form == "pairs":
        found = ordered_pairs(answers, rules.min_gap)
    else:
        chosen = choose_pair(judged, answers, rules)
        found = [] if isinstance(chosen, str) else [chosen]
        if isinstance(chosen, str):
            counts[chosen] += 1
    counts["pairs"] += len(found)
    return [pair_row(judged, pair) for pair in found]


def pair_row(judged: Judged, pair: Pair) -> dict[str, Any]:
    """A pair with UltraMedical-Preference's columns."""
    chosen, rejected = pair
    name = f"{judged.prompt_id}#{chosen.place}-{rejected.place}"
    return {
        "prompt_id": judged.prompt_id,
        "prompt": judged.prompt,
        "chosen": _turns(judged, chosen),
        "rejected": _turns(judged, rejected),
        "metadata": {**_metadata(judged, pair), "pair_id": name},
        "label_type": None,
        "feedback": {"chosen": _said(chosen), "rejected": _said(rejected)},
    }


def ranked_row(judged: Judged, ranked: list[tuple[Answer, float]]) -> dict[str, Any]:
    """A ranking with the columns that `preference_formats` reads as such. An answer that stops within a sentence is
    marked as cut off, so that no one learns to end there."""
    answers = [answer for answer, _ in ranked]
    return {
        "prompt_id": judged.prompt_id,
        "prompt": judged.prompt,
        "completions": [
            {"text": a.text, "finish_reason": "length" if a.candidate.unfinished else "stop"} for a in answers
        ],
        "scores": [score for _, score in ranked],
        "metadata": _metadata(judged, answers),
        "label_type": None,
        "feedback": [_said(answer) for answer in answers],
    }


def _key(prompt: str) -> str:
    return prompt_key([Message(role="user", content=prompt)])


def _turns(judged: Judged, answer: Answer) -> list[Message]:
    return [Message(role="user", content=judged.prompt), Message(role="assistant", content=answer.text)]


def _metadata(judged: Judged, answers: Iterable[Answer]) -> dict[str, Any]:
    own = list(answers)
    return {
        "models": [answer.candidate.model for answer in own],
        "scores": [float(answer.verdict.overall) for answer in own],
        "ranks": [answer.verdict.rank for answer in own],
        "places": [answer.place for answer in own],
        "judge": judged.judge,
    }


def _said(answer: Answer) -> Mapping[str, Any]:
    scores = {name: float(score) for name, score in answer.verdict.scores.items()}
    return {"evaluation": answer.verdict.evaluation, "scores": scores}
