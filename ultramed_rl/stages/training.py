"""What differs between the stages that train: their data, their ranks, and what these are taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.reward_trainer import RewardTrainWorker
from ultramed_rl.cluster.memory import resolve_architecture
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.data.stage_data import Prepared, prepare_conversations, prepare_preferences
from ultramed_rl.learning.checks import check_chats, check_groups, check_references
from ultramed_rl.learning.preference_data import read_reference, reference_answers
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs, TokenizedChat
from ultramed_rl.store import SampleFile, StageDirectory
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.stage import StageWorkers


@dataclass(frozen=True)
class StageSamples:
    """A stage's samples on disk; `held_out` is None where there are none."""

    training: SampleFile[Any]
    held_out: SampleFile[Any] | None

    @property
    def parts(self) -> list[SampleFile[Any]]:
        """Those that there are."""
        return [self.training] if self.held_out is None else [self.training, self.held_out]


@dataclass(frozen=True)
class TrainedStage:
    """What a kind of stage may use while it teaches its ranks."""

    config: Any
    workers: StageWorkers
    data: StageSamples
    store: StageDirectory
    progress: Progress


@dataclass(frozen=True)
class TrainingKind:
    """A kind of stage that trains.

    Attributes:
        sample: the record that it is trained on.
        worker: the ranks' class.
        prepare: its samples.
        check: refuses samples that cannot be learnt from, before any rank is started.
        teach: sets the ranks' task.
        load_keys: keys of the config that the worker's `load` wants besides.
    """

    sample: type
    worker: type
    prepare: Callable[[Any, ChatTokenizer], Prepared[Any]]
    check: Callable[[Any, StageSamples], None]
    teach: Callable[[TrainedStage], None]
    load_keys: tuple[str, ...] = ()


def _prepare_chats(config: SftConfig, tokenizer: ChatTokenizer) -> Prepared[TokenizedChat]:
    return prepare_conversations(config.data, tokenizer, config.model.max_length, config.run.seed)


def _prepare_ranked(
    config: RewardConfig | PreferenceConfig, tokenizer: ChatTokenizer
) -> Prepared[PreferenceGroup]:
    objective = config.objective if isinstance(config, PreferenceConfig) else None
    pairs = objective is not None and not (objective.listwise or objective.unpaired)
    return prepare_preferences(config.data, tokenizer, config.model.max_length, config.run.seed, pairs=pairs)


def _check_chats(config: SftConfig, data: StageSamples) -> None:
    vocabulary = resolve_architecture(config.model.path, config.model.architecture, "model").vocab_size
    for chats in data.parts:
        check_chats(chats, vocabulary)


def _check_ranked(config: RewardConfig | PreferenceConfig, data: StageSamples) -> None:
    vocabulary = resolve_architecture(config.model.path, config.model.architecture, "model").vocab_size
    paired = isinstance(config, RewardConfig) or not config.objective.unpaired
    for groups in data.parts:
        check_groups(groups, vocabulary, config.model.max_length, paired=paired)


def _teach_chats(stage: TrainedStage) -> None:
    stage.workers.teach(PolicyWorker.learn_chats, stage.data.training, stage.data.held_out)


def _teach_ranking(stage: TrainedStage) -> None:
    config: RewardConfig = stage.config
    wanted = (config.objective, config.model.max_length, stage.data.held_out)
    stage.workers.teach(RewardTrainWorker.learn_ranking, stage.data.training, *wanted)


def _teach_preferences(stage: TrainedStage) -> None:
    """The model in training is its own reference: it scores all answers before its first step."""
    config, data = stage.config, stage.data
    training, held_out = _references(stage, "reference", data.training), None
    if data.held_out is not None:
        held_out = (data.held_out, _references(stage, "reference_held_out", data.held_out))
    wanted = (training, config.objective, config.model.max_length, held_out)
    stage.workers.teach(PolicyWorker.learn_preferences, data.training, *wanted)


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
        load_keys=("trainable_layers",),
    ),
    "preference": TrainingKind(
        PreferenceGroup, PolicyWorker, _prepare_ranked, _check_ranked, _teach_preferences
    ),
}
