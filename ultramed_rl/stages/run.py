"""From a training stage's config to its model: check, prepare the data, start the ranks, train, keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.reward_trainer import RewardTrainWorker
from ultramed_rl.cluster.architecture import resolve_architecture
from ultramed_rl.cluster.group import RanksLost
from ultramed_rl.cluster.inputs import describe_inputs, describe_rendering
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig, StageConfig
from ultramed_rl.data.stage_data import Prepared, prepare_conversations, prepare_preferences
from ultramed_rl.learning.checks import check_chats, check_groups, check_references
from ultramed_rl.learning.preference_data import read_reference, reference_answers
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import ChatTokenizer, chat_tokenizer
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs, TokenizedChat
from ultramed_rl.stages.loop import StageLoop, render
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


@dataclass(frozen=True)
class TrainedStage:
    """What a kind of stage may use while it teaches its ranks; `held_out` is None where there are no such samples."""

    config: Any
    workers: StageWorkers
    training: SampleFile[Any]
    held_out: SampleFile[Any] | None
    store: StageDirectory
    progress: Progress


@dataclass(frozen=True)
class TrainingKind:
    """A kind of stage that trains: the record that it is trained on, and what its ranks do with it."""

    sample: type
    worker: type  # the ranks' class
    prepare: Callable[[Any, ChatTokenizer], Prepared[Any]]
    check: Callable[
        [Any, Sequence[Any]], None
    ]  # refuses samples that cannot be learnt from, before a rank is started
    teach: Callable[[TrainedStage], None]  # sets the ranks' task
    load_keys: tuple[str, ...] = ()  # of the config, what the worker's `load` wants besides


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
            path, metrics = train_by_openrlhf(config, kind.prepare(config, tokenizer), store, progress)
        else:
            path, metrics = _train(config, kind, tokenizer, store, progress)
        progress.say(f"{config.run.name}: {render(metrics)}\nmodel: {path}")
        return StageResult(store.path, path, metrics)


def _train(
    config: StageConfig,
    kind: TrainingKind,
    tokenizer: ChatTokenizer,
    store: StageDirectory,
    progress: Progress,
) -> tuple[Path, Metrics]:
    """Prepare the data, and train to the end; ranks that are lost start again, from the newest state that was saved."""
    training, held_out = prepare_data(config, kind, tokenizer, store, progress)
    for samples in filter(None, (training, held_out)):
        kind.check(config, samples)
    with Tracker(store, config) as tracker:
        workers = StageWorkers(config, kind.worker)
        stage = TrainedStage(config, workers, training, held_out, store, progress)
        evaluates = held_out is not None
        try:
            while True:
                try:
                    with progress.phase("start the ranks", 1, "groups") as bar:
                        workers.start(*(getattr(config, key) for key in kind.load_keys))
                        bar.advance(1)
                    kind.teach(stage)
                    loop = StageLoop(config, store, workers, len(training), evaluates, tracker, progress)
                    return loop.run()
                except RanksLost as lost:
                    progress.say(f"{lost}; starting again from the newest state")
                    workers.restart()
        finally:
            workers.stop()


def prepare_data(
    config: StageConfig,
    kind: TrainingKind,
    tokenizer: ChatTokenizer,
    store: StageDirectory,
    progress: Progress,
) -> tuple[SampleFile[Any], SampleFile[Any] | None]:
    """Read, split, tokenise and write the samples, once: those to train on, and those held out, if there are any."""

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
    progress.say("data: " + ", ".join(f"{name} {count:.0f}" for name, count in counts.items() if count))
    training: SampleFile[Any] = SampleFile(path / "training.arrow", kind.sample)
    held_out: SampleFile[Any] = SampleFile(path / "held_out.arrow", kind.sample)
    return training, held_out if len(held_out) else None


def _prepare_chats(config: SftConfig, tokenizer: ChatTokenizer) -> Prepared[TokenizedChat]:
    return prepare_conversations(config.data, tokenizer, config.model.max_length, config.run.seed)


def _prepare_ranked(
    config: RewardConfig | PreferenceConfig, tokenizer: ChatTokenizer
) -> Prepared[PreferenceGroup]:
    objective = config.objective if isinstance(config, PreferenceConfig) else None
    pairs = objective is not None and not (objective.listwise or objective.unpaired)
    return prepare_preferences(config.data, tokenizer, config.model.max_length, config.run.seed, pairs=pairs)


def _check_chats(config: SftConfig, chats: Sequence[TokenizedChat]) -> None:
    check_chats(chats, _vocabulary(config))


def _check_ranked(config: RewardConfig | PreferenceConfig, groups: Sequence[PreferenceGroup]) -> None:
    paired = isinstance(config, RewardConfig) or not config.objective.unpaired
    check_groups(groups, _vocabulary(config), config.model.max_length, paired=paired)


def _vocabulary(config: StageConfig) -> int:
    return resolve_architecture(config.model.path, config.model.architecture, "model").vocab_size


def _teach_chats(stage: TrainedStage) -> None:
    stage.workers.teach(PolicyWorker.learn_chats, stage.training, stage.held_out)


def _teach_ranking(stage: TrainedStage) -> None:
    config: RewardConfig = stage.config
    wanted = (config.objective, config.model.max_length, stage.held_out)
    stage.workers.teach(RewardTrainWorker.learn_ranking, stage.training, *wanted)


def _teach_preferences(stage: TrainedStage) -> None:
    """The model in training is its own reference: it scores all answers before its first step."""
    config: PreferenceConfig = stage.config
    training, held_out = _references(stage, "reference", stage.training), None
    if stage.held_out is not None:
        held_out = (stage.held_out, _references(stage, "reference_held_out", stage.held_out))
    wanted = (training, config.objective, config.model.max_length, held_out)
    stage.workers.teach(PolicyWorker.learn_preferences, stage.training, *wanted)


def _references(
    stage: TrainedStage, name: str, groups: Sequence[PreferenceGroup]
) -> list[ReferenceLogprobs] | None:
    config: PreferenceConfig = stage.config
    if not config.objective.uses_reference:
        return None

    def compute(_: str) -> list[ReferenceLogprobs]:
        mismatched = config.objective.kl == "mismatched"
        length = config.model.max_length
        answers = [reference_answers(groups, i, mismatched, length) for i in range(len(groups))]
        total = sum(len(a.answers) for a in answers)
        with stage.progress.phase("reference logprobs", total, "answers") as bar:
            values = stage.workers.score_start(answers, bar.advance)
        references = [
            read_reference(group.group_id, len(group.completions), numbers)
            for group, numbers in zip(groups, values, strict=True)
        ]
        check_references(groups, references)
        return references

    digest = stage.store.artifacts.digest("data")
    return stage.store.artifacts.phase(name, compute, digest, kind=ReferenceLogprobs)


# By the type of the config.
TRAINING_KINDS = {
    "sft": TrainingKind(TokenizedChat, PolicyWorker, _prepare_chats, _check_chats, _teach_chats),
    "reward": TrainingKind(
        PreferenceGroup,
        RewardTrainWorker,
        _prepare_ranked,
        _check_ranked,
        _teach_ranking,
        ("trainable_layers",),
    ),
    "preference": TrainingKind(
        PreferenceGroup, PolicyWorker, _prepare_ranked, _check_ranked, _teach_preferences
    ),
}
