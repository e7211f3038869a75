"""Benchmarks of an evaluation: asked, reranked, judged, compared, and checked against what policies trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ultramed_rl.config import EvaluateConfig
from ultramed_rl.crew.evaluation import EvaluationCrew, Policy
from ultramed_rl.crew.examiner import Answers, Examiner, Sitting, make_judge
from ultramed_rl.crew.judging import judge_statements
from ultramed_rl.crew.scorers import Scorers
from ultramed_rl.evaluation.contamination.guard import check_contamination, check_readable
from ultramed_rl.evaluation.contamination.search import Contamination
from ultramed_rl.evaluation.judging.entailment import StatementSummary
from ultramed_rl.evaluation.report import PolicyReport, compare_reports, write_failures
from ultramed_rl.evaluation.results import Comparison
from ultramed_rl.evaluation.suite import AskedTask, load_suite
from ultramed_rl.evaluation.tables import (
    render_averages,
    render_comparisons,
    render_curves,
    render_results,
    render_statements,
    render_subjects,
)
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.stages.general import GeneralResult, check_general, run_general
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.tracking import Progress

Metrics = dict[str, float]


class Examination:
    """The benchmarks of one evaluation and what policies made of them."""

    def __init__(self, config: EvaluateConfig, policies: Sequence[Policy], progress: Progress) -> None:
        """All that can go wrong before an engine starts: tasks, data, lengths, the judge's key, scorers, and the
        data that contamination is looked for in."""
        assert config.benchmarks is not None
        self.config, self.benchmarks, self.progress = config, config.benchmarks, progress
        self.suite = load_suite(self.benchmarks, config.run.seed)
        for asked in self.suite:
            progress.say(describe(asked))
        self.judge = make_judge(self.suite, self.benchmarks.judge)
        if self.benchmarks.general is not None:
            check_general(self.benchmarks.general, config.cluster.device)
        if self.benchmarks.contamination is not None and self.suite:
            check_readable(self.benchmarks.contamination)
        self.examiner = Examiner(
            self.benchmarks, self.suite, config.run.seed, config.policy.max_length, progress
        )
        trust = config.policy.trust_remote_code
        self.candidates = {
            p.name: self.examiner.admit(p.name, p.path, p.tokenizer, trust_remote_code=trust)
            for p in policies
        }
        self.scorers = {p.name: Scorers(config.reward, p.chat) for p in policies} if config.reward else {}
        self.answers: dict[str, Answers] = {}
        self.reports: dict[str, PolicyReport] = {}
        self.statements: dict[str, StatementSummary] = {}
        self.general: dict[str, GeneralResult] = {}
        self.contamination: dict[str, Contamination] = {}
        self.error: Exception | None = None  # of a judge, or of lm-evaluation-harness

    # -- computed ------------------------------------------------------------------------------------------

    def ask(self, crew: EvaluationCrew, artifacts: ArtifactFolder, policy: Policy) -> None:
        """One policy's answers."""
        candidate = self.candidates[policy.name]
        sitting = Sitting(artifacts, suffix=f"-{policy.name}")
        self.answers[policy.name] = self.examiner.ask(candidate, sitting, lambda: crew.start_policy(policy))

    def score(self, crew: EvaluationCrew, artifacts: ArtifactFolder, policy: Policy) -> None:
        """Rewards of its samples, where reranking is asked for; then its report."""
        candidate, answers = self.candidates[policy.name], self.answers[policy.name]
        sitting = Sitting(artifacts, suffix=f"-{policy.name}")
        if self.scorers and answers.samples:

            def score(prompts: Sequence[Prompt], samples: Sequence[Completion]) -> list[ScoredCompletion]:
                return crew.score(self.scorers[policy.name], prompts, samples, lambda _: None)

            self.examiner.reward(candidate, sitting, answers, score)
        self.reports[policy.name] = self.examiner.report(candidate, answers)

    def conclude(self, folder: Path) -> dict[str, Any]:
        """Everything that needs no engine: files, judge, contamination and the tables, lm-evaluation-harness.

        What others compute comes last; what they fail with is kept in `error`, and the rest is there to be read.
        """
        for name, report in self.reports.items():
            write_failures(report, folder / "failures", f"{name}-")
        comparisons = self.compare()
        self._say_reports(comparisons)
        for name in self.candidates:
            self._check_contamination(name)
        try:
            for name in self.candidates:
                self._judge(name, folder)
            self._say_if_any(render_statements(self.statements))
            for name in self.candidates:
                self._run_general(name, folder)
        except (RuntimeError, ValueError, OSError) as error:
            self.error = error
        return {
            "tasks": {asked.task.name: _task_details(asked) for asked in self.suite},
            "benchmarks": {name: self._details(name) for name in self.candidates},
            "comparisons": {name: [asdict(c) for c in found] for name, found in comparisons.items()},
        }

    def compare(self) -> dict[str, list[Comparison]]:
        """Every policy but the first against the first, task by task."""
        first, *others = self.reports.values()
        resamples, seed = self.config.bootstrap, self.config.run.seed
        return {report.policy: compare_reports(first, report, resamples, seed) for report in others}

    def metrics(self, name: str) -> Metrics:
        """A policy's figures, flat, for a tracker."""
        found = dict(self.reports[name].metrics)
        if name in self.statements:
            found |= self.statements[name].metrics
        if name in self.general:
            found |= self.general[name].metrics
        return found

    def _say_reports(self, comparisons: dict[str, list[Comparison]]) -> None:
        reports = list(self.reports.values())
        tables = [
            render_results(reports),
            render_subjects(reports),
            render_curves(reports),
            render_averages(reports),
            render_comparisons(comparisons, reports[0].policy),
        ]
        self._say_if_any("\n\n".join(table for table in tables if table))

    def _say_if_any(self, text: str) -> None:
        if text:
            self.progress.say(text)

    # -- steps ---------------------------------------------------------------------------------------------

    def _judge(self, name: str, folder: Path) -> None:
        answered = self.examiner.statements(self.answers[name])
        if self.judge is not None and answered:
            sitting = Sitting(ArtifactFolder(folder), suffix=f"-{name}")
            self.statements[name] = judge_statements(
                self.judge, answered, sitting, self.progress, self.config.run.seed
            )

    def _run_general(self, name: str, folder: Path) -> None:
        section, config = self.benchmarks.general, self.config
        if section is not None:
            self.general[name] = run_general(
                section,
                self.candidates[name].path,
                config.cluster,
                config.policy.precision,
                folder / f"general-{name}",
            )

    def _check_contamination(self, name: str) -> None:
        if self.benchmarks.contamination is not None and self.suite:
            path = self.candidates[name].path
            found = check_contamination(self.benchmarks.contamination, self.suite, path)
            self.contamination[name] = found
            self.progress.say(f"{name}: {found.render()}")

    def _details(self, name: str) -> dict[str, Any]:
        details: dict[str, Any] = {"path": self.candidates[name].path, **self.reports[name].details}
        for key, found in (
            ("statements", self.statements),
            ("general", self.general),
            ("contamination", self.contamination),
        ):
            if name in found:
                details[key] = asdict(found[name])
        return details


def describe(asked: AskedTask) -> str:
    """What was loaded, in a line."""
    counts = asked.loaded.counts
    dropped = ", ".join(
        f"{count} {name}"
        for name, count in counts.items()
        if count and name not in ("rows", "items", "misfit")
    )
    options = sorted({len(item.options) for item in asked.loaded.items if item.options})
    kinds = f" of {'/'.join(map(str, options))} options" if options else ""
    note = f" ({counts['rows']} rows: {dropped})" if dropped else ""
    return f"{asked.task.name}: {len(asked.loaded.items)} items{kinds}{note}"


def _task_details(asked: AskedTask) -> dict[str, Any]:
    return {"uris": list(asked.uris), "items": len(asked.loaded.items), "counts": asked.loaded.counts}
