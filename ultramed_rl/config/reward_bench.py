"""A reward model on pairs whose better answer is known: Medical RewardBench, RewardBench, or any others."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.cluster import Devices, ReplicaGroup
from ultramed_rl.config.limits import Address, Column, Count, NodeDevices, Share, Tokens
from ultramed_rl.config.models import ModelSettings, Reward
from ultramed_rl.config.run import AnyConfig, Tracking


class BenchedModel(ModelSettings):
    """The reward model: a trained `num_labels=1` classifier. `max_length` is of a prompt with one answer."""

    path: Address = Field(description="a local directory or a hub id")
    micro_batch_tokens: Tokens = Field(
        default=16384, description="packed tokens per forward pass on one replica"
    )


class BenchmarkPairs(Section):
    """Rows with chosen and rejected answers behind a URI, see `ultramed_rl.data.preferences`."""

    uri: Address = Field(description="hf://owner/name:split, package://name/path, or local files")
    subset_column: Column | None = Field(
        default=None, description="null: subset, label_type, type or category, the first that a row has"
    )
    limit: Count | None = Field(default=None, description="read at most so many rows")
    max_misfit_share: Share = Field(default=0.05, description="share of rows that may not fit")
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse", description="a pair over model.max_length stops the run, or is dropped and counted"
    )


class ScoringCluster(Devices):
    """The devices of reward models that are alone on them; by default one."""

    devices_per_node: NodeDevices = Field(
        default=1, description="GPUs, or on CPU the slots that share a node's cores"
    )
    reward: ReplicaGroup = ReplicaGroup()


class RewardBenchConfig(AnyConfig):
    """How often a reward model scores the chosen answer above the rejected one, by subset."""

    type: Literal["reward_bench"] = "reward_bench"
    model: BenchedModel
    data: BenchmarkPairs
    cluster: ScoringCluster = ScoringCluster()
    tracking: Tracking = Tracking()

    @property
    def reward(self) -> Reward:
        """The model as what scores."""
        model = self.model
        return Reward(
            path=model.path,
            precision=model.precision,
            micro_batch_tokens=model.micro_batch_tokens,
            trust_remote_code=model.trust_remote_code,
            architecture=model.architecture,
        )
