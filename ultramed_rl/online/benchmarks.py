"""Benchmarks of an online run: of its starting policy, and after every N-th round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ultramed_rl.config import RunConfig
from ultramed_rl.config.benchmarks import RoundBenchmarks
from ultramed_rl.config.judges import BenchmarkJudge
from ultramed_rl.data.prompts import PromptPool
from ultramed_rl.evaluation.contamination import TrainedPrompt, check_contamination
from ultramed_rl.evaluation.items import JUDGED
from ultramed_rl.evaluation.metrics import judge_metrics
from ultramed_rl.evaluation.report import (
    PolicyReport,
    compare_reports,
    render_judged,
    render_reports,
    write_failures,
)
from ultramed_rl.evaluation.runner import AnswerPlace, BenchmarkRunner
from ultramed_rl.evaluation.suite import load_suite
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.rewards.benchmark_judges import BenchmarkJudges
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.store.atomic import write_json
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.online import OnlineWorkers

Metrics = dict[str, float]


class BenchmarkRounds:
    """The benchmarks of one run. Version 0's answers are what later ones are compared with."""

    def __init__(
        self, config: RunConfig, benchmarks: RoundBenchmarks, tokenizer: ChatTokenizer, progress: Progress
    ) -> None:
        """All that can go wrong before an engine starts: tasks, data, lengths, the judge's key."""
        self.config, self.benchmarks, self.progress = config, benchmarks, progress
        self.suite = load_suite(benchmarks, config.run.seed)
        self.judges = BenchmarkJudges(self.suite, benchmarks)
        self.runner = BenchmarkRunner(
            benchmarks, self.suite, config.run.seed, config.policy.max_length, progress
        )
        self.policy = self.runner.prepare("policy", config.policy.path, tokenizer)
        self._check_judges()
        self.first: PolicyReport | None = None

    @property
    def _judges(self) -> list[tuple[BenchmarkJudge, str]]:
        """The benchmarks that are judges, each with the protocol by which it is asked."""
        usual = self.benchmarks.protocols[0].type
        return [(judge, judge.protocol or usual) for judge in self.config.evaluation.benchmarks]

    def _check_judges(self) -> None:
        """Raises ValueError for a judge whose task its protocol does not ask, or which a judge of statements reads."""
        runner = self.runner
        choices = [question for question in runner.chat_questions if question.task.form not in JUDGED]
        asked = {
            "likelihood": runner.likelihood_questions,
            "greedy": choices,
            "self_consistency": runner.voted_questions,
        }
        for judge, protocol in self._judges:
            if judge.task not in {question.task.name for question in asked[protocol]}:
                raise ValueError(
                    f"evaluation.judges: {judge.name!r} has task={judge.task!r}, which protocol={protocol} gives no score of its "
                    "own; name another protocol of benchmarks.protocols, or another task"
                )

    def warn(self, folder: Path, pool: PromptPool) -> None:
        """Say before anything is trained which questions the run trains on, and keep it."""
        check = self.benchmarks.contamination
        if check is None or not self.suite:
            return
        suffix = (self.config.prompts.suffix or "").strip()
        texts = (p.messages[-1]["content"].rstrip().removesuffix(suffix) for p in pool.training)
        own = (TrainedPrompt(text, self.config.run.name) for text in texts)
        contamination = check_contamination(check, self.suite, self.config.policy.path, own)
        self.progress.say(contamination.render())
        write_json(folder / "contamination.json", asdict(contamination))

    def evaluate(self, folder: ArtifactFolder, version: int, workers: OnlineWorkers) -> Metrics:
        """Ask the policy that the engines hold; answers, results and failures stay with the round."""
        place = AnswerPlace(folder, version)

        def score(prompts: Sequence[Prompt], samples: Sequence[Completion]) -> list[ScoredCompletion]:
            return workers.score(prompts, samples, lambda _: None)

        with workers.scheduler.phase("benchmarks"):
            self.runner.ask(self.policy, place, lambda: workers)
            if self.policy.samples:
                self.runner.reward(self.policy, place, score)
            given = self.runner, self.policy, place, self.progress, self.config.run.seed
            judged = dict(self.judges.read(*given, workers.served))
        if judged:
            self.progress.say(render_judged({f"version {version}": judged}))
        report = self.runner.report(self.policy)
        if self.first is None:
            self.first = report
        metrics = report.metrics
        metrics |= {name: value for said in judged.values() for name, value in said.metrics.items()}
        metrics |= self._compare(report, version)
        kept = folder.path / "benchmarks"
        kept.mkdir(exist_ok=True)
        write_json(kept / "results.json", report.details)
        write_failures(report, kept / "failures")
        return {f"bench_{name}": value for name, value in metrics.items()} | (
            self._judged(report) if version else {}
        )

    def _compare(self, report: PolicyReport, version: int) -> Metrics:
        """The change against version 0, task by task."""
        assert self.first is not None
        seed, resamples = self.config.run.seed, self.config.evaluation.bootstrap
        comparisons = compare_reports(self.first, report, resamples, seed) if version else []
        self.progress.say(render_reports([report], {f"version {version}": comparisons}, "version 0"))
        metrics: Metrics = {}
        for comparison in comparisons:
            name = f"{comparison.task}_{comparison.protocol}"
            metrics |= {f"{name}_change": comparison.change}
            metrics |= {} if comparison.p_value is None else {f"{name}_p": comparison.p_value}
        return metrics

    def _judged(self, report: PolicyReport) -> Metrics:
        """What the benchmarks that are judges say, against version 0."""
        assert self.first is not None
        metrics: Metrics = {}
        for judge, protocol in self._judges:
            asked = judge.task, protocol
            before, after = (
                {o.question.question_id: o.right for o in one.outcomes[asked] if o.question.place == 0}
                for one in (self.first, report)
            )
            how = self.config.evaluation.bootstrap, self.config.run.seed
            metrics |= judge_metrics(judge.name, before, after, *how)
        return metrics
