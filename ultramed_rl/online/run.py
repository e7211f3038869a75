"""From a config to a finished run: check, open the store, start the workers, loop, report.

A run without a reward model trains its own first, on contrasts out of the policy's own answers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.cluster.inputs import describe_inputs, describe_pool, describe_rendering
from ultramed_rl.config import RunConfig
from ultramed_rl.config.stages import BradleyTerry
from ultramed_rl.data.contrasts import split_contrasts
from ultramed_rl.data.prompts import PromptPool, check_rounds, prepare_pool
from ultramed_rl.learning.length import length_accuracies
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import chat_tokenizer
from ultramed_rl.online.benchmarks import BenchmarkRounds
from ultramed_rl.online.controller import Controller, prune
from ultramed_rl.online.watcher import RunWatcher
from ultramed_rl.records import Checkpoint, PreferenceGroup
from ultramed_rl.rewards.rubric import check_rubrics
from ultramed_rl.scheduling.pool import RanksLost
from ultramed_rl.store import RunDirectory, RunReader
from ultramed_rl.store.cards import model_card, write_card, write_policy_card
from ultramed_rl.tracking import Progress, Tracker, render_rounds, watched
from ultramed_rl.tracking.verdict import RunVerdict, kept_round, write_verdict
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.sampling import sample_contrasts
from ultramed_rl.workers.scorers import Judges, Scorers

Metrics = dict[str, float]


@dataclass(frozen=True)
class RunResult:
    """What a run came to: its directory, its policy, each round's metrics, and the verdict, which as text is a paragraph."""

    directory: Path
    checkpoint: Checkpoint
    rounds: list[Metrics]
    verdict: RunVerdict


def run(config: RunConfig, *, resume: bool = False) -> RunResult:
    """Run all rounds of a config; with `resume`, go on where an earlier run stopped.

    Raises:
        ValueError: bad input, with value, rule and fix. What was finished stays on disk.
    """
    progress = Progress()
    tokenizer = chat_tokenizer(config.policy)
    check_models(config)
    pool = prepare_pool(config.prompts, tokenizer, config.run.seed, progress)
    check_rounds(pool, config.prompts, config.run.rounds)

    def inputs() -> dict[str, str]:
        chat, prompts = describe_rendering(tokenizer), describe_pool(pool)
        return {**describe_inputs(config), "chat as rendered": chat, "prompts": prompts}

    with RunDirectory.open(config, resume, inputs) as store, watched(store.path):
        store.verify_committed()
        committed = store.committed_rounds()
        store.discard_metrics_after(committed)
        prune(store)  # a kill may have come before those of its last round went
        if RunReader(store.path).finished:  # nothing is started
            return conclude(store, list(RunReader(store.path).rounds), progress)
        # Not for a finished run: they ask for secrets.
        check_rubrics(config.reward.terms, [*pool.training, *pool.held_out])
        check_rubrics(config.evaluation.judges, pool.held_out)
        scorers = Scorers(config.reward, tokenizer)
        judging = len(config.evaluation.judges) > len(config.evaluation.benchmarks)
        judges = Judges(config.evaluation.judges, tokenizer) if judging else None
        benchmarks = (
            BenchmarkRounds(config, config.benchmarks, tokenizer, progress) if config.benchmarks else None
        )
        with Tracker(store, config) as tracker:
            if benchmarks is not None:
                benchmarks.warn(store.path, pool)
            workers = OnlineWorkers(config, tokenizer, scorers, progress.say, judges)
            try:
                return _run_rounds(config, store, workers, pool, tracker, progress, benchmarks)
            finally:
                workers.stop()


def _run_rounds(
    config: RunConfig,
    store: RunDirectory,
    workers: OnlineWorkers,
    pool: PromptPool,
    tracker: Tracker,
    progress: Progress,
    benchmarks: BenchmarkRounds | None,
) -> RunResult:
    committed = store.committed_rounds()
    policy, version = latest_checkpoint(config, store)
    if config.reward.train is None:
        workers.begin_rollout(policy, version)
    else:
        with progress.phase("start rollout engines", 1, "groups") as bar:
            workers.start_rollout(policy, version)
            bar.advance(1)
    rewards = prepare_reward_models(config, store, workers, pool, progress)
    with progress.phase("start the workers", 1, "groups") as bar:
        workers.start_learners(policy, version, reference_path(config, store), rewards)
        bar.advance(1)
    if config.policy.lora is not None and config.policy.lora.quantize is not None and not version:
        # The engines began with the whole base model, the policy computes with its 4-bit one: from now on so do they,
        # and those that replace them.
        def save(folder: Path) -> Metrics:
            workers.with_policy_restart(lambda: workers.policy.save(folder))
            return {}

        start, _ = store.initial.phase_directory("policy", save)
        workers.with_policy_restart(lambda: workers.sync(version, str(start)))
    workers.with_policy_restart(lambda: workers.policy.restore_state(policy, version))
    if committed:
        progress.say(f"resuming after {committed} committed rounds, with policy {version}")

    with RunWatcher(store.path, config.run.name, progress, tracker) as watcher:
        workers.scheduler.watcher = watcher
        controller = Controller(config, store, workers, pool, tracker, watcher, benchmarks)
        rounds = controller.run(lambda row: progress.say(render_rounds([row])))
    tracker.log({f"peak_memory_{k}": v for k, v in workers.peak_memory().items()}, len(rounds), "round")
    result = conclude(store, rounds, progress)
    tracker.judge(result.verdict, last=True)
    return result


def conclude(store: RunDirectory, rounds: list[Metrics], progress: Progress) -> RunResult:
    """Say what the rounds came to."""
    run = RunReader(store.path)
    kept, verdict = store.round(kept_round(run)), write_verdict(run)
    assert verdict is not None, "the last round is evaluated"
    checkpoint = Checkpoint(str(kept.path / "checkpoint"), kept.index + 1, {})
    write_policy_card(
        store, kept, store.path, kept.metrics("checkpoint"), rounds=rounds, verdict=verdict.to_json()
    )
    words = "\n".join(verdict.sentences)
    best = (
        f" (of round {kept.index}, run.keep_by={store.config.run.keep_by})"
        if store.config.run.keep == "best"
        else ""
    )
    progress.say("\n".join(["", render_rounds(rounds), words, f"policy: {checkpoint.path}{best}"]))
    write_own_report(store.path, progress)
    return RunResult(store.path, checkpoint, rounds, verdict)


def write_own_report(run_dir: Path, progress: Progress) -> None:
    """Write the run's report into its folder; what keeps it from that is a warning, never the run's end."""
    try:
        from ultramed_rl.report.build import write_report

        progress.say(f"report: {write_report(run_dir)}")
    except Exception as error:
        text = f"the report could not be written ({error}); try `ultramed-rl report {run_dir}` later"
        warnings.warn(text, stacklevel=2)


def prepare_reward_models(
    config: RunConfig, store: RunDirectory, workers: OnlineWorkers, pool: PromptPool, progress: Progress
) -> list[str]:
    """The configured reward models, or the one that this run trains once and keeps."""
    if config.reward.train is None:
        return [path for path in config.reward.paths if path is not None]

    def compute(directory: Path) -> Metrics:
        metrics = train_reward_model(config, workers, pool, progress, directory)
        write_card(directory, model_card(config, metrics, role="reward_model"))
        return metrics

    path, metrics = store.initial.phase_directory("reward_model", compute)
    accuracies = {k: v for k, v in metrics.items() if k.startswith("accuracy")}
    kinds = [
        f"{k.removeprefix('accuracy_')} {v:.2f} ({metrics.get(f'length_{k}', math.nan):.2f})"
        for k, v in accuracies.items()
    ]
    progress.say(
        f"reward model: held-out accuracy, and in brackets what length alone would get: {', '.join(kinds)}"
    )
    return [str(path)]


def train_reward_model(
    config: RunConfig, workers: OnlineWorkers, pool: PromptPool, progress: Progress, directory: Path
) -> Metrics:
    """Sample contrasts with the starting policy, train on them, save; returns training metrics."""
    training = config.reward.train
    assert training is not None
    every = sample_contrasts(
        training.data, pool.training, workers, workers.tokenizer, config.run.seed, progress
    )
    contrasts, held_out = split_contrasts(every, training.data.held_out, config.run.seed)
    restarts = config.cluster.faults.restarts
    for attempt in range(restarts + 1):
        try:
            steps, judged = _take_steps(config, workers, contrasts, held_out, progress, directory)
            break
        except RanksLost as error:
            if attempt == restarts:
                raise
            progress.say(f"{error}; starting again from {config.policy.path}")
    return {
        "pairs": len(contrasts),
        "pairs_held_out": len(held_out),
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
        "training_accuracy": fmean(s["accuracy"] for s in steps[len(steps) // 2 :]),
        **{name: value for name, value in judged.items() if name.startswith("accuracy")},
        **length_accuracies(held_out),
    }


def _take_steps(
    config: RunConfig,
    workers: OnlineWorkers,
    contrasts: Sequence[PreferenceGroup],
    held_out: Sequence[PreferenceGroup],
    progress: Progress,
    directory: Path,
) -> tuple[list[Metrics], Metrics]:
    """Each step's metrics, and those of the held-out contrasts. Raises RanksLost."""
    training = config.reward.train
    assert training is not None
    steps: list[Metrics] = []
    with workers.reward_trainer(config.policy.path) as group:
        group.call(
            RewardTrainWorker.learn_ranking, contrasts, BradleyTerry(), config.policy.max_length, held_out
        )
        with progress.phase("train reward model", len(contrasts) * training.epochs, "pairs") as bar:
            place = TrainingPlace(0, 1, config.run.seed)
            for metrics in group.run(RewardTrainWorker.train, training, place):
                steps.append(metrics)
                bar.advance(int(metrics["samples"]))
        group.wait(group.start(RewardTrainWorker.save, str(directory)), config.cluster.faults.start_s)
        (*_, judged) = group.run(RewardTrainWorker.evaluate, training.micro_batch_tokens)
    return steps, judged


def latest_checkpoint(config: RunConfig, store: RunDirectory) -> tuple[str, int]:
    """The newest policy on disk and its version; the starting policy is version 0.

    Raises:
        ValueError: it isn't what was written, or the answers that it was trained on are gone, which only the policy before
            it can give again.
    """
    committed = store.committed_rounds()
    index = store.last_checkpoint(min(committed + 1, config.run.rounds))
    if config.run.overlap:
        _check_answered(config, store, committed, 0 if index is None else index + 1)
    if index is None:
        return config.policy.path, 0
    if not store.round(index).finished("scored"):
        raise ValueError(
            f"{store.round(index).path}: has a checkpoint, and not the answers that it was trained on; put "
            "scored.parquet and scored.json back, or delete the folder to make the round again"
        )
    return str(store.round(index).directory("checkpoint")), index + 1


def _check_answered(config: RunConfig, store: RunDirectory, committed: int, version: int) -> None:
    """A round's answers are of the policy before, which nobody has when the round before has ended."""
    needed = [(committed, "scored"), (version, "scored")]
    if config.reference.update != "initial":
        needed.append((committed, "reference"))
    for index, name in needed:
        if 0 < index < config.run.rounds and not store.round(index).finished(name):
            raise ValueError(
                f"{store.round(index).path}: lacks {name}, which is of policy {index - 1} (run.overlap=1); put {name}.parquet "
                f"and {name}.json back, or delete this folder and {store.round(index - 1).path} to make both rounds again"
            )


def reference_path(config: RunConfig, store: RunDirectory) -> str:
    """The reference that the round in progress is trained against."""
    committed = store.committed_rounds()
    if committed and config.reference.update == "previous":
        return str(store.round(committed - 1).directory("checkpoint"))
    if committed and config.reference.update == "ema":
        return str(store.round(committed - 1).directory("reference_model"))
    return config.policy.path
