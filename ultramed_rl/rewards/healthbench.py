"""HealthBench's grader: its verdicts on the answers of benchmarks, kept beside them, and itself against physicians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ultramed_rl.config.benchmarks import Grader
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.healthbench import (
    GradedExample,
    GraderAgreement,
    RubricSummary,
    grader_agreement,
    summarize_rubrics,
)
from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.rubrics import Criterion
from ultramed_rl.evaluation.runner import AnswerPlace
from ultramed_rl.records import Completion, Message
from ultramed_rl.rewards.rubric import AskedRubric, RubricGrader
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.store.atomic import read_lines, write_lines
from ultramed_rl.tracking import Progress

Answered = Sequence[tuple[Item, Sequence[Completion]]]
_VERDICTS = "verdicts.jsonl"


def judge_rubrics(
    grader: RubricGrader,
    answered: Mapping[tuple[str, str], Answered],
    place: AnswerPlace,
    progress: Progress,
    seed: int,
) -> list[RubricSummary]:
    """What a grader makes of answers, by task and protocol.

    Its verdicts stay in the folder for reading, in `rubrics-*/verdicts.jsonl`; a resumed run doesn't ask for them again. Raises
    RuntimeError, ValueError: as `RubricGrader.grade`.
    """
    summaries = []
    for (task, protocol), items in answered.items():
        name = f"rubrics-{task}-{protocol}{place.suffix}"
        flat = [(item, answer) for item, answers in items for answer in answers]
        asked = [AskedRubric(_asked(item), answer.answer, item.criteria) for item, answer in flat]

        def compute(
            directory: Path,
            name: str = name,
            flat: Sequence[tuple[Item, Completion]] = flat,
            asked: Sequence[AskedRubric] = asked,
        ) -> dict[str, float]:
            with progress.phase(name, sum(len(one.criteria) for one in asked), "criteria") as bar:
                verdicts = grader.grade(asked, lambda _: bar.advance(1))
            rows = [
                {
                    "item_id": item.item_id,
                    "sample": answer.sample,
                    "question": item.question,
                    "answer": one.answer,
                    "cut": answer.finish_reason == "length",
                    "tags": item.tags,
                    "criteria": [asdict(c) | {"met": v} for c, v in zip(item.criteria, met, strict=True)],
                }
                for (item, answer), one, met in zip(flat, asked, verdicts, strict=True)
            ]
            write_lines(directory / _VERDICTS, rows)
            return {"answers": len(rows)}

        inputs = [(one.answer, [asdict(c) for c in one.criteria]) for one in asked]
        folder, _ = place.folder.phase_directory(name, compute, inputs, grader.name, grader.template.template)
        summary = summarize_rubrics(task, protocol, _read(folder / _VERDICTS), seed=seed)
        summaries += [summary] if summary is not None else []
    return summaries


def measure_grader(
    grader: RubricGrader, config: Grader, folder: ArtifactFolder, progress: Progress
) -> GraderAgreement | None:
    """The grader against the physicians of HealthBench's meta-evaluation, where its file is given: rows of `prompt`, `completion`,
    `rubric` and `binary_labels`. Raises as `RubricGrader.grade`; ValueError: a row of another form."""
    if config.meta is None:
        return None
    asked, labels = [], []
    for number, row in enumerate(read_rows(config.meta, config.meta_limit), 1):
        try:
            turns = [Message(role=str(t["role"]), content=str(t["content"])) for t in row["prompt"]]
            asked.append(AskedRubric(turns, str(row["completion"]), [Criterion(str(row["rubric"]))]))
            labels.append([bool(label) for label in row["binary_labels"]])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"benchmarks.grader.meta={config.meta!r}: row {number} has no {error}; give the file of HealthBench's "
                "meta-evaluation (prompt, completion, rubric, binary_labels)"
            ) from None

    def compute(directory: Path) -> dict[str, float]:
        with progress.phase("grader against physicians", len(asked), "criteria") as bar:
            verdicts = [met for (met,) in grader.grade(asked, lambda _: bar.advance(1))]
        write_lines(
            directory / _VERDICTS,
            [{"met": met, "labels": own} for met, own in zip(verdicts, labels, strict=True)],
        )
        return {}

    inputs = [[one.answer for one in asked], labels, grader.name, grader.template.template]
    path, _ = folder.phase_directory("grader", compute, inputs)
    rows = read_lines(path / _VERDICTS)
    found = grader_agreement([row["met"] for row in rows], [row["labels"] for row in rows])
    progress.say(
        f"grader {grader.name}: F1 {found.f1:.3f} against physicians' labels (agreement {found.agreement:.1%} on "
        f"{found.criteria} criteria)"
    )
    return found


def _asked(item: Item) -> Sequence[Message]:
    return item.turns or (Message(role="user", content=item.question),)


def _read(file: Path) -> list[GradedExample]:
    """The examples of a file of verdicts, each with all of its answers."""
    by_item: dict[str, list[dict[str, Any]]] = {}
    for row in read_lines(file):
        by_item.setdefault(row["item_id"], []).append(row)
    examples = []
    for item_id, rows in by_item.items():
        criteria = tuple(Criterion(c["text"], c["points"], tuple(c["tags"])) for c in rows[0]["criteria"])
        met = [(len(row["answer"]), tuple(c["met"] for c in row["criteria"])) for row in rows]
        unread = sum(verdict is None for _, own in met for verdict in own)
        whole = tuple((length, own) for length, own in met if None not in own)
        examples.append(GradedExample(item_id, tuple(rows[0]["tags"]), criteria, whole, unread))
    return examples
