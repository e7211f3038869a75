"""The offline stages: supervised fine-tuning, the reward model, preference learning. One YAML file each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.cluster import StageCluster
from ultramed_rl.config.limits import (
    Address,
    Column,
    Count,
    CountOrZero,
    Factor,
    FactorOrZero,
    Few,
    Label,
    Share,
)
from ultramed_rl.config.models import Model
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.run import AnyConfig, Tracking
from ultramed_rl.config.training import StageTraining

# -- data --------------------------------------------------------------------------------------------------


class _Source(Section):
    """Rows behind a URI: hf://owner/name:split, package://name/path, or local files."""

    uri: Address = Field(description="hf://owner/name:split, package://name/path, or local files")
    weight: Factor = Field(
        default=1.0, description="how often its rows are used: 0.5 a seeded half, 2 each twice"
    )
    limit: Count | None = Field(default=None, description="read at most so many rows")
    max_misfit_share: Share = Field(default=0.05, description="share of rows that may not fit")


class ConversationSource(_Source):
    """Chats to imitate: UltraMedical's and ShareGPT's `conversations`, `messages`, or TRL's prompt/completion."""

    column: Column | None = Field(default=None, description="where the turns are; null: the columns tell")


class PreferenceSource(_Source):
    """Answers in order of preference: UltraMedical-Preference, UltraFeedback, TRL's forms, this project's pairs."""

    category: Label | None = Field(default=None, description="name in held-out figures; null: the row's own")


class _Data(Section):
    """What is common to the data of all stages."""

    held_out: CountOrZero = Field(default=0, description="prompts kept out of training, to evaluate on")
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="a sample over model.max_length stops the stage, or is dropped and counted",
    )


class ConversationData(_Data):
    """What to fine-tune on. The mixture is shuffled by the run's seed."""

    sources: list[ConversationSource] = Field(min_length=1)
    evaluation_sources: list[ConversationSource] = Field(default=[], description="held-out data of their own")


class PreferenceData(_Data):
    """What to prefer. Splits are by prompt, never by pair."""

    sources: list[PreferenceSource] = Field(min_length=1)
    evaluation_sources: list[PreferenceSource] = Field(default=[], description="held-out data of their own")


# -- losses of the reward model ----------------------------------------------------------------------------


class BradleyTerry(Section):
    """-log sigmoid(r_chosen - r_rejected - margin) (arXiv 2203.02155, eq. 1)."""

    type: Literal["bradley_terry"] = "bradley_terry"
    margin: Literal["none", "score_difference"] = Field(
        default="none", description="how far the better answer should lead: the data's score gap, scaled"
    )
    margin_scale: Factor = Field(default=1.0, description="factor on the score gap")
    centering: FactorOrZero = Field(
        default=0.0, description="weight of (r_chosen + r_rejected)^2 (arXiv 2312.09244)"
    )


class LogExp(Section):
    """log(1 + exp(r_rejected - r_chosen)) (arXiv 2204.05862): Bradley-Terry without its extras."""

    type: Literal["log_exp"] = "log_exp"


RewardObjective = Annotated[BradleyTerry | LogExp, Field(discriminator="type")]

# -- the stages --------------------------------------------------------------------------------------------


class _Stage(AnyConfig):
    """Sections and rules of every offline stage."""

    engine: Literal["native", "openrlhf"] = Field(
        default="native", description="openrlhf: hand the stage to OpenRLHF's own trainer (CUDA only)"
    )
    model: Model
    training: StageTraining
    cluster: StageCluster = StageCluster()
    tracking: Tracking = Tracking()

    def problems(self) -> list[str]:
        """Rules that span sections; each broken one is a line."""
        return [*_training_rules(self), *_cluster_rules(self)]


class SftConfig(_Stage):
    """Supervised fine-tuning: the NLL of the assistant's turns, a mean over the batch's tokens."""

    type: Literal["sft"] = "sft"
    data: ConversationData

    def problems(self) -> list[str]:
        return [*super().problems(), *_held_out_rules(self.training, self.data)]


class RewardConfig(_Stage):
    """A reward model: Bradley-Terry over all ordered pairs of each prompt's answers."""

    type: Literal["reward"] = "reward"
    data: PreferenceData
    objective: RewardObjective = Field(default=BradleyTerry(), description="the reward model's loss")
    trainable_layers: Few | None = Field(
        default=None, description="train only the last k decoder layers and the head; null: all"
    )

    def problems(self) -> list[str]:
        rules = [*super().problems(), *_held_out_rules(self.training, self.data)]
        if self.model.lora is not None:
            rules.append("model.lora: a reward model is trained whole; remove it or use trainable_layers")
        return rules


class PreferenceConfig(_Stage):
    """Offline preference learning; the reference is the model that the stage starts from."""

    type: Literal["preference"] = "preference"
    data: PreferenceData
    objective: Objective = Field(description="the preference objective")

    def problems(self) -> list[str]:
        rules = [*super().problems(), *_held_out_rules(self.training, self.data)]
        if self.objective.kl != "none" and self.training.batch_size < 2:
            rules.append(
                f"training.batch_size={self.training.batch_size}: {self.objective.type} estimates a KL over the "
                "batch and needs at least 2 pairs; raise it"
            )
        return rules


StageConfig = SftConfig | RewardConfig | PreferenceConfig


def _training_rules(stage: _Stage) -> list[str]:
    training = stage.training
    if training.patience is not None and training.evaluate_every is None:
        return [f"training.patience={training.patience}: needs training.evaluate_every"]
    return []


def _held_out_rules(training: StageTraining, data: ConversationData | PreferenceData) -> list[str]:
    if data.held_out or data.evaluation_sources:
        return []
    asked = {
        "training.evaluate_every": training.evaluate_every,
        "training.keep": training.keep if training.keep == "best" else None,
    }
    return [
        f"{key}={value}: there is nothing to evaluate on; set data.held_out or data.evaluation_sources"
        for key, value in asked.items()
        if value is not None
    ]


def _cluster_rules(stage: _Stage) -> list[str]:
    problems, cluster, lora = [], stage.cluster, stage.model.lora
    if cluster.trainer.offload_optimizer and cluster.trainer.zero_stage == 0:
        problems.append("cluster.trainer.offload_optimizer=true: needs cluster.trainer.zero_stage >= 1")
    if cluster.trainer.offload_optimizer and cluster.device == "cpu":
        problems.append(
            "cluster.trainer.offload_optimizer=true: has no meaning on cluster.device=cpu; remove it"
        )
    if lora is not None and lora.quantize and cluster.trainer.zero_stage == 3:
        problems.append(
            f"model.lora.quantize={lora.quantize!r}: 4-bit weights cannot be partitioned; "
            "use cluster.trainer.zero_stage <= 2"
        )
    if stage.engine == "openrlhf" and cluster.device == "cpu":
        problems.append(
            "engine='openrlhf': OpenRLHF computes on cluster.device=cuda alone; use engine=native"
        )
    return problems
