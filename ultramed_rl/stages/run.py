"""From a stage's config to its model: check, prepare the data, start the ranks, train, keep."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs, describe_rendering
from ultramed_rl.config.stages import StageConfig
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import ChatTokenizer, chat_tokenizer
from ultramed_rl.scheduling.pool import RanksLost
from ultramed_rl.stages.loop import StageLoop, render
from ultramed_rl.stages.openrlhf.run import train_by_openrlhf
from ultramed_rl.stages.training import TRAINING_KINDS, StageSamples, TrainedStage, TrainingKind
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
    kind = TRAINING_KINDS[config.type]
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
            prepared = kind.prepare(config, tokenizer)
            path, metrics = train_by_openrlhf(config, prepared, store, progress)
            progress.say(f"{config.run.name}: {render(metrics)}\nmodel: {path}")
            return StageResult(store.path, path, metrics)
        data = prepare_data(config, kind, tokenizer, store, progress)
        kind.check(config, data)
        with Tracker(store, config) as tracker:
            training = TrainedStage(config, StageWorkers(config, kind.worker), data, store, progress)
            try:
                path, metrics = train_to_the_end(training, kind, tracker)
                progress.say(f"{config.run.name}: {render(metrics)}\nmodel: {path}")
                return StageResult(store.path, path, metrics)
            finally:
                training.workers.stop()


def train_to_the_end(stage: TrainedStage, kind: TrainingKind, tracker: Tracker) -> tuple[Path, Metrics]:
    """Train; ranks that are lost start again, from the newest state that was saved."""
    config, workers, progress = stage.config, stage.workers, stage.progress
    while True:
        try:
            with progress.phase("start the ranks", 1, "groups") as bar:
                workers.start(*(getattr(config, key) for key in kind.load_keys))
                bar.advance(1)
            kind.teach(stage)
            count, evaluates = len(stage.data.training), stage.data.held_out is not None
            return StageLoop(config, stage.store, workers, count, evaluates, tracker, progress).run()
        except RanksLost as lost:
            progress.say(f"{lost}; starting again from the newest state")
            workers.restart()


def prepare_data(
    config: StageConfig,
    kind: TrainingKind,
    tokenizer: ChatTokenizer,
    store: StageDirectory,
    progress: Progress,
) -> StageSamples:
    """Read, split, tokenise and write the samples, once."""

    def write(directory: Path) -> Metrics:
        prepared = kind.prepare(config, tokenizer)
        with progress.phase("prepare data", 1, "data sets") as bar:
            training = write_samples(prepared.training(), kind.sample, directory / "training.arrow")
            held_out = write_samples(prepared.held_out(), kind.sample, directory / "held_out.arrow")
            bar.advance(1)
        counts = {name: float(count) for name, count in prepared.counts.items()}
        return {**counts, "samples_training": training, "samples_held_out": held_out}

    what = json.dumps(config.data.model_dump(mode="json"), sort_keys=True)
    inputs = (what, config.model.path, config.model.max_length, config.run.seed)
    path, counts = store.artifacts.phase_directory("data", write, *inputs)
    shown = ", ".join(f"{name} {count:.0f}" for name, count in counts.items() if count)
    progress.say(f"data: {shown}")
    training: SampleFile[Any] = SampleFile(path / "training.arrow", kind.sample)
    held_out: SampleFile[Any] = SampleFile(path / "held_out.arrow", kind.sample)
    return StageSamples(training, held_out if len(held_out) else None)
