"""The stage that evaluates policies: benchmarks with known answers, and held-out prompts scored by reward.

policy --> engines --> answers      (one policy after the other)
answers of all --> reward models, judges --> rewards, scores
answers, rewards --> accuracies, intervals, comparisons, averages; contamination
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs, describe_rendering
from ultramed_rl.config import EvaluateConfig
from ultramed_rl.data.prompts import PromptPool, load_prompts, split_pool
from ultramed_rl.evaluation.contamination import Contamination, check_contamination, check_readable
from ultramed_rl.evaluation.metrics import (
    AnswerMetrics,
    change_metrics,
    judge_metrics,
    means_by_prompt,
    prompt_means,
    tokens_by_prompt,
)
from ultramed_rl.evaluation.report import (
    Judged,
    PolicyReport,
    compare_reports,
    render_judged,
    render_reports,
    write_failures,
)
from ultramed_rl.evaluation.runner import AnswerPlace, BenchmarkRunner
from ultramed_rl.evaluation.suite import AskedTask, load_suite
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, JudgedAnswer, Prompt, SamplingRequest, ScoredCompletion
from ultramed_rl.rewards.benchmark_judges import BenchmarkJudges
from ultramed_rl.rewards.rubric import check_rubrics
from ultramed_rl.stages.general import GeneralResult, check_general, run_general
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.store.artifacts import read_json, read_numbers
from ultramed_rl.store.atomic import write_json
from ultramed_rl.tracking import Progress, Tracker, watched
from ultramed_rl.tracking.tables import render_comparison
from ultramed_rl.workers.scorers import Judges, Scorers
from ultramed_rl.workers.stage import ComparedPolicy, EvaluationWorkers

Metrics = dict[str, float]
RESULTS = "results.json"
# What is said of a policy besides: its contamination, a judge's verdicts, lm-evaluation-harness's figures.
Further = Contamination | Judged | GeneralResult


@dataclass(frozen=True)
class EvaluationResult:
    """Each policy's figures by its name, in the order of the config; `details` is what results.json holds."""

    directory: Path
    policies: dict[str, Metrics]
    details: dict[str, Any]


def evaluate_policies(config: EvaluateConfig, *, resume: bool = False) -> EvaluationResult:
    """Every policy answers everything, then all answers are scored; both are kept by policy. A finished evaluation is read
    back: it asks for no judge's key.

    Raises:
        ValueError: bad input, before an engine starts.
        RuntimeError: a judge or lm-evaluation-harness failed; results.json has the rest, and the error.
    """
    progress = Progress()
    check_models(config)
    policies = [load_policy(config, name, path) for name, path in config.policies.items()]

    def inputs() -> dict[str, str]:
        answering = [policy for policy in policies if policy.tokenizer is not None]
        chats = {f"chat of {p.name} as rendered": describe_rendering(p.chat) for p in answering}
        return {**describe_inputs(config), **chats}

    with WorkDirectory.open(config, resume, inputs) as store, watched(store.path):
        finished = read_results(store.path)
        if finished is not None:
            progress.say(f"{config.run.name}: finished before; results: {store.path / RESULTS}")
            return finished
        benchmarks = PolicyBenchmarks(config, policies, progress) if config.benchmarks else None
        held_out = HeldOutPrompts(config, policies, progress) if config.prompts else None
        parts = [part for part in (benchmarks, held_out) if part is not None]
        artifacts = ArtifactFolder(store.path)
        workers = EvaluationWorkers(config, progress)
        try:
            for policy in policies:
                for part in parts:
                    part.ask(workers, artifacts, policy)
                workers.stop_rollout()
            for part in parts:
                for policy in policies:
                    part.score(workers, artifacts, policy)
            if benchmarks is not None:
                benchmarks.judge(workers, artifacts)
        finally:
            workers.stop()
        return conclude(config, store, benchmarks, held_out, progress)


def load_policy(config: EvaluateConfig, name: str, path: str) -> ComparedPolicy:
    """A policy, with a chat tokenizer where it has to answer in words. Raises ValueError where that has none."""
    if not config.samples_chats:
        return ComparedPolicy(name, path, None)
    trust, template = config.policy.trust_remote_code, config.chat_templates.get(name)
    try:
        thinking = config.policy.thinking
        chat = ChatTokenizer(
            path, trust_remote_code=trust, chat_template=template, learns=False, thinking=thinking
        )
        return ComparedPolicy(name, path, chat)
    except ValueError as error:
        if "no chat template" not in str(error):
            raise
        raise ValueError(
            f"policies.{name}={path!r}: its tokenizer has no chat template; set chat_templates.{name} (chatml, "
            "llama3 or a Jinja file), or ask for protocol likelihood alone, which needs none"
        ) from None


def conclude(
    config: EvaluateConfig,
    store: WorkDirectory,
    benchmarks: PolicyBenchmarks | None,
    held_out: HeldOutPrompts | None,
    progress: Progress,
) -> EvaluationResult:
    """Write and say what it came to."""
    figures: dict[str, Metrics] = {name: {} for name in config.policies}
    details: dict[str, Any] = {}
    if held_out is not None:
        details["rewards"] = figures = held_out.compare()
        progress.say(render_comparison(figures))
    if benchmarks is not None:
        details |= benchmarks.conclude(store.path)
        figures = {name: figures[name] | benchmarks.metrics(name) for name in figures}
    results = {"policies": figures, **details}
    if benchmarks is not None and benchmarks.error is not None:
        write_json(store.path / RESULTS, {**results, "error": str(benchmarks.error)})
        progress.say(f"results without what failed: {store.path / RESULTS}")
        raise benchmarks.error
    store.keep_metrics(lambda row: False)  # of an end that was killed before its results were there
    with Tracker(store, config) as tracker:
        for index, metrics in enumerate(figures.values()):
            tracker.log(metrics, step=index, kind="evaluation")
    write_json(store.path / RESULTS, results)
    progress.say(f"results: {store.path / RESULTS}")
    result = read_results(store.path)
    assert result is not None
    return result


def read_results(folder: Path) -> EvaluationResult | None:
    """What a finished evaluation came to; None where it isn't finished. Raises ValueError for a damaged file."""
    file = folder / RESULTS
    details = read_json(file) if file.is_file() else {"error": ""}
    if "error" in details:
        return None
    policies = details.pop("policies", None)
    if not isinstance(policies, dict):
        raise ValueError(
            f"{file}: not the results that were written; delete it to make them from the answers"
        )
    figures = {name: read_numbers(own) for name, own in policies.items()}
    return EvaluationResult(folder, figures, details)


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
        self.judges = BenchmarkJudges(self.suite, self.benchmarks)
        if self.benchmarks.general is not None:
            check_general(self.benchmarks.general, config.cluster.device)
        if self.benchmarks.contamination is not None and self.suite:
            check_readable(self.benchmarks.contamination)
        settings, seed = config.policy, config.run.seed
        self.runner = BenchmarkRunner(self.benchmarks, self.suite, seed, settings.max_length, progress)
        trust = settings.trust_remote_code
        self.asked = {
            p.name: self.runner.prepare(p.name, p.path, p.tokenizer, trust_remote_code=trust)
            for p in policies
        }
        self.scorers = {p.name: Scorers(config.reward, p.chat) for p in policies} if config.reward else {}
        self.reports: dict[str, PolicyReport] = {}
        self.judged: dict[str, dict[str, Judged]] = {}
        self.further: dict[str, dict[str, Further]] = {name: {} for name in self.asked}
        self.error: Exception | None = None  # of a judge, or of lm-evaluation-harness

    def ask(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """One policy's answers."""
        place = AnswerPlace(artifacts, suffix=f"-{policy.name}")
        self.runner.ask(self.asked[policy.name], place, lambda: workers.start_policy(policy))

    def score(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """Rewards of its samples, where reranking is asked for; then its report."""
        asked = self.asked[policy.name]
        if self.scorers and asked.samples:
            place, scorers = AnswerPlace(artifacts, suffix=f"-{policy.name}"), self.scorers[policy.name]
            score = workers.rewards.score
            self.runner.reward(
                asked, place, lambda prompts, given: score(scorers, prompts, given, lambda _: None)
            )
        self.reports[policy.name] = self.runner.report(asked)

    def judge(self, workers: EvaluationWorkers, artifacts: ArtifactFolder) -> None:
        """What judges say of the answers; what they fail with is kept in `error`, and the rest is there."""
        try:
            for name, policy in self.asked.items():
                place, seed = AnswerPlace(artifacts, suffix=f"-{name}"), self.config.run.seed
                given = self.runner, policy, place, self.progress, seed
                self.judged[name] = {}
                for what, said in self.judges.read(*given, workers.rewards.served):
                    self.judged[name][what] = self.further[name][what] = said
        except (RuntimeError, ValueError, OSError) as error:
            self.error = error

    def conclude(self, folder: Path) -> dict[str, Any]:
        """Everything that needs no engine: what each got wrong, every policy against the first, contamination; last what
        lm-evaluation-harness computes, unless a judge has failed: what it fails with is kept in `error` too."""
        for name, report in self.reports.items():
            write_failures(report, folder / "failures", f"{name}-")
        first, *others = reports = list(self.reports.values())
        resamples, seed = self.config.bootstrap, self.config.run.seed
        comparisons = {other.policy: compare_reports(first, other, resamples, seed) for other in others}
        if self.suite:
            self.progress.say(render_reports(reports, comparisons, first.policy, detailed=True))
        check = self.benchmarks.contamination
        for name, policy in self.asked.items():
            if check is not None and self.suite:
                contamination = check_contamination(check, self.suite, policy.path)
                self.further[name]["contamination"] = contamination
                self.progress.say(f"{name}: {contamination.render()}")
        if any(self.judged.values()):
            self.progress.say(render_judged(self.judged))
        try:
            if self.error is None:
                self._ask_general(folder)
        except (RuntimeError, ValueError, OSError) as error:
            self.error = error
        details = {
            name: {"path": self.asked[name].path, **report.details}
            | {what: asdict(part) for what, part in self.further[name].items()}
            for name, report in self.reports.items()
        }
        tasks = {
            asked.task.name: {"uris": asked.uris, "items": len(asked.items), "counts": asked.counts}
            for asked in self.suite
        }
        compared = {name: [asdict(c) for c in members] for name, members in comparisons.items()}
        return {"tasks": tasks, "benchmarks": details, "comparisons": compared}

    def metrics(self, name: str) -> Metrics:
        """A policy's figures, flat, for a tracker."""
        metrics = dict(self.reports[name].metrics)
        for part in self.further[name].values():
            metrics |= {} if isinstance(part, Contamination) else part.metrics
        return metrics

    def _ask_general(self, folder: Path) -> None:
        if (general := self.benchmarks.general) is not None:
            precision, cluster = self.config.policy.precision, self.config.cluster
            for name, policy in self.asked.items():
                output = folder / f"general-{name}"
                result = run_general(general, policy.path, cluster, precision, output)
                self.further[name]["general"] = result


def describe(asked: AskedTask) -> str:
    """What was loaded, in a line."""
    counts = asked.counts
    shown = {k: n for k, n in counts.items() if n and k not in ("rows", "items", "misfit")}
    dropped = ", ".join(f"{count} {name}" for name, count in shown.items())
    options = sorted({len(item.options) for item in asked.items if item.options})
    kinds = f" of {'/'.join(map(str, options))} options" if options else ""
    note = f" ({counts['rows']} rows: {dropped})" if dropped else ""
    return f"{asked.task.name}: {len(asked.items)} items{kinds}{note}"


class HeldOutPrompts:
    """The held-out prompts of one evaluation: every policy answers them with the same seeds, one reward scores all."""

    def __init__(
        self, config: EvaluateConfig, policies: Sequence[ComparedPolicy], progress: Progress
    ) -> None:
        """All that can go wrong before an engine starts: prompts, scorers. A prompt that is too long for one policy's
        tokenizer is left out for all, so that all answer the same ones."""
        assert config.reward is not None and config.prompts is not None
        self.config, self.progress = config, progress
        self.scorers = {policy.name: Scorers(config.reward, policy.chat) for policy in policies}
        self.answers: dict[str, list[Completion]] = {}
        self.scored: dict[str, list[ScoredCompletion]] = {}
        self.judges = {policy.name: Judges(config.judges, policy.chat) for policy in policies}
        self.judged: dict[str, list[JudgedAnswer]] = {}
        pools = {p.name: load_prompts(config.prompts, p.chat.encode_chat).training for p in policies}
        common = set.intersection(*({prompt.prompt_id for prompt in pool} for pool in pools.values()))
        lost = max(map(len, pools.values())) - len(common)
        note = f", {lost} left out that are too long for one of the policies" if lost else ""
        count, seed = config.prompts.held_out, config.run.seed
        progress.say(f"prompts: {count} held out of {len(common)}{note}")
        shared = {name: tuple(p for p in pool if p.prompt_id in common) for name, pool in pools.items()}
        self.prompts = {
            n: list(split_pool(PromptPool(own), count, seed).held_out) for n, own in shared.items()
        }
        check_rubrics([*config.reward.terms, *config.judges], next(iter(self.prompts.values())))

    def ask(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """One policy's answers."""
        name, how = policy.name, self.config.sampling
        settings = (how.samples, how.temperature, how.top_p, how.max_new_tokens)

        def compute(prompts: Sequence[Prompt], path: str) -> list[Completion]:
            engines = workers.start_policy(policy)
            seeds = [derive_seed(self.config.run.seed, "evaluation", prompt.prompt_id) for prompt in prompts]
            requests = [SamplingRequest(p, *settings, seed) for p, seed in zip(prompts, seeds, strict=True)]
            with self.progress.phase(f"answers of {name}", len(prompts) * how.samples, "completions") as bar:
                return engines.generate(requests, 0, bar.advance)

        inputs = (self.prompts[name], policy.path)
        self.answers[name] = artifacts.phase(f"completions-{name}", compute, *inputs, kind=Completion)

    def score(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """The reward of each of its answers, and what judges say of it."""
        name = policy.name

        def compute(completions: Sequence[Completion]) -> list[ScoredCompletion]:
            with self.progress.phase(f"score {name}", len(completions), "completions") as bar:
                return workers.rewards.score(self.scorers[name], self.prompts[name], completions, bar.advance)

        self.scored[name] = artifacts.phase(
            f"scored-{name}", compute, self.answers[name], kind=ScoredCompletion
        )

        def judge(completions: Sequence[Completion]) -> list[JudgedAnswer]:
            with self.progress.phase(f"judge {name}", len(completions), "completions") as bar:
                return workers.rewards.judge(self.judges[name], self.prompts[name], completions, bar.advance)

        if self.config.judges:
            self.judged[name] = artifacts.phase(
                f"judged-{name}", judge, self.answers[name], kind=JudgedAnswer
            )

    def compare(self) -> dict[str, Metrics]:
        """Each policy's rewards, judges' scores and lengths, and its changes against the first with paired intervals."""
        first = next(iter(self.scored.values()))
        start, short = prompt_means(first), tokens_by_prompt(first)
        figures = {}
        for name, answers in self.scored.items():
            gaps = {prompt: tokens - short[prompt] for prompt, tokens in tokens_by_prompt(answers).items()}
            how = self.config.bootstrap, self.config.run.seed, gaps
            figures[name] = AnswerMetrics(answers).metrics() | change_metrics(
                start, prompt_means(answers), *how
            )
            for judge in self.config.judges:
                old, new = (
                    means_by_prompt((one.prompt_id, one.scores[judge.name]) for one in self.judged[policy])
                    for policy in (next(iter(self.scored)), name)
                )
                figures[name] |= judge_metrics(judge.name, old, new, *how)
        return figures
