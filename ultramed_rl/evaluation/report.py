"""A policy's report: every task under every protocol, the averages, and what went wrong; and reports as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ultramed_rl.evaluation.chat_scores import ChatGrades, WinRates
from ultramed_rl.evaluation.healthbench import GraderAgreement, RubricSummary
from ultramed_rl.evaluation.judging import StatementSummary
from ultramed_rl.evaluation.results import (
    Average,
    Comparison,
    GradedAnswer,
    TaskResult,
    average_columns,
    compare_outcomes,
    task_result,
)
from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.evaluation.suite import AskedTask
from ultramed_rl.evaluation.voting import CurvePoint
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.tracking.tables import render_table

# What judges' verdicts come to.
Judged = StatementSummary | WinRates | ChatGrades | RubricSummary | GraderAgreement
_RESULT = [("policy", "{policy}"), ("task", "{task}"), ("protocol", "{protocol}")]
_RESULTS = [
    *_RESULT,
    ("items", "{items}"),
    ("options", "{options}"),
    ("accuracy", "{accuracy:.2%}"),
    ("95 %", "[{low:.1%}, {high:.1%}]"),
    ("unread", "{unread}"),
    ("cut", "{cut}"),
    ("same in all orders", "{consistency:.1%}"),
    ("position bias", "{bias:.3f}"),
]
_SUBJECTS = [("policy", "{policy}"), ("task", "{task}"), ("subject", "{subject}"), ("items", "{items}")]
_CURVES = [("policy", "{policy}"), ("task", "{task}"), ("of n samples", "{rule}")]
_COMPARISONS = [
    *_RESULT,
    ("change (95 %)", "{change:+.2%} [{low:+.1%}, {high:+.1%}]"),
    ("only before", "{only_before}"),
    ("only now", "{only_after}"),
    ("McNemar p", "{p_value:.3g}"),
]
_RUBRICS = [
    *_RESULT,
    ("score (95 %)", "{score}"),
    ("length-adjusted", "{length_adjusted}"),
    ("worst at k", "{worst}"),
    ("unread", "{unread}"),
]
_RUBRIC_TAGS = [*_RESULT, ("theme or axis", "{tag}"), ("score", "{mean:.3f}"), ("answers", "{answers}")]
_STATEMENTS = [
    ("policy", "{policy}"),
    ("complete", "{comprehensiveness}"),
    ("contradictions an answer", "{hallucination}"),
    ("answers with one", "{contradicting}"),
    ("nice to have", "{coverage}"),
    ("unread", "{unread}"),
]
_WINS = [
    ("policy", "{policy}"),
    ("AlpacaEval wins", "{win_rate}"),
    ("at equal length", "{controlled:.2f}"),
    ("first preferred", "{first:.2f}"),
    ("characters", "{characters:.0f}"),
    ("items", "{items}"),
    ("unread", "{unread}"),
]
_GRADES = [
    ("policy", "{policy}"),
    ("MT-Bench", "{grade}"),
    ("turns", "{turns[0]:.2f}, {turns[1]:.2f}"),
    ("chats", "{items}"),
    ("unread", "{unread}"),
]


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
    samples: int = 1,
    curves: Mapping[str, Sequence[CurvePoint]] | None = None,
) -> PolicyReport:
    """A policy's report.

    Args:
        graded: outcomes by protocol, of all tasks.
        samples: answers per question of self-consistency, and `curves` of them by task.
    """
    outcomes: dict[tuple[str, str], list[GradedAnswer]] = {}
    for protocol, members in graded.items():
        for outcome in members:
            outcomes.setdefault((outcome.question.task.name, protocol), []).append(outcome)
    results = []
    for task, protocol in ((asked.task.name, protocol) for asked in suite for protocol in graded):
        if (task, protocol) in outcomes:
            sampled = protocol == "self_consistency"
            answers, curve = (samples, (curves or {}).get(task, ())) if sampled else (1, ())
            results.append(task_result(protocol, outcomes[task, protocol], answers, curve))
    averages = {
        protocol: average
        for protocol in graded
        if (average := average_columns([r for r in results if r.protocol == protocol])) is not None
    }
    return PolicyReport(name, outcomes, tuple(results), averages)


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
    """What was answered wrong or not at all, in the data's own order of options."""
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


def render_reports(
    reports: Sequence[PolicyReport],
    comparisons: Mapping[str, Sequence[Comparison]],
    first: str,
    *,
    detailed: bool = False,
) -> str:
    """What policies came to, and each against the first; `detailed` with subjects and the curves of samples."""
    further = [render_subjects(reports), _render_curves(reports)] if detailed else []
    compared = [
        {"policy": f"{policy} vs {first}", **{k: v for k, v in vars(comparison).items() if v is not None}}
        for policy, members in comparisons.items()
        for comparison in members
    ]
    tables = [render_results(reports), *further, render_averages(reports), _table(_COMPARISONS, compared)]
    return "\n\n".join(filter(None, tables))


def render_results(reports: Sequence[PolicyReport]) -> str:
    """Every task and protocol of every policy."""
    rows: list[dict[str, Any]] = []
    for report in reports:
        for result in report.results:
            bias = vars(result.positions) if result.positions is not None else {}
            row = {**bias, "policy": report.policy, **vars(result), **vars(result.score)}
            row["options"] = "/".join(result.options) or "-"
            row["unread"] = ", ".join(f"{count} {name}" for name, count in result.unread.items()) or "0"
            row["cut"] = f"{result.cut} of {result.samples}" if result.cut else "0"
            rows.append(row)
    return _table(_RESULTS, rows)


def render_subjects(reports: Sequence[PolicyReport]) -> str:
    """Every subject of the tasks that have some, policy by policy: a column for each protocol."""
    scored: dict[tuple[str, str, str], dict[str, Any]] = {}
    protocols: dict[str, None] = {}
    for report in reports:
        for result in report.results:
            for subject, score in result.subjects.items():
                protocols[result.protocol] = None
                row = {"policy": report.policy, "task": result.task, "subject": subject, "items": score.items}
                row = scored.setdefault((report.policy, result.task, subject), row)
                row[result.protocol] = f"{score.accuracy:.1%} [{score.low:.0%}, {score.high:.0%}]"
    return _table([*_SUBJECTS, *((name, f"{{{name}}}") for name in protocols)], list(scored.values()))


def _render_curves(reports: Sequence[PolicyReport]) -> str:
    """Accuracy by the number of samples, a row for each rule."""
    scored: dict[tuple[str, str, str], dict[str, Any]] = {}
    sizes: set[int] = set()
    for report in reports:
        for result in report.results:
            for point in result.curve:
                sizes.add(point.n)
                row = {"policy": report.policy, "task": result.task, "rule": point.rule}
                row = scored.setdefault((report.policy, result.task, point.rule), row)
                row[f"n{point.n}"] = f"{point.accuracy.mean:.1%}"
    return _table([*_CURVES, *((f"n={n}", f"{{n{n}}}") for n in sorted(sizes))], list(scored.values()))


def render_averages(reports: Sequence[PolicyReport]) -> str:
    """The macro averages, and over which columns they are."""
    lines = []
    for report in reports:
        for protocol, average in report.averages.items():
            count = len(average.columns)
            kind = "the paper's nine columns" if count == 9 else f"{count} columns, not nine"
            names = ", ".join(f"{name} {value:.1%}" for name, value in average.columns.items())
            lines.append(f"{report.policy}, {protocol}: average {average.accuracy:.2%} over {kind} ({names})")
    return "\n".join(lines)


def render_judged(judged: Mapping[str, Mapping[str, Judged]]) -> str:
    """What judges said, by policy and kind: K-QA's figures, AlpacaEval's, MT-Bench's, HealthBench's; a table each, and one of themes
    and axes."""
    columns = {StatementSummary: _STATEMENTS, WinRates: _WINS, ChatGrades: _GRADES, RubricSummary: _RUBRICS}
    rows: dict[type, list[dict[str, Any]]] = {kind: [] for kind in columns}
    tags: list[dict[str, Any]] = []
    for policy, summaries in judged.items():
        for summary in summaries.values():
            row: dict[str, Any] = {**vars(summary), "policy": policy}
            digits = 3 if isinstance(summary, RubricSummary) else 2
            for name, interval in vars(summary).items():
                if isinstance(interval, Interval):
                    low, high = f"{interval.low:.{digits}f}", f"{interval.high:.{digits}f}"
                    row[name] = f"{interval.mean:.{digits}f} [{low}, {high}]"
            if isinstance(summary, StatementSummary):
                row["unread"] = f"{summary.unread} of {summary.statements}"
            elif isinstance(summary, RubricSummary):
                row["worst"] = ", ".join(
                    f"{k}: {value:.3f}" for k, value in summary.worst_at.items() if k > 1
                )
                found = summary.tags.items()
                tags += [row | {"tag": tag, "mean": mean, "answers": count} for tag, (mean, count) in found]
            rows.get(type(summary), []).append(row)
    tables = [_table(columns[kind], own) for kind, own in rows.items()] + [_table(_RUBRIC_TAGS, tags)]
    return "\n\n".join(filter(None, tables))


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> str:
    return render_table(columns, rows) if rows else ""
