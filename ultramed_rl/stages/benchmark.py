"""Benchmarks of an evaluation: asked, reranked, judged, compared, and checked against what policies trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ultramed_rl.config import EvaluateConfig
from ultramed_rl.evaluation.contamination.guard import check_contamination, check_readable
from ultramed_rl.evaluation.contamination.search import Contamination
from ultramed_rl.evaluation.judging import StatementSummary
from ultramed_rl.evaluation.report import PolicyReport, compare_reports, write_failures
from ultramed_rl.evaluation.results import Comparison
from ultramed_rl.evaluation.runner import AnswerPlace, BenchmarkRunner, PolicyAnswers
from ultramed_rl.evaluation.suite import AskedTask, load_suite
from ultramed_rl.evaluation.tables import render_reports, render_statements
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.rewards.statements import StatementGrader, judge_statements
from ultramed_rl.stages.general import GeneralResult, check_general, run_general
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.scorers import Scorers
from ultramed_rl.workers.stage import ComparedPolicy, EvaluationWorkers

Metrics = dict[str, float]


class PolicyBenchmarks:
    """The benchmarks of one evaluation and what policies made of them."""

    def __init__(
        self, config: EvaluateConfig, policies: Sequence[ComparedPolicy], progress: Progress
    ) -> None:
        """All that can go wrong before an engine starts: tasks, data, lengths, the judge's key, scorers, and the
        data that contamination is looked for in."""
        assert config.benchmarks is not None
        self.config, self.benchmarks, self.progress = config, config.benchmarks, progress
        self.suite = load_suite(self.benchmarks, config.run.seed)
        for asked in self.suite:
            progress.say(describe(asked))
        self.judge = StatementGrader.for_suite(self.suite, self.benchmarks.judge)
        if self.benchmarks.general is not None:
            check_general(self.benchmarks.general, config.cluster.device)
        if self.benchmarks.contamination is not None and self.suite:
            check_readable(self.benchmarks.contamination)
        settings, seed = config.policy, config.run.seed
        self.runner = BenchmarkRunner(self.benchmarks, self.suite, seed, settings.max_length, progress)
        trust = settings.trust_remote_code
        self.questions = {
            p.name: self.runner.questions_of(p.name, p.path, p.tokenizer, trust_remote_code=trust)
            for p in policies
        }
        self.scorers = {p.name: Scorers(config.reward, p.chat) for p in policies} if config.reward else {}
        self.answers: dict[str, PolicyAnswers] = {}
        self.reports: dict[str, PolicyReport] = {}
        self.statements: dict[str, StatementSummary] = {}
        self.general: dict[str, GeneralResult] = {}
        self.contamination: dict[str, Contamination] = {}
        self.error: Exception | None = None  # of a judge, or of lm-evaluation-harness

    def ask(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """One policy's answers."""
        questions, place = self.questions[policy.name], AnswerPlace(artifacts, suffix=f"-{policy.name}")
        self.answers[policy.name] = self.runner.ask(questions, place, lambda: workers.start_policy(policy))

    def score(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """Rewards of its samples, where reranking is asked for; then its report."""
        questions, answers = self.questions[policy.name], self.answers[policy.name]
        if self.scorers and answers.samples:

            def score(prompts: Sequence[Prompt], samples: Sequence[Completion]) -> list[ScoredCompletion]:
                return workers.rewards.score(self.scorers[policy.name], prompts, samples, lambda _: None)

            place = AnswerPlace(artifacts, suffix=f"-{policy.name}")
            self.runner.reward(questions, place, answers, score)
        self.reports[policy.name] = self.runner.report(questions, answers)

    def conclude(self, folder: Path) -> dict[str, Any]:
        """Everything that needs no engine: files, judge, contamination and the tables, lm-evaluation-harness.

        What others compute comes last; what they fail with is kept in `error`, and the rest is there to be read.
        """
        comparisons = self._compare(folder)
        check = self.benchmarks.contamination
        for name, questions in self.questions.items():
            if check is not None and self.suite:
                self.contamination[name] = check_contamination(check, self.suite, questions.path)
                self.progress.say(f"{name}: {self.contamination[name].render()}")
        try:
            self._ask_others(folder)
        except (RuntimeError, ValueError, OSError) as error:
            self.error = error
        return {
            "tasks": {
                asked.task.name: {
                    "uris": list(asked.uris),
                    "items": len(asked.loaded.items),
                    "counts": asked.loaded.counts,
                }
                for asked in self.suite
            },
            "benchmarks": {name: self._details(name) for name in self.questions},
            "comparisons": {name: [asdict(c) for c in members] for name, members in comparisons.items()},
        }

    def metrics(self, name: str) -> Metrics:
        """A policy's figures, flat, for a tracker."""
        others = [parts[name].metrics for parts in (self.statements, self.general) if name in parts]
        return {key: value for part in (self.reports[name].metrics, *others) for key, value in part.items()}

    def _compare(self, folder: Path) -> dict[str, list[Comparison]]:
        """Every policy but the first against the first, task by task; said, with what each got wrong written down."""
        for name, report in self.reports.items():
            write_failures(report, folder / "failures", f"{name}-")
        first, *others = reports = list(self.reports.values())
        resamples, seed = self.config.bootstrap, self.config.run.seed
        comparisons = {other.policy: compare_reports(first, other, resamples, seed) for other in others}
        if self.suite:
            self.progress.say(render_reports(reports, comparisons, first.policy, detailed=True))
        return comparisons

    def _ask_others(self, folder: Path) -> None:
        """The judge of statements, and lm-evaluation-harness."""
        for name, answers in self.answers.items():
            answered = self.runner.statements(answers)
            if self.judge is not None and answered:
                place = AnswerPlace(ArtifactFolder(folder), suffix=f"-{name}")
                self.statements[name] = judge_statements(
                    self.judge, answered, place, self.progress, self.config.run.seed
                )
        if self.statements:
            self.progress.say(render_statements(self.statements))
        if self.benchmarks.general is not None:
            precision, cluster = self.config.policy.precision, self.config.cluster
            for name, questions in self.questions.items():
                self.general[name] = run_general(
                    self.benchmarks.general, questions.path, cluster, precision, folder / f"general-{name}"
                )

    def _details(self, name: str) -> dict[str, Any]:
        parts: dict[str, dict[str, Any]] = {
            "statements": self.statements,
            "general": self.general,
            "contamination": self.contamination,
        }
        further = {key: asdict(members[name]) for key, members in parts.items() if name in members}
        return {"path": self.questions[name].path, **self.reports[name].details, **further}


def describe(asked: AskedTask) -> str:
    """What was loaded, in a line."""
    counts = asked.loaded.counts
    shown = {k: n for k, n in counts.items() if n and k not in ("rows", "items", "misfit")}
    dropped = ", ".join(f"{count} {name}" for name, count in shown.items())
    options = sorted({len(item.options) for item in asked.loaded.items if item.options})
    kinds = f" of {'/'.join(map(str, options))} options" if options else ""
    note = f" ({counts['rows']} rows: {dropped})" if dropped else ""
    return f"{asked.task.name}: {len(asked.loaded.items)} items{kinds}{note}"
