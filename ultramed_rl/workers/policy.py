"""Training ranks; the policy's: how they start, learn a round and are saved; and how their weights get to the engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.actors.weight_sync import join_buckets
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.cluster.group import (
    Generators,
    WorkerGroup,
    are_done,
    ranks_held,
    wait_for_both,
    wait_within,
)
from ultramed_rl.config import RunConfig
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.models import Model, resolve_precision
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs
from ultramed_rl.scheduling.pool import LostWorkers, RanksLost
from ultramed_rl.store.atomic import remove
from ultramed_rl.workers.deployment import Deployment

Metrics = dict[str, float]


class TrainingRanks(WorkerGroup):
    """Ranks that train one model together. What waits for them raises RanksLost.

    Attributes:
        model_s: seconds that reading or writing a whole model may take.
    """

    def __init__(
        self, deployment: Deployment, role: str, worker: type[PolicyWorker | RewardTrainWorker], seed: int
    ) -> None:
        """Creates the actors; they load with `begin_load`."""
        ranks, faults = len(deployment.plan.members(role)), deployment.cluster.faults
        spawn = deployment.placement.spawner(role, worker, lambda member: (member.rank, ranks, seed))
        super().__init__(role, spawn, ranks, takes_turns=deployment.turns, timeout_s=faults.hang_s)
        self.model_s, self._device = faults.start_s, deployment.cluster.device
        self._recomputed = next(
            planned.recomputed for planned in deployment.plan.roles if planned.role == role
        )
        self._load: Callable[..., None] = worker.load

    def begin_load(
        self, model: Model, precision: str, group: TrainerGroup, training: Optimization, extra: object = None
    ) -> list[Any]:
        """Begin to load the model that training starts from; `extra` is the worker's own argument. Returns the references."""
        spec = EngineSpec(self._device, resolve_precision(precision, self._device), group, training)
        return self.start(self._load, model, spec, self.actors[0].rendezvous.remote(), extra)

    def settled(self, training: Optimization) -> Optimization:
        """With as many layers computed again as the plan has."""
        return training.model_copy(update={"checkpointed_layers": self._recomputed})

    def finish(self, loads: list[Any]) -> None:
        """Until a whole model is read or written."""
        self.wait(loads, self.model_s)


class PolicyRanks(TrainingRanks):
    """The ranks of one online run.

    Attributes:
        trained: the rounds that the ranks were trained for. Behind the engines' version where they were started again
            from a checkpoint, until they have been trained on the rounds since.
        learning: whether they have begun a round that they have not ended.
    """

    def __init__(self, config: RunConfig, deployment: Deployment) -> None:
        super().__init__(deployment, "policy", PolicyWorker, config.run.seed)
        self.config, self.trained, self.learning = config, 0, False

    # -- start ---------------------------------------------------------------------------------------------

    def begin(self, checkpoint: str, version: int) -> list[Any]:
        """Begin to load a checkpoint's weights; version 0 is the starting policy. Returns the references."""
        config, adapted = self.config, checkpoint if version else None
        policy, group = config.policy, config.cluster.policy
        return self.begin_load(policy, policy.precision, group, self.settled(config.training), adapted)

    def finish_load(self, loads: list[Any], checkpoint: str, version: int) -> None:
        """Until the ranks have loaded; if one of them dies or hangs in it, all start again.

        Raises:
            LostWorkers: they have been started too often, or find no place.
        """
        while True:
            try:
                with ranks_held(self):
                    wait_within(loads, self.model_s)
                return
            except RanksLost:
                pass
            except TimeoutError:
                if not self.placed(self.ranks):
                    raise LostWorkers(
                        f"policy: its {self.size} ranks were not there after {self.model_s:.0f} s "
                        "(cluster.faults.start_s): give the cluster its devices back and go on with --resume"
                    ) from None
            self.respawn_all(self.config.cluster.faults.restarts)
            loads = self.begin(checkpoint, version)

    # -- learn ---------------------------------------------------------------------------------------------

    def begin_round(self) -> None:
        """Ready for a round's pairs, of which there are none yet."""
        config, self.learning = self.config, True
        self.call(PolicyWorker.start_round, config.training.optimizer_state == "reset")
        none: list[ReferenceLogprobs] | None = [] if config.objective.uses_reference else None
        self.call(PolicyWorker.learn_preferences, [], none, config.objective, config.policy.max_length)

    def start_step(
        self,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        place: TrainingPlace,
        step: int,
    ) -> list[Any]:
        """Begin the optimizer step whose batch these pairs are, after those before it. `wait` has each rank's metrics."""
        return self.start(PolicyWorker.learn_next, groups, references, self.config.training, place, step)

    def end_round(self, rounds: int) -> None:
        """All steps of so many rounds are taken."""
        self.trained, self.learning = rounds, False

    def update_survives(self) -> float:
        """The share of the round's update that the engines get to see; see `Engine.update_survives`."""
        return float(self.call(PolicyWorker.update_survives)[0])

    # -- save ----------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write the policy as a Hugging Face checkpoint, with what the next round needs besides. What lost ranks left in
        the directory goes."""
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.iterdir():
            remove(left)
        with self.on_device():
            self.finish(self.start(PolicyWorker.save, str(directory)))
            if self._state_outlives_rounds:
                folder, moments = str(directory / "optimizer"), self._keeps_moments
                self.finish(self.start(PolicyWorker.save_state, folder, moments))

    def restore_state(self, checkpoint: str, version: int) -> None:
        """Take up what `save` wrote besides the weights; the starting policy, version 0, has nothing."""
        if version and self._state_outlives_rounds:
            with self.on_device():
                self.finish(self.start(PolicyWorker.load_state, str(Path(checkpoint) / "optimizer")))

    @property
    def _keeps_moments(self) -> bool:
        return self.config.training.optimizer_state == "keep"

    @property
    def _state_outlives_rounds(self) -> bool:
        """Whether a round goes on from more than the last one's weights: Adam's moments, or what bfloat16 rounds away."""
        precision = resolve_precision(self.config.policy.precision, self.config.cluster.device)
        return self._keeps_moments or precision == "bfloat16"


class RoundSteps:
    """All steps of a round from `start` on, on the pairs in its folder. Every rank reads what its micro-batches hold; when all
    have, they take one step after the other by themselves, and wait for nobody else.

    Each step's metrics come once, by `ready` or by `remaining`. Both raise RanksLost, and what a rank says that cannot learn.
    """

    def __init__(self, policy: PolicyRanks, folder: Path, place: TrainingPlace, start: int) -> None:
        config = policy.config
        self._policy, self._steps = policy, (config.training, place, start)
        task = (str(folder), config.objective, config.policy.max_length)
        self._reading = policy.start(PolicyWorker.learn_round, *task, *self._steps)
        self._generators: Generators | None = None

    def ready(self) -> list[Metrics]:
        """Of the steps that are done; waits for none."""
        with ranks_held(self._policy):
            if self._generators is None and not are_done(self._reading):
                return []
            return [metrics for rank, metrics in self._begun().ready() if rank == 0]

    def remaining(self) -> Iterator[Metrics]:
        """Of all that are left, as they are done."""
        return (metrics for rank, metrics in self._begun().follow() if rank == 0)

    def _begun(self) -> Generators:
        if self._generators is None:
            # Not before all have read: one that cannot learn its pairs would step on with those of the round before.
            self._policy.wait(self._reading)
            self._generators = self._policy.generate(PolicyWorker.train, [self._steps] * len(self._policy))
        return self._generators


class WeightSync:
    """The way from a policy's ranks to all engines by one backend: the driver starts both ends, and waits for both.

        for each bucket:   ranks describe it --> ranks push it, and engines pull it

    Whose call fails or does not end is lost. An engine that is lost is replaced, and gets all buckets in the next attempt; for
    a rank that is, the policy starts again.
    """

    def __init__(
        self, policy: WorkerGroup, engines: WorkerGroup, backend: str, tensor_parallel: int = 1
    ) -> None:
        self.policy, self.engines = policy, engines
        self.backend, self.tensor_parallel = backend, tensor_parallel
        self._connected: list[Any] = []  # the actors between which there is a way

    def connect(self) -> None:
        """Make the way, if it is not one between these actors. Raises like `wait_for_both`."""
        actors = [*self.policy.actors, *self.engines.actors]
        if self._connected == actors:
            return
        way = (self.backend, len(self.engines), self.tensor_parallel)
        told = self.policy.call(PolicyWorker.connect, *way)[0]
        both = zip(self.engines.actors, told, strict=True)
        pulled = [engine.init_weight_transfer.remote(info) for engine, info in both]
        wait_for_both(self.policy, self.policy.start(PolicyWorker.meet_engines), self.engines, pulled)
        self._connected = actors

    def send(self, version: int) -> Metrics:
        """The policy's weights into every engine, as this version; bytes and seconds. Raises like `wait_for_both`."""
        self.connect()
        sent = {"bytes": 0.0, "seconds": 0.0, "seconds_describe": 0.0, "seconds_pull": 0.0}
        bucket = None
        while bucket is None or not bucket.last:
            started = time.perf_counter()
            bucket = join_buckets(self.policy.call(PolicyWorker.describe_weights, bucket is None))
            described = time.perf_counter()
            pulled = self.engines.start(RolloutWorker.pull_weights, bucket, version)
            wait_for_both(self.policy, self.policy.start(PolicyWorker.push_weights), self.engines, pulled)
            sent["bytes"] += bucket.bytes
            sent["seconds_describe"] += described - started
            sent["seconds_pull"] += time.perf_counter() - described
        sent["seconds"] = sent["seconds_describe"] + sent["seconds_pull"]
        return sent
