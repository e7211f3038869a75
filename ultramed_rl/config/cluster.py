"""Where a run computes: nodes, devices, and how roles share them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Few,
    FewOrZero,
    GiB,
    NodeDevices,
    Nodes,
    PositiveShare,
    Processes,
    Seconds,
    Share,
    WorkersOrZero,
    ZeroStage,
)


class TrainerGroup(Section):
    """The DeepSpeed ranks of whatever is trained."""

    ranks: Processes = Field(default=1, description="data-parallel processes, one device each")
    zero_stage: ZeroStage = Field(
        default=2,
        description="DeepSpeed's ZeRO: 0 nothing is partitioned, 1 optimizer states, 2 gradients too, 3 weights too",
    )
    offload_optimizer: bool = Field(
        default=False, description="keep the optimizer's states and step in CPU memory"
    )


class RolloutGroup(Section):
    """The vLLM engines."""

    engines: Processes = Field(default=1, description="vLLM engines, each a copy of the policy")
    tensor_parallel: Annotated[NodeDevices, Field(le=64)] = Field(
        default=1, description="GPUs that one engine's weights are split over"
    )
    max_num_seqs: BatchSize = Field(default=256, description="sequences that an engine has under way at most")
    kv_cache_gib: GiB | None = Field(
        default=None, description="KV cache of one engine in GiB; null on CUDA: from memory_fraction"
    )
    memory_fraction: PositiveShare = Field(default=0.85, lt=1.0, description="share of a GPU for an engine")
    enforce_eager: bool = Field(
        default=False, description="no CUDA graphs: a faster start, slower generation"
    )


class ReplicaGroup(Section):
    """Reference or reward replicas, each a whole model on one device; or, sharded, one model over all."""

    replicas: Processes = Field(default=1, description="copies of the model, one device each")
    shard: bool = Field(
        default=False, description="split the weights over the replicas (ZeRO-3), for large models"
    )


class Faults(Section):
    """What is done about workers that die or hang."""

    attempts: Annotated[Few, Field(ge=2)] = Field(
        default=3,
        description="tries of a prompt whose worker fails or dies before it is set aside; the last with a worker to itself",
    )
    restarts: FewOrZero = Field(default=20, description="workers of one role that a run replaces at most")
    hang_s: Seconds = Field(
        default=600.0,
        description="seconds without a sign of life (a turn's report, an optimizer step) after which a worker is replaced",
    )
    start_s: Seconds = Field(
        default=1800.0,
        description="seconds that a worker may take to start, or to read or write a whole model; then it is replaced, or "
        "where it found no place its node counts as lost",
    )
    allow_fewer_workers: bool = Field(
        default=True, description="go on with fewer engines or replicas when one cannot be replaced"
    )
    max_failed_prompt_share: Share = Field(
        default=0.01,
        description="share of a round's prompts that may be set aside before the run stops; one always may",
    )


class Devices(Section):
    """The nodes of a run and what they have."""

    device: Literal["cpu", "cuda"] = Field(default="cuda", description="where models compute")
    nodes: Nodes = Field(default=1, description="machines of the run")
    devices_per_node: NodeDevices = Field(
        default=8, description="GPUs, or on CPU the slots that share a node's cores"
    )
    cpus_per_node: NodeDevices | None = Field(default=None, description="null: what Ray finds")
    device_memory_gib: GiB = Field(default=80.0, description="per GPU; on CPU per node")
    address: Address | None = Field(
        default=None, description="Ray address; null: RAY_ADDRESS or a local cluster"
    )
    start_timeout_s: Seconds = Field(
        default=900.0, description="seconds to wait until the cluster has what the run needs"
    )
    faults: Faults = Faults()


class Cluster(Devices):
    """The devices of an online run and the groups that live on them.

    `colocated`: roles take turns on the same devices. `disaggregated`: each role has its own.
    """

    layout: Literal["colocated", "disaggregated"] = Field(
        default="colocated", description="whether roles take turns on the same devices, or each has its own"
    )
    sequential_phases: bool | None = Field(
        default=None,
        description="true: generate, score and compute reference logprobs one after the other; false: all at once, each answer as it "
        "comes; null: true where roles share devices, on which they would only slow each other, else false",
    )
    policy: TrainerGroup = TrainerGroup()
    rollout: RolloutGroup = RolloutGroup()
    reference: ReplicaGroup = ReplicaGroup()
    reward: ReplicaGroup = ReplicaGroup()

    @property
    def runs_phases_in_turn(self) -> bool:
        """Whether a round's phases wait for each other."""
        return self.layout == "colocated" if self.sequential_phases is None else self.sequential_phases


class StageCluster(Devices):
    """The devices of an offline stage, which its training ranks have to themselves."""

    trainer: TrainerGroup = TrainerGroup()


class SamplingCluster(Devices):
    """The devices of a stage that samples: engines first, reward models after them."""

    rollout: RolloutGroup = RolloutGroup()
    reward: ReplicaGroup = ReplicaGroup()


class ScoringCluster(Devices):
    """The devices of reward models that are alone on them; by default one."""

    devices_per_node: NodeDevices = Field(
        default=1, description="GPUs, or on CPU the slots that share a node's cores"
    )
    reward: ReplicaGroup = ReplicaGroup()


class DataCluster(SamplingCluster):
    """The devices of the engines, and the processes of steps that ask no model."""

    workers: WorkersOrZero = Field(
        default=0,
        description="Ray Data's, a CPU each, for deduplicate and decontaminate; 0: the driver's own process",
    )
