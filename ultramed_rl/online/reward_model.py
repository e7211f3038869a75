"""A reward model made in the run itself, where none is at hand: contrasts from the policy's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.config import RunConfig
from ultramed_rl.config.stages import BradleyTerry
from ultramed_rl.data.contrasts import split_contrasts
from ultramed_rl.data.prompts import PromptPool
from ultramed_rl.records import PreferenceGroup
from ultramed_rl.scheduling.pool import RanksLost
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.sampling import sample_contrasts

Metrics = dict[str, float]


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
            steps, judged = _train(config, workers, contrasts, held_out, progress, directory)
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
    }


def _train(
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
