"""The devices of one config, reserved, and the groups of actors that are started on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.actors.rollout import EngineArguments
from ultramed_rl.actors.scorer import RewardWorker, Scorer
from ultramed_rl.actors.weight_sync import transfer_backend
from ultramed_rl.cluster.connection import Placement, connect
from ultramed_rl.cluster.group import WorkerGroup, ask
from ultramed_rl.cluster.layout import Member
from ultramed_rl.cluster.plan import make_plan, numbered_roles
from ultramed_rl.cluster.transport import RayScheduler, WorkerSet
from ultramed_rl.config import RewardBenchConfig, SamplingConfig
from ultramed_rl.config.cluster import EngineGroup, ReplicaGroup
from ultramed_rl.config.judges import ModelJudge
from ultramed_rl.config.models import ModelSettings, resolve_precision
from ultramed_rl.config.rewards import Reward
from ultramed_rl.config.stages import StageConfig
from ultramed_rl.models.files import resolve_model, split_revision
from ultramed_rl.scheduling.pool import Pool, PoolRules
from ultramed_rl.tracking.heartbeat import keep_sigterm

Load = tuple[Any, ...]  # a method of a worker, and its arguments
WAVES = 2  # full batches that a worker is given at once, so that the next is there when one is done


@dataclass(frozen=True)
class Replicas:
    """A forward-only role's actors, the same as workers of the scheduler, and their loads under way."""

    group: WorkerGroup
    pool: Pool
    loads: Sequence[Any]


class Deployment:
    """Owns what a config's plan reserves, until `release`."""

    def __init__(self, config: SamplingConfig | StageConfig | RewardBenchConfig) -> None:
        """Joins or starts Ray, and waits until the plan's devices are there. Raises like `make_plan` and `Placement`."""
        self.plan = make_plan(config)
        self.cluster = self.plan.cluster
        self.turns = self.plan.layout == "colocated"
        self.scheduler = RayScheduler()
        connect(config.cluster)
        keep_sigterm()
        self.placement = Placement(self.plan)

    def release(self) -> None:
        """Give all devices back."""
        self.placement.release()

    def launch(self, role: str, worker: type, arguments: Callable[[Member], tuple[Any, ...]]) -> WorkerGroup:
        """Start a role's actors on its slots."""
        spawn, count = self.placement.spawner(role, worker, arguments), len(self.plan.members(role))
        hang_s = self.cluster.faults.hang_s
        return WorkerGroup(role, spawn, count, takes_turns=self.turns, timeout_s=hang_s)

    def launch_replicas(
        self,
        role: str,
        worker: type[Scorer],
        group: ReplicaGroup,
        precision: str,
        batch_tokens: int,
        load: Callable[[], Load],
    ) -> Replicas:
        """Start replicas of a forward-only role; their loads are to be waited for. In lockstep, they are one worker.

        Args:
            batch_tokens: of a pass.
            load: a method and its arguments with which every actor begins, and a replacement too, whenever it comes.
        """
        arguments = (self.cluster.device, precision, batch_tokens, group)
        actors = self.launch(role, worker, lambda member: (member.rank, *arguments))

        def prepare(actors: Sequence[Any]) -> list[Any]:
            pending = []
            if group.in_lockstep:
                address = actors[0].rendezvous.remote()
                pending += [actor.join.remote(address) for actor in actors]
            return pending + [ask(actor, *load()) for actor in actors]

        # While one turn is computed, the next one's requests gather. Actors in lockstep share it.
        upstream = "reward" if role == "reference" else "rollout"
        room = WAVES * batch_tokens * (group.passes if group.in_lockstep else 1)
        rules = PoolRules(self.cluster.faults, room, upstream=(upstream,))
        worker_set = WorkerSet(actors, prepare, group.in_lockstep, group.sequence_parallel)
        pool = self.scheduler.add(role, worker_set, rules)
        return Replicas(actors, pool, prepare(actors.actors))

    def engine_arguments(
        self, path: str, settings: ModelSettings, group: EngineGroup, precision: str
    ) -> EngineArguments:
        """How an engine of a model is started; `precision` may be auto."""
        device = self.cluster.device
        return EngineArguments(
            model=resolve_model(path),
            device=device,
            precision=resolve_precision(precision, device),
            max_length=settings.max_length,
            group=group,
            transfer_backend=transfer_backend(device, self.plan.layout),
            sleep_level=int(self.turns and device == "cuda"),
            trust_remote_code=settings.trust_remote_code,
            revision=split_revision(path)[1],
        )

    def launch_reward_models(
        self, reward: Reward, group: ReplicaGroup, paths: Sequence[str]
    ) -> list[Replicas]:
        """Start the replicas of each reward model with the weights at these paths, in the order of the config's."""
        roles = zip(numbered_roles("reward", len(paths)), paths, strict=True)
        return [self._launch_reward_model(role, path, reward, group) for role, path in roles]

    def launch_judges(self, judges: Sequence[ModelJudge], group: ReplicaGroup) -> list[Replicas]:
        """Start the replicas of each judge that is a reward model."""
        roles = zip(numbered_roles("judge", len(judges)), judges, strict=True)
        return [self._launch_reward_model(role, judge.path, judge, group) for role, judge in roles]

    def _launch_reward_model(
        self, role: str, path: str, config: Reward | ModelJudge, group: ReplicaGroup
    ) -> Replicas:
        precision = resolve_precision(config.precision, self.cluster.device)
        load = (RewardWorker.load, path, config.trust_remote_code)
        return self.launch_replicas(
            role, RewardWorker, group, precision, config.micro_batch_tokens, lambda: load
        )
