"""The stage that evaluates policies: benchmarks with known answers, and held-out prompts scored by reward.

policy --> engines --> answers      (one policy after the other)
answers of all --> reward models --> rewards
answers, rewards --> accuracies, intervals, comparisons, averages
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs, describe_rendering
from ultramed_rl.config import EvaluateConfig
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.stages.benchmark import PolicyBenchmarks
from ultramed_rl.stages.held_out import HeldOutPrompts
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.store.artifacts import read_json, read_numbers
from ultramed_rl.store.atomic import write_json
from ultramed_rl.tracking import Progress, Tracker, watched
from ultramed_rl.tracking.summary import render_comparison
from ultramed_rl.workers.stage import ComparedPolicy, EvaluationWorkers

Metrics = dict[str, float]
RESULTS = "results.json"


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
        finally:
            workers.stop()
        return conclude(config, store, benchmarks, held_out, progress)


def load_policy(config: EvaluateConfig, name: str, path: str) -> ComparedPolicy:
    """A policy, with a chat tokenizer where it has to answer in words. Raises ValueError where that has none."""
    if not config.samples_chats:
        return ComparedPolicy(name, path, None)
    trust, template = config.policy.trust_remote_code, config.chat_templates.get(name)
    try:
        chat = ChatTokenizer(path, trust_remote_code=trust, chat_template=template, learns=False)
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
        rewards = held_out.compare()
        details["rewards"] = rewards
        figures = {name: figures[name] | rewards[name] for name in figures}
        progress.say(render_comparison(rewards))
    if benchmarks is not None:
        details |= benchmarks.conclude(store.path)
        figures = {name: figures[name] | benchmarks.metrics(name) for name in figures}
    error = None if benchmarks is None else benchmarks.error
    if error is not None:
        write_json(store.path / RESULTS, {"policies": figures, **details, "error": str(error)})
        progress.say(f"results without what failed: {store.path / RESULTS}")
        raise error
    store.keep_metrics(lambda row: False)  # of an end that was killed before its results were there
    with Tracker(store, config) as tracker:
        for index, metrics in enumerate(figures.values()):
            tracker.log(metrics, step=index, kind="evaluation")
    write_json(store.path / RESULTS, {"policies": figures, **details})
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
    return EvaluationResult(
        folder, {name: read_numbers(figures) for name, figures in policies.items()}, details
    )
