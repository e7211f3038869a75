"""A policy's report: every task under every protocol, the averages, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ultramed_rl.evaluation.grading import GradedAnswer, read_answer, votes_of
from ultramed_rl.evaluation.results import (
    Average,
    Comparison,
    TaskResult,
    average_columns,
    compare_outcomes,
    task_result,
)
from ultramed_rl.evaluation.suite import AskedTask, Question
from ultramed_rl.evaluation.voting import CurvePoint, SampledItem, rerank_curve
from ultramed_rl.records import Completion, ScoredCompletion
from ultramed_rl.store.atomic import write_lines


@dataclass(frozen=True)
class PolicyReport:
    """`outcomes` by (task, protocol), `results` in that order, `averages` by protocol."""

    policy: str
    outcomes: dict[tuple[str, str], list[GradedAnswer]]
    results: tuple[TaskResult, ...]
    averages: dict[str, Average] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracies and shares of unread answers, flat, for a tracker."""
        figures: dict[str, float] = {}
        for result in self.results:
            name = f"{result.task}_{result.protocol}"
            figures[f"{name}_accuracy"] = result.score.accuracy
            figures[f"{name}_unread"] = sum(result.unread.values()) / result.score.items
        averages = {f"average_{protocol}": a.accuracy for protocol, a in self.averages.items()}
        return figures | averages

    @property
    def details(self) -> dict[str, Any]:
        """Results and averages as plain values, for a JSON file."""
        return {
            "results": [asdict(result) for result in self.results],
            "averages": {protocol: asdict(average) for protocol, average in self.averages.items()},
        }


def report_policy(
    name: str,
    suite: Sequence[AskedTask],
    graded: Mapping[str, Sequence[GradedAnswer]],
    samples: Mapping[str, int],
    curves: Mapping[str, Sequence[CurvePoint]],
) -> PolicyReport:
    """A policy's report.

    Args:
        graded: outcomes by protocol, of all tasks.
        samples: answers per question by protocol.
        curves: by task, of self-consistency's samples.
    """
    outcomes: dict[tuple[str, str], list[GradedAnswer]] = {}
    for protocol, members in graded.items():
        for outcome in members:
            outcomes.setdefault((outcome.question.task.name, protocol), []).append(outcome)
    order = [(asked.task.name, protocol) for asked in suite for protocol in graded]
    results = tuple(
        task_result(
            protocol,
            outcomes[task, protocol],
            samples[protocol],
            curves.get(task, ()) if protocol == "self_consistency" else (),
        )
        for task, protocol in order
        if (task, protocol) in outcomes
    )
    columns = {asked.task.name: asked.task.columns for asked in suite}
    averages = {
        protocol: average
        for protocol in graded
        if (average := average_columns([r for r in results if r.protocol == protocol], columns)) is not None
    }
    return PolicyReport(name, outcomes, results, averages)


def sample_curves(
    questions: Sequence[Question],
    samples: Sequence[Sequence[Completion]],
    rewards: Sequence[ScoredCompletion],
    seed: int,
) -> dict[str, list[CurvePoint]]:
    """By task: how accuracy grows with the number of samples, by vote and, with rewards, by reranking."""
    reward = {scored.completion.completion_id: scored.reward for scored in rewards}
    items: dict[str, list[SampledItem]] = {}
    for question, answers in zip(questions, samples, strict=True):
        if question.task.form == "choice":
            votes = votes_of([read_answer(question, answer) for answer in answers])
            numbers = tuple(reward[answer.completion_id] for answer in answers) if reward else ()
            item = SampledItem(question.question_id, tuple(votes), numbers, question.item.answer)
            items.setdefault(question.task.name, []).append(item)
    return {task: rerank_curve(members, seed) for task, members in items.items()}


def compare_reports(before: PolicyReport, after: PolicyReport, resamples: int, seed: int) -> list[Comparison]:
    """Two policies, task by task and protocol by protocol, on the same items."""
    return [
        compare_outcomes(before.outcomes[task, protocol], outcomes, protocol, resamples, seed)
        for (task, protocol), outcomes in after.outcomes.items()
    ]


def write_failures(report: PolicyReport, folder: Path, prefix: str = "") -> None:
    """A file for each task and protocol with what was not answered right, for reading."""
    for (task, protocol), outcomes in report.outcomes.items():
        write_lines(folder / f"{prefix}{task}-{protocol}.jsonl", failures(outcomes))


def failures(outcomes: Sequence[GradedAnswer]) -> Iterator[dict[str, Any]]:
    """What was answered wrong or not at all, in the data's own order of options, for reading."""
    for outcome in outcomes:
        if outcome.right < 1.0 and outcome.question.place == 0:
            item = outcome.question.item
            yield {
                "question_id": outcome.question.question_id,
                "subject": item.subject,
                "context": item.context,
                "question": item.question,
                "options": item.lettered,
                "expected": item.answer or [list(names) for names in item.expected],
                "given": list(outcome.given),
                "score": outcome.right,
                "problem": outcome.problem,
                "cut": outcome.cut,
                "answer": outcome.text,
            }
