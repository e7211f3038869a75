"""From a training stage's config to its model: check, prepare the data, start the ranks, train, keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.cluster.inputs import describe_inputs, describe_rendering
from ultramed_rl.cluster.memory import resolve_architecture
from ultramed_rl.config.objectives import KTO, Objective
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig, StageConfig
from ultramed_rl.data.stage_data import Prepared, PreparedConversations, PreparedPreferences
from ultramed_rl.learning.checks import check_chats, check_groups, check_references
from ultramed_rl.learning.preference_data import read_reference, reference_answers
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import ChatTokenizer, chat_tokenizer
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs, TokenizedChat
from ultramed_rl.scheduling.pool import RanksLost
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
            training, held_out = prepare_data(config, tokenizer, store, progress)
            path, metrics = _NativeStage(config, training, held_out, store, progress).train()
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

    what = json.dumps(config.data.model_dump(mode="json"), sort_keys=True)
    inputs = (what, model.path, model.max_length, config.run.seed)
    path, counts = store.artifacts.phase_directory("data", write, *inputs)
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


class _NativeStage:
    """A stage computed here: its ranks, what they are taught, and its loop."""

    def __init__(
        self,
        config: StageConfig,
        training: SampleFile[Any],
        held_out: SampleFile[Any] | None,
        store: StageDirectory,
        progress: Progress,
    ) -> None:
        self.config, self.store, self.progress = config, store, progress
        self.training, self.held_out = training, held_out
        worker = RewardTrainWorker if isinstance(config, RewardConfig) else PolicyWorker
        self.workers = StageWorkers(config, worker)

    def train(self) -> tuple[Path, Metrics]:
        """Train to the end; ranks that are lost start again, from the newest state that was saved."""
        config, workers, count = self.config, self.workers, len(self.training)
        load = (config.trainable_layers,) if isinstance(config, RewardConfig) else ()
        evaluates = self.held_out is not None
        try:
            with Tracker(self.store, config) as tracker:
                loop = StageLoop(config, self.store, workers, count, evaluates, tracker, self.progress)
                while True:
                    try:
                        with self.progress.phase("start the ranks", 1, "groups") as bar:
                            workers.start(*load)
                            bar.advance(1)
                        self._teach()
                        return loop.run()
                    except RanksLost as lost:
                        self.progress.say(f"{lost}; starting again from the newest state")
                        workers.restart()
        finally:
            workers.stop()

    def _teach(self) -> None:
        """Set the ranks' task. A preference stage's model is its own reference: it scores all answers before its first
        step."""
        config, held_out, length = self.config, self.held_out, self.config.model.max_length
        if isinstance(config, SftConfig):
            self.workers.teach(PolicyWorker.learn_chats, self.training, held_out)
        elif isinstance(config, RewardConfig):
            wanted = (config.objective, length, held_out)
            self.workers.teach(RewardTrainWorker.learn_ranking, self.training, *wanted)
        else:
            references = self._references(config, "reference", self.training)
            measured = None
            if held_out is not None:
                measured = (held_out, self._references(config, "reference_held_out", held_out))
            task = (references, self._objective(config), length, measured)
            self.workers.teach(PolicyWorker.learn_preferences, self.training, *task)

    def _objective(self, config: PreferenceConfig) -> Objective:
        """The config's; of KTO with its weights."""
        objective = config.objective
        if not isinstance(objective, KTO):
            return objective
        wanted = sum(group.desirable for group in self.training)
        unwanted = sum(len(group.completions) for group in self.training) - wanted
        objective = objective.balanced(wanted, unwanted)
        weights = (objective.desirable_weight or 1.0, objective.undesirable_weight or 1.0)
        ratio = f"{weights[0] * wanted / (weights[1] * unwanted):.3g}" if unwanted else "inf"
        self.progress.say(
            f"kto: {wanted} wanted answers of weight {weights[0]:.4g}, {unwanted} unwanted of {weights[1]:.4g}; together "
            f"{ratio} to 1, where 1 to 1.5 is advised"
        )
        return objective

    def _references(
        self, config: PreferenceConfig, name: str, groups: Sequence[PreferenceGroup]
    ) -> list[ReferenceLogprobs] | None:
        if not config.objective.uses_reference:
            return None

        def compute(_: str) -> list[ReferenceLogprobs]:
            mismatched, length = config.objective.kl == "mismatched", config.model.max_length
            answers = [reference_answers(groups, i, mismatched, length) for i in range(len(groups))]
            total = sum(len(a.answers) for a in answers)
            with self.progress.phase("reference logprobs", total, "answers") as bar:
                values = self.workers.score_start(answers, bar.advance)
            references = [
                read_reference(group.group_id, len(group.completions), numbers)
                for group, numbers in zip(groups, values, strict=True)
            ]
            check_references(groups, references)
            return references

        artifacts = self.store.artifacts
        return artifacts.phase(name, compute, artifacts.digest("data"), kind=ReferenceLogprobs)
