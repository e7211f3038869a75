"""A judge's verdicts on a policy's answers, kept beside these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultramed_rl.crew.examiner import Sitting
from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.judging.entailment import StatementScores, StatementSummary, summarize_statements
from ultramed_rl.records import Completion
from ultramed_rl.rewards.statements import StatementGrader, count_statements
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.tracking import Progress


def judge_statements(
    judge: StatementGrader,
    answered: Sequence[tuple[Item, Completion]],
    sitting: Sitting,
    progress: Progress,
    seed: int,
) -> StatementSummary:
    """What a judge makes of answers, in figures.

    Its verdicts stay in the sitting's folder for reading, in `statements*/verdicts.jsonl`; a resumed run doesn't
    ask for them again.

    Raises:
        RuntimeError, ValueError: as `StatementGrader.grade`.
    """
    name = f"statements{sitting.suffix}"
    items, texts = [item for item, _ in answered], [answer.text for _, answer in answered]

    def compute(directory: Path) -> dict[str, float]:
        with progress.phase(name.replace("-", ", ", 1), count_statements(items), "statements") as bar:
            scores = judge.grade(items, texts, bar.advance)
        rows = (_verdict_row(*pair, score) for pair, score in zip(answered, scores, strict=True))
        write_lines(directory / "verdicts.jsonl", rows)
        return {"cut": sum(answer.finish_reason == "length" for _, answer in answered)}

    asked = [request for pair in zip(items, texts, strict=True) for request in judge.requests(*pair)]
    folder, counts = sitting.folder.phase_directory(name, compute, asked, judge.config.model)
    if counts["cut"]:
        progress.say(
            f"{name}: {counts['cut']:.0f} of {len(items)} answers met max_new_tokens; judged as they are"
        )
    lines = (folder / "verdicts.jsonl").read_text(encoding="utf-8").split("\n")
    return summarize_statements([_read_scores(json.loads(line)) for line in lines if line], seed=seed)


def _verdict_row(item: Item, answer: Completion, score: StatementScores) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "question": item.question,
        "answer": answer.text,
        "cut": answer.finish_reason == "length",
        "must_have": list(item.required),
        "must_have_verdicts": list(score.required),
        "nice_to_have": list(item.optional),
        "nice_to_have_verdicts": list(score.optional),
        "replies": list(score.replies),
    }


def _read_scores(row: Mapping[str, Any]) -> StatementScores:
    required, optional = row["must_have_verdicts"], row["nice_to_have_verdicts"]
    return StatementScores(row["item_id"], tuple(required), tuple(optional), tuple(row["replies"]))
