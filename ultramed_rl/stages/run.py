"""From a training stage's config to its model: check, prepare the data, start the ranks, train, keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.cluster.inputs import describe_inputs, describe_rendering
from ultramed_rl.cluster.memory import resolve_architecture
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig, StageConfig
from ultramed_rl.data.stage_data import Prepared, PreparedConversations, PreparedPreferences
from ultramed_rl.learning.checks import check_chats, check_groups
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import ChatTokenizer, chat_tokenizer
from ultramed_rl.records import PreferenceGroup, TokenizedChat
from ultramed_rl.stages.loop import StageLoop, data_inputs, render
from ultramed_rl.stages.openrlhf import train_by_openrlhf
from ultramed_rl.store import SampleFile, StageDirectory, write_samples
from ultramed_rl.tracking import Progress, Tracker, watched
from ultramed_rl.workers.stage import StageWorkers

Metrics = dict[str, float]


@dataclass(frozen=True)
class StageResult:
    """What a stage came to: its directory, its model in Hugging Face format, its figures."""

    directory: Path
    model: Path
    metrics: Metrics


def run_stage(config: StageConfig, *, resume: bool = False) -> StageResult:
    """Run an offline stage; with `resume`, go on where a killed one stopped. A finished one is read back.

    Raises:
        ValueError: bad input, with value, rule and fix.
    """
    progress = Progress()
    tokenizer = chat_tokenizer(config.model)
    check_models(config)

    def inputs() -> dict[str, str]:
        return {**describe_inputs(config), "chat as rendered": describe_rendering(tokenizer)}

    with StageDirectory.open(config, resume, inputs) as store, watched(store.path):
        if store.artifacts.finished("model"):
            path = store.artifacts.directory("model")
            store.discard_saved()  # by which a killed run may not have come
            progress.say(f"{config.run.name}: finished before; model: {path}")
            return StageResult(store.path, path, store.artifacts.metrics("model"))
        if config.engine == "openrlhf":
            path, metrics = train_by_openrlhf(config, prepare_samples(config, tokenizer), store, progress)
        else:
            samples = prepare_data(config, tokenizer, store, progress)
            workers = StageWorkers(
                config, RewardTrainWorker if isinstance(config, RewardConfig) else PolicyWorker
            )
            try:
                with Tracker(store, config) as tracker:
                    path, metrics = StageLoop(config, store, workers, samples, tracker, progress).train()
            finally:
                workers.stop()
        progress.say(f"{config.run.name}: {render(metrics)}\nmodel: {path}")
        return StageResult(store.path, path, metrics)


def prepare_samples(config: StageConfig, tokenizer: ChatTokenizer) -> Prepared[Any]:
    """The samples that a stage is trained on."""
    length, seed = config.model.max_length, config.run.seed
    if isinstance(config, SftConfig):
        return PreparedConversations(config.data, tokenizer, length, seed)
    objective = config.objective if isinstance(config, PreferenceConfig) else None
    pairs = objective is not None and not (objective.listwise or objective.unpaired)
    return PreparedPreferences(config.data, tokenizer, length, seed, pairs=pairs)


def prepare_data(
    config: StageConfig, tokenizer: ChatTokenizer, store: StageDirectory, progress: Progress
) -> tuple[SampleFile[Any], SampleFile[Any] | None]:
    """Read, split, tokenise and write the samples, once: those to train on, and those held out, if there are any. What
    cannot be learnt from is refused here, before any rank is started."""
    model, sample = config.model, TokenizedChat if isinstance(config, SftConfig) else PreferenceGroup

    def write(directory: Path) -> Metrics:
        prepared = prepare_samples(config, tokenizer)
        with progress.phase("prepare data", 1, "data sets") as bar:
            training = write_samples(prepared.training(), sample, directory / "training.arrow")
            held_out = write_samples(prepared.held_out(), sample, directory / "held_out.arrow")
            bar.advance(1)
        counts = {name: float(count) for name, count in prepared.counts.items()}
        return {**counts, "samples_training": training, "samples_held_out": held_out}

    path, counts = store.artifacts.phase_directory("data", write, *data_inputs(config))
    progress.say("data: " + ", ".join(f"{name} {count:.0f}" for name, count in counts.items() if count))
    files: list[SampleFile[Any]] = [
        SampleFile(path / f"{name}.arrow", sample) for name in ("training", "held_out")
    ]
    vocabulary = resolve_architecture(model.path, model.architecture, "model").vocab_size
    for samples in filter(len, files):
        if isinstance(config, SftConfig):
            check_chats(samples, vocabulary)
        else:
            paired = isinstance(config, RewardConfig) or not config.objective.unpaired
            check_groups(samples, vocabulary, model.max_length, paired=paired)
    training, held_out = files
    return training, held_out if len(held_out) else None
