"""What differs between the offline stages: their data, their ranks, and what these are taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.reward_trainer import RewardTrainWorker
from ultramed_rl.cluster.architecture import resolve_architecture
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig, StageConfig
from ultramed_rl.crew.stage import StageCrew
from ultramed_rl.data.stage_data import Prepared, prepare_conversations, prepare_preferences
from ultramed_rl.learning.checks import check_chats, check_groups, check_references
from ultramed_rl.learning.preference_data import read_reference, reference_answers
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs, TokenizedChat
from ultramed_rl.store import SampleFile, StageDirectory
from ultramed_rl.tracking import Progress


@dataclass(frozen=True)
class Data:
    """A stage's samples on disk; `held_out` is None where there are none."""

    training: SampleFile[Any]
    held_out: SampleFile[Any] | None

    @property
    def parts(self) -> list[SampleFile[Any]]:
        """Those that there are."""
        return [self.training] if self.held_out is None else [self.training, self.held_out]


@dataclass(frozen=True)
class Work:
    """What a kind of stage may use while it teaches its ranks."""

    config: Any
    crew: StageCrew
    data: Data
    store: StageDirectory
    progress: Progress


@dataclass(frozen=True)
class Kind:
    """A kind of stage.

    Attributes:
        sample: the record that it is trained on.
        worker: the ranks' class.
        prepare: its samples.
        extra: the worker's own arguments of `load`.
        check: refuses samples that cannot be learnt from, before any rank is started.
        teach: sets the ranks' task.
    """

    sample: type
    worker: type
    prepare: Callable[[Any, ChatTokenizer], Prepared[Any]]
    extra: Callable[[Any], tuple[Any, ...]]
    check: Callable[[Any, Data], None]
    teach: Callable[[Work], None]


def _prepare_chats(config: SftConfig, tokenizer: ChatTokenizer) -> Prepared[TokenizedChat]:
    return prepare_conversations(config.data, tokenizer, config.model.max_length, config.run.seed)


def _prepare_groups(
    config: RewardConfig | PreferenceConfig, tokenizer: ChatTokenizer
) -> Prepared[PreferenceGroup]:
    objective = config.objective if isinstance(config, PreferenceConfig) else None
    pairs = objective is not None and not (objective.listwise or objective.unpaired)
    return prepare_preferences(config.data, tokenizer, config.model.max_length, config.run.seed, pairs=pairs)


def _check_chats(config: SftConfig, data: Data) -> None:
    for chats in data.parts:
        check_chats(chats, _vocabulary(config))


def _check_groups(config: RewardConfig | PreferenceConfig, data: Data) -> None:
    paired = isinstance(config, RewardConfig) or not config.objective.unpaired
    for groups in data.parts:
        check_groups(groups, _vocabulary(config), config.model.max_length, paired=paired)


def _vocabulary(config: StageConfig) -> int:
    return resolve_architecture(config.model.path, config.model.architecture, "model").vocab_size


def _teach_chats(work: Work) -> None:
    work.crew.teach("learn_chats", work.data.training, work.data.held_out)


def _teach_ranking(work: Work) -> None:
    config: RewardConfig = work.config
    work.crew.teach(
        "learn_ranking", work.data.training, config.objective, config.model.max_length, work.data.held_out
    )


def _teach_preferences(work: Work) -> None:
    """The model in training is its own reference: it scores all answers before its first step."""
    config: PreferenceConfig = work.config
    held_out = None
    training = _references(work, "reference", work.data.training)
    if work.data.held_out is not None:
        held_out = (work.data.held_out, _references(work, "reference_held_out", work.data.held_out))
    length = config.model.max_length
    work.crew.teach("learn_preferences", work.data.training, training, config.objective, length, held_out)


def _references(work: Work, name: str, groups: Sequence[PreferenceGroup]) -> list[ReferenceLogprobs] | None:
    config: PreferenceConfig = work.config
    if not config.objective.uses_reference:
        return None

    def compute(_: str) -> list[ReferenceLogprobs]:
        mismatched = config.objective.kl == "mismatched"
        length = config.model.max_length
        answers = [reference_answers(groups, i, mismatched, length) for i in range(len(groups))]
        total = sum(len(a.answers) for a in answers)
        with work.progress.phase("reference logprobs", total, "answers") as bar:
            values = work.crew.score_start(answers, bar.advance)
        references = [
            read_reference(group.group_id, len(group.completions), numbers)
            for group, numbers in zip(groups, values, strict=True)
        ]
        check_references(groups, references)
        return references

    digest = work.store.artifacts.digest("data")
    return work.store.artifacts.phase(name, compute, digest, kind=ReferenceLogprobs)


def kind_of(config: StageConfig) -> Kind:
    """The kind of a stage's config."""
    if isinstance(config, SftConfig):
        return Kind(TokenizedChat, PolicyWorker, _prepare_chats, _nothing, _check_chats, _teach_chats)
    if isinstance(config, PreferenceConfig):
        return Kind(
            PreferenceGroup, PolicyWorker, _prepare_groups, _nothing, _check_groups, _teach_preferences
        )
    layers = (config.trainable_layers,)
    return Kind(
        PreferenceGroup, RewardTrainWorker, _prepare_groups, lambda _: layers, _check_groups, _teach_ranking
    )


def _nothing(_: StageConfig) -> tuple[Any, ...]:
    return ()
