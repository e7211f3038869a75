"""Where a run computes: nodes, devices, and how roles share them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section, key
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Factor,
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
from ultramed_rl.config.models import Precision

# Of workers' environment: what `Devices` says of `attention` and `kernels`.
ATTENTION, KERNELS = "ULTRAMED_RL_ATTENTION", "ULTRAMED_RL_KERNELS"


def _sharing_rules(sharing: int, name: str, processes: int) -> Iterator[str]:
    """The broken rule that each micro-batch has equally many processes, and all processes one."""
    if processes % sharing:
        rule = f"must divide {name}={processes}, for each micro-batch has so many"
        yield f"sequence_parallel={sharing}: {rule}; use a divisor, or make {name} a multiple"


class TrainerGroup(Section):
    """The DeepSpeed ranks of whatever is trained."""

    ranks: Processes = key(1, "processes, one device each")
    sequence_parallel: Processes = key(
        1,
        "ranks that share a micro-batch (Ulysses), each with an equal part of its tokens, and in attention of the heads; "
        "ranks / sequence_parallel micro-batches go at once",
    )
    zero_stage: ZeroStage = key(
        2, "DeepSpeed's ZeRO: 0 nothing is partitioned, 1 optimizer states, 2 gradients too, 3 weights too"
    )
    offload_optimizer: bool = key(False, "keep the optimizer's states and step in CPU memory")

    def problems(self) -> Iterator[str]:
        yield from _sharing_rules(self.sequence_parallel, "ranks", self.ranks)
        if self.offload_optimizer and self.zero_stage == 0:
            yield "offload_optimizer=true: needs zero_stage >= 1"


class EngineGroup(Section):
    """vLLM engines of one model."""

    engines: Processes = key(1, "vLLM engines, each a copy of the model")
    tensor_parallel: Annotated[NodeDevices, Field(le=64)] = key(1, "GPUs that an engine's weights share")
    max_num_seqs: BatchSize = key(256, "sequences that an engine has under way at most")
    kv_cache_gib: GiB | None = key(None, "KV cache of one engine in GiB; null on CUDA: from memory_fraction")
    memory_fraction: PositiveShare = key(0.85, "share of a GPU for an engine", lt=1.0)
    enforce_eager: bool = key(False, "no CUDA graphs: a faster start, slower generation")
    quantization: Literal["fp8"] | None = key(
        None,
        "fp8: vLLM rounds the linear layers' weights to 8 bits as it gets them, a scale for each output, and their inputs, a "
        "scale for each token; needs a GPU of compute capability 8.9 or newer (Ada, Hopper, Blackwell)",
    )


class RolloutGroup(EngineGroup):
    """The vLLM engines of the policy."""

    precision: Precision | None = key(
        None,
        "what engines round weights to; auto halves generation on CPUs with bfloat16; null: the policy's own",
    )


class ReplicaGroup(Section):
    """Reference, reward or judge replicas, each a whole model on one device; or, sharded, one model over all."""

    replicas: Processes = key(1, "copies of the model, one device each")
    shard: bool = key(False, "split the weights over the replicas (ZeRO-3), for large models")
    sequence_parallel: Processes = key(1, "replicas that share a pass, as the policy's ranks do")

    @property
    def passes(self) -> int:
        """That go at once."""
        return self.replicas // self.sequence_parallel

    @property
    def in_lockstep(self) -> bool:
        """Whether the replicas work together, and only together."""
        return self.replicas > 1 and (self.shard or self.sequence_parallel > 1)

    def problems(self) -> Iterator[str]:
        yield from _sharing_rules(self.sequence_parallel, "replicas", self.replicas)


class Faults(Section):
    """What is done about workers that die or hang."""

    attempts: Few = key(3, "tries of a prompt before it is set aside, the last with a worker to itself", ge=2)
    restarts: FewOrZero = key(20, "workers of one role that a run replaces at most")
    hang_s: Seconds = key(600.0, "without a report or an optimizer step, after which a worker is replaced")
    start_s: Seconds = key(
        1800.0,
        "seconds that a worker may take to start, or to read or write a whole model; then it is replaced, or "
        "where it found no place its node counts as lost",
    )
    allow_fewer_workers: bool = key(True, "go on with fewer engines or replicas when one cannot be replaced")
    max_failed_prompt_share: Share = key(0.01, "of a round's prompts; above it the run stops; one may fail")
    max_rollout_gap: Factor = key(
        0.5,
        "nats a token between an answer's logprob by its engine and by the policy, a mean over a round's first step; above it "
        "the run stops",
    )


class Devices(Section):
    """The nodes of a run and what they have."""

    device: Literal["cpu", "cuda"] = key("cuda", "where models compute")
    nodes: Nodes = key(1, "machines of the run")
    devices_per_node: NodeDevices = key(8, "GPUs, or on CPU the slots that share a node's cores")
    cpus_per_node: NodeDevices | None = key(None, "null: what Ray finds")
    device_memory_gib: GiB = key(80.0, "per GPU; on CPU per node")
    host_memory_gib: GiB | None = key(None, "of a node with GPUs; null: `plan` counts it and refuses nothing")
    address: Address | None = key(None, "Ray address; null: RAY_ADDRESS or a local cluster")
    start_timeout_s: Seconds = key(900.0, "seconds to wait until the cluster has what the run needs")
    attention: Literal["torch", "flash_attn", "flash_attn_3"] = key(
        "torch",
        "what computes the attention of packed rows on GPUs: torch's own FlashAttention 2, the package flash-attn, or that of "
        "FlashAttention 3, for Hopper",
    )
    kernels: Literal["torch", "liger"] = key(
        "torch", "what computes norms, rotations and MLPs on GPUs; liger: fused, by the package liger-kernel"
    )
    faults: Faults = Faults()

    def problems(self) -> Iterator[str]:
        for name in ("attention", "kernels"):
            if self.device == "cpu" and getattr(self, name) != "torch":
                yield f"{name}={getattr(self, name)}: has no meaning on cluster.device=cpu; remove it"
        for name in type(self).model_fields:
            group = getattr(self, name)
            if isinstance(group, TrainerGroup) and group.offload_optimizer and self.device == "cpu":
                yield f"{name}.offload_optimizer=true: has no meaning on cluster.device=cpu; remove it"


class Cluster(Devices):
    """The devices of an online run and the groups that live on them.

    `colocated`: roles take turns on the same devices. `disaggregated`: each role has its own.
    """

    layout: Literal["colocated", "disaggregated"] = key(
        "colocated", "whether roles take turns on the same devices, or each has its own"
    )
    sequential_phases: bool | None = key(
        None,
        "true: generate, score and compute reference logprobs one after the other; false: all at once, each answer as it "
        "comes; null: true where roles share devices, on which they would only slow each other, else false",
    )
    policy: TrainerGroup = TrainerGroup()
    rollout: RolloutGroup = RolloutGroup()
    reference: ReplicaGroup = ReplicaGroup()
    reward: ReplicaGroup = ReplicaGroup()
    judge: ReplicaGroup = ReplicaGroup()

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.sequential_phases is False and self.layout == "colocated" and self.device == "cuda":
            yield (
                "sequential_phases=false: roles that take turns on the same GPUs cannot work at once; use "
                "cluster.layout=disaggregated or leave it null"
            )

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

    devices_per_node: NodeDevices = key(1, "GPUs, or on CPU the slots that share a node's cores")
    reward: ReplicaGroup = ReplicaGroup()


class DataCluster(SamplingCluster):
    """The devices of the engines, and the processes of steps that ask no model."""

    workers: WorkersOrZero = key(0, "of Ray Data, a CPU each, to deduplicate and decontaminate; 0: driver")
