"""Reports as tables of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ultramed_rl.evaluation.judging import StatementSummary
from ultramed_rl.evaluation.report import PolicyReport
from ultramed_rl.evaluation.results import Comparison
from ultramed_rl.tracking.summary import render_table

_RESULTS = [
    ("policy", "{policy}"),
    ("task", "{task}"),
    ("protocol", "{protocol}"),
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
_COMPARISONS = [
    ("policy", "{policy}"),
    ("task", "{task}"),
    ("protocol", "{protocol}"),
    ("change (95 %)", "{change:+.2%} [{low:+.1%}, {high:+.1%}]"),
    ("only before", "{only_before}"),
    ("only now", "{only_after}"),
    ("McNemar p", "{p_value:.3g}"),
]
_STATEMENTS = [
    ("policy", "{policy}"),
    ("complete", "{comprehensiveness}"),
    ("contradictions an answer", "{hallucination}"),
    ("answers with one", "{contradicting}"),
    ("nice to have", "{coverage}"),
    ("unread", "{unread}"),
]


def render_reports(
    reports: Sequence[PolicyReport],
    comparisons: Mapping[str, Sequence[Comparison]],
    first: str,
    *,
    detailed: bool = False,
) -> str:
    """What policies came to, and each against the first; `detailed` with subjects and the curves of samples."""
    further = [render_subjects(reports), render_curves(reports)] if detailed else []
    compared = render_comparisons(comparisons, first)
    return "\n\n".join(filter(None, [render_results(reports), *further, render_averages(reports), compared]))


def render_results(reports: Sequence[PolicyReport]) -> str:
    """Every task and protocol of every policy."""
    rows = []
    for report in reports:
        for result in report.results:
            row: dict[str, Any] = {
                "policy": report.policy,
                "task": result.task,
                "protocol": result.protocol,
                "options": "/".join(result.options) or "-",
                "unread": _counts(result.unread),
                "cut": f"{result.cut} of {result.samples}" if result.cut else "0",
                **vars(result.score),
            }
            if result.positions is not None:
                row |= {"consistency": result.positions.consistency, "bias": result.positions.bias}
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
    columns = [*_SUBJECTS, *((name, f"{{{name}}}") for name in protocols)]
    return _table(columns, list(scored.values()))


def render_curves(reports: Sequence[PolicyReport]) -> str:
    """Accuracy by the number of samples, a row for each rule."""
    rows = []
    sizes: dict[int, None] = {}
    for report in reports:
        for result in report.results:
            by_rule: dict[str, dict[str, Any]] = {}
            for point in result.curve:
                sizes[point.n] = None
                row = by_rule.setdefault(
                    point.rule, {"policy": report.policy, "task": result.task, "rule": point.rule}
                )
                row[f"n{point.n}"] = f"{point.accuracy.mean:.1%}"
            rows += list(by_rule.values())
    columns = [("policy", "{policy}"), ("task", "{task}"), ("of n samples", "{rule}")]
    return _table([*columns, *((f"n={n}", f"{{n{n}}}") for n in sorted(sizes))], rows)


def render_averages(reports: Sequence[PolicyReport]) -> str:
    """The macro averages, and over which columns they are."""
    lines = []
    for report in reports:
        for protocol, average in report.averages.items():
            kind = (
                "the paper's nine columns"
                if average.is_papers
                else f"{len(average.columns)} columns, not nine"
            )
            names = ", ".join(f"{name} {value:.1%}" for name, value in average.columns.items())
            lines.append(f"{report.policy}, {protocol}: average {average.accuracy:.2%} over {kind} ({names})")
    return "\n".join(lines)


def render_comparisons(comparisons: Mapping[str, Sequence[Comparison]], first: str) -> str:
    """Each policy against the first."""
    rows = []
    for policy, members in comparisons.items():
        for comparison in members:
            row = {key: value for key, value in vars(comparison).items() if value is not None}
            rows.append({"policy": f"{policy} vs {first}", **row})
    return _table(_COMPARISONS, rows)


def render_statements(summaries: Mapping[str, StatementSummary]) -> str:
    """K-QA's figures."""
    rows = []
    for policy, summary in summaries.items():
        row: dict[str, Any] = {"policy": policy, "unread": f"{summary.unread} of {summary.statements}"}
        for name in ("comprehensiveness", "hallucination", "contradicting", "coverage"):
            interval = getattr(summary, name)
            if interval is not None:
                row[name] = f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
        rows.append(row)
    return _table(_STATEMENTS, rows)


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> str:
    return render_table(columns, rows) if rows else ""


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "0"
