"""The workers: every role's actors, behind verbs that take records and give records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ultramed_rl.actors.deepspeed_setup import engine_spec
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.scorer import ReferenceWorker
from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.actors.weight_sync import transfer_backend
from ultramed_rl.actors.work import RoundTraining, TrainingPlace
from ultramed_rl.cluster.architecture import resolve_architecture
from ultramed_rl.cluster.demands import needs_reference
from ultramed_rl.cluster.group import (
    RayActorError,
    Worker,
    WorkerGroup,
    are_done,
    ranks_held,
    wait_for_both,
    wait_within,
)
from ultramed_rl.cluster.pool import LostWorkers, Pool, RanksLost
from ultramed_rl.cluster.transport import WorkerSet
from ultramed_rl.config import RunConfig
from ultramed_rl.learning.preference_data import reference_answers
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, ScoredCompletion
from ultramed_rl.store.atomic import remove
from ultramed_rl.workers.pools import scorer_rules
from ultramed_rl.workers.references import ReferenceScorer
from ultramed_rl.workers.sampling import Advance, SamplingWorkers
from ultramed_rl.workers.scorers import Replicas, Scorers, launch_replicas, launch_scorers
from ultramed_rl.workers.steps import RoundSteps
from ultramed_rl.workers.weight_sync import WeightSync

Result = TypeVar("Result")


class WeightsBehind(RuntimeError):
    """An engine was replaced in a round that no checkpoint was written before: it has older weights than the others."""


class OnlineWorkers(SamplingWorkers):
    """Owns the actors of one online run.

    Attributes:
        version: of the policy that the engines hold, or are to hold: rounds that it was trained for.
        trained: the rounds that the policy's ranks were trained for. Behind `version` where they were started again from a
            checkpoint, until `catch_up` has trained them on the rounds since.
        learning: whether the ranks have begun a round that they have not ended.
    """

    policy: WorkerGroup
    reference: WorkerGroup
    references: ReferenceScorer
    weight_sync: WeightSync

    def __init__(
        self,
        config: RunConfig,
        tokenizer: ChatTokenizer,
        scorers: Scorers,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`say` is told when the policy is started again."""
        self.config, self.scorers, self.tokenizer, self.say = config, scorers, tokenizer, say
        policy = resolve_architecture(config.policy.path, config.policy.architecture, "policy")
        self.vocab_size = policy.vocab_size
        self.reference_path = ""  # what a replaced reference loads
        self.version = self.trained = 0
        self.catch_up: Callable[[], None] = lambda: None
        self.learning = self._behind = self._syncing = False
        super().__init__(config, tokenizer)

    # -- start and stop ------------------------------------------------------------------------------------

    def begin_rollout(self, model: str, version: int) -> None:
        self.version = self.trained = version
        super().begin_rollout(model, version)

    def start_learners(self, policy: str, version: int, reference: str, rewards: Sequence[str]) -> None:
        """Start policy, reference and reward models together, and connect the policy to the engines."""
        config = self.config
        self.policy = self._launch("policy", PolicyWorker, self._rank_arguments)
        backend = transfer_backend(config.cluster.device, config.cluster.layout)
        parallel = config.cluster.rollout.tensor_parallel
        self.weight_sync = WeightSync(self.policy, self.rollout, backend, parallel)
        loads = self._load_policy(policy if version else None)
        reference_loads = self._start_reference(reference) if needs_reference(config) else []
        launch_scorers(self.scorers, self.plan, self.placement, config.cluster, rewards, self.scheduler)
        self._await_policy(loads, policy, version)
        scoring = [(model.pool, model.group, model.loads) for model in self.scorers.models]
        if needs_reference(config):
            scoring.append((self.references.pool, self.reference, reference_loads))
        for pool, group, started in scoring:
            self.scheduler.wait_for_start(pool, started, self._model_s)
            if self.turns:  # as the policy when it has joined: devices are the engines' from here on
                group.call_living(Worker.offload)
        self._finish_rollout()
        # Now, so that what keeps weights from the engines shows before a round is generated.
        self.with_policy_restart(lambda: self._with_all(self.engines, self.weight_sync.connect))
        self.with_policy_restart(self._join_policy)

    def with_policy_restart(self, work: Callable[[], Result]) -> Result:
        """Do what needs the policy, or engines that have its weights. When a rank of it is lost, all ranks start again from
        the newest checkpoint, and are trained on the rounds since; an engine that was replaced gets the weights of the
        others. Then it is done again from its beginning.

        Raises:
            LostWorkers: ranks are lost again and again, or find no place.
        """
        lost: RanksLost | None = None
        while True:
            try:
                if lost is not None:
                    self.say(f"{lost}; starting again from policy {self.weights[1]}")
                    self.restart_policy(*self.weights)
                    lost = None
                if self._behind:
                    if self.learning or self.trained > self.version:
                        self.restart_policy(*self.weights)  # its ranks have newer weights than the engines
                    self.sync(self.version)
                return work()
            except RanksLost as error:
                lost = error
            except WeightsBehind as error:
                self.say(f"{error}; it gets those of policy {self.version}")

    def restart_policy(self, checkpoint: str, version: int) -> None:
        """All policy ranks anew, with the weights of a checkpoint; version 0 is the starting policy.

        Raises:
            LostWorkers: it has been restarted too often, or its ranks find no place.
        """
        self.policy.respawn_all(self.config.cluster.faults.restarts)
        self._await_policy(self._load_policy(checkpoint if version else None), checkpoint, version)
        self._join_policy()
        self.restore_state(checkpoint, version)
        self.trained, self.learning = version, False
        self.catch_up()

    def _prepare_engine(self, actors: Sequence[Any]) -> list[Any]:
        self._behind = self._behind or (self.weights[1] != self.version and not self._syncing)
        return super()._prepare_engine(actors)

    def check_weights(self) -> None:
        """Raises WeightsBehind."""
        if self._behind:
            raise WeightsBehind(f"rollout: a new engine has the weights of policy {self.weights[1]}")

    def _await_policy(self, loads: list[Any], checkpoint: str, version: int) -> None:
        """Until the policy's ranks have loaded; if one of them dies or hangs in it, all start again."""
        faults = self.config.cluster.faults
        while True:
            try:
                with ranks_held(self.policy):
                    wait_within(loads, faults.start_s)
                return
            except RanksLost:
                pass
            except TimeoutError:
                if not self.policy.placed:
                    raise LostWorkers(
                        f"policy: its {self.policy.size} ranks were not there after {faults.start_s:.0f} s "
                        "(cluster.faults.start_s): give the cluster its devices back and go on with --resume"
                    ) from None
            self.policy.respawn_all(faults.restarts)
            loads = self._load_policy(checkpoint if version else None)

    def _load_policy(self, trained: str | None) -> list[Any]:
        config = self.config
        spec = engine_spec(
            config.cluster.device, config.policy.precision, config.cluster.policy, config.training
        )
        address = self.policy.actors[0].rendezvous.remote()
        return self.policy.start(PolicyWorker.load, config.policy, spec, address, trained)

    def _join_policy(self) -> None:
        """What a policy that has been loaded needs before it works; `sync` connects it to the engines."""
        config = self.config
        if config.policy.lora is not None and config.objective.uses_reference:
            budget = config.reference.micro_batch_tokens
            self.policy.call(PolicyWorker.scores_within, budget)
            rules = scorer_rules(config.cluster.faults, budget, self.policy.size, "reward", ranks=True)
            worker_set = WorkerSet(self.policy, lambda actors: [], lockstep=True)
            self._open_references(self.scheduler.add("reference", worker_set, rules))
        if self.turns:
            self.policy.call(PolicyWorker.offload)

    def _start_reference(self, path: str) -> list[Any]:
        config = self.config
        self.reference_path = path
        replicas = Replicas(
            "reference",
            ReferenceWorker,
            config.cluster.reference,
            self.policy_precision,
            config.reference.micro_batch_tokens,
        )
        worker_set, pending = launch_replicas(
            self.plan, self.placement, config.cluster, replicas, self._reference_load
        )
        self.reference = worker_set.group
        rules = replicas.rules(config.cluster.faults, "reward")
        self._open_references(self.scheduler.add("reference", worker_set, rules))
        return pending

    def _reference_load(self) -> tuple[Any, ...]:
        return (ReferenceWorker.load, self.reference_path, self.config.policy.trust_remote_code)

    def _open_references(self, pool: Pool) -> None:
        self.references = ReferenceScorer(pool, self.vocab_size, self.config.policy.max_length)

    def _rank_arguments(self, member: Any) -> tuple[int, int, int]:
        return (member.rank, self.config.cluster.policy.ranks, self.config.run.seed)

    # -- score ---------------------------------------------------------------------------------------------

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order. A non-finite reward is kept; selection quarantines it."""
        return self.scorers.score(prompts, completions, advance, self.scheduler)

    @contextmanager
    def reference_on_device(self) -> Iterator[None]:
        """Whoever gives reference logprobs, on the devices within."""
        with (self.reference if needs_reference(self.config) else self.policy).on_device():
            yield

    def reference_logprobs(
        self, groups: Sequence[PreferenceGroup], advance: Advance, known: Collection[str] = ()
    ) -> Iterator[ReferenceLogprobs]:
        """The reference policy's logprobs of every answer of each group, as they come, each group's once.

        Args:
            groups: all of the round: KTO's mismatched answers are those of the neighbours. They are read as there is room.
            known: ids of groups that have them already.

        Raises:
            ValueError: naming the groups that cannot be learnt from.
            RanksLost: a LoRA policy, which is its own reference, lost a rank.
        """
        mismatched, length = self.config.objective.kl == "mismatched", self.config.policy.max_length
        source = (
            (groups[index], reference_answers(groups, index, mismatched, length))
            for index in range(len(groups))
            if groups[index].group_id not in known
        )
        with self.reference_on_device():
            for reference in self.references.stream(source, self.scheduler):
                advance(len(reference.logprobs))
                yield reference

    # -- learn ---------------------------------------------------------------------------------------------

    def begin_training(self) -> None:
        """Ready for a round's pairs, of which there are none yet."""
        config, self.learning = self.config, True
        self.policy.call(PolicyWorker.start_round, config.training.optimizer_state == "reset")
        none: list[ReferenceLogprobs] | None = [] if config.objective.uses_reference else None
        self.policy.call(PolicyWorker.learn_preferences, [], none, config.objective, config.policy.max_length)

    def start_step(
        self,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        place: TrainingPlace,
        step: int,
    ) -> list[Any]:
        """Begin the optimizer step whose batch these pairs are, after those before it; `step_metrics` has what it
        came to."""
        return self.policy.start(
            PolicyWorker.learn_next, groups, references, self.config.training, place, step
        )

    def step_done(self, pending: Sequence[Any]) -> bool:
        """Whether `step_metrics` needn't wait."""
        return are_done(pending)

    def step_metrics(self, pending: Sequence[Any]) -> dict[str, float]:
        """The metrics of a step that was started, waiting for it. Raises RanksLost."""
        metrics: dict[str, float] = self.policy.wait(pending)[0]
        return metrics

    def go_on_training(self, folder: Path, place: TrainingPlace, start: int) -> RoundSteps:
        """Begin all steps from `start` on, on the pairs in a round's folder."""
        config = self.config
        length = config.policy.max_length
        work = RoundTraining(str(folder), config.objective, length, config.training, place, start)
        return RoundSteps(self.policy, work)

    def end_training(self, rounds: int) -> None:
        """All steps of so many rounds are taken."""
        self.trained, self.learning = rounds, False

    def save_policy(self, directory: Path) -> None:
        """Write the policy as a Hugging Face checkpoint, with what the next round needs besides. What a lost policy left in
        the directory goes."""
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.iterdir():
            remove(left)
        with self.policy.on_device():
            self.policy.wait(self.policy.start(PolicyWorker.save, str(directory)), self._model_s)
            if self._state_outlives_rounds:
                moments = self.config.training.optimizer_state == "keep"
                self.policy.wait(
                    self.policy.start(PolicyWorker.save_state, str(directory / "optimizer"), moments),
                    self._model_s,
                )

    def restore_state(self, checkpoint: str, version: int) -> None:
        """Take up what `save_policy` wrote besides the weights; the starting policy, version 0, has nothing."""
        if version and self._state_outlives_rounds:
            with self.policy.on_device():
                folder = str(Path(checkpoint) / "optimizer")
                self.policy.wait(self.policy.start(PolicyWorker.load_state, folder), self._model_s)

    @property
    def _state_outlives_rounds(self) -> bool:
        """Whether a round goes on from more than the last one's weights: Adam's moments, or what bfloat16 rounds away."""
        return self.config.training.optimizer_state == "keep" or self.policy_precision == "bfloat16"

    def update_survives(self) -> float:
        """The share of the round's update that the engines get to see; see `Engine.update_survives`."""
        return float(self.policy.call(PolicyWorker.update_survives)[0])

    def sync(self, version: int, checkpoint: str | None = None) -> dict[str, float]:
        """The policy's weights into every engine; returns seconds and bytes.

        Engines that died are replaced before, by ones that start from the newest checkpoint: this one, where there is one.

        Raises:
            RanksLost: a policy rank is gone, or waits for an engine that is.
            LostWorkers: engines die again and again.
        """
        if checkpoint is not None:
            self.weights = (checkpoint, version)
        self.version, self._syncing = version, True
        self.catch_up()
        # Engines are replaced while the policy is off the devices: a new one takes what memory is free.
        try:
            sent = self._with_all(self.engines, lambda: self._send_weights(version))
        finally:
            self._syncing = False
        self._behind = False
        with self.rollout.on_device():  # the policy is off the devices: now there is room for the cache too
            held = set(self.rollout.call_living(RolloutWorker.version))
        assert held <= {version}, f"engines hold policy {held} after a sync of {version}"
        return sent

    def _send_weights(self, version: int) -> dict[str, float]:
        if self.turns:
            self.rollout.call_living(RolloutWorker.offload)
        with self.policy.on_device():
            if self.turns:
                wait_for_both(self.policy, [], self.rollout, self.rollout.start(RolloutWorker.reload_weights))
            return self.weight_sync.send(version)

    def average_reference(self, checkpoint: str, directory: Path) -> None:
        """Write the reference moved towards a checkpoint: decay * reference + (1 - decay) * checkpoint's weights."""
        policy, decay = self.config.policy, self.config.reference.ema_decay
        arguments = (self.reference_path, checkpoint, decay, str(directory), policy.trust_remote_code)
        pool, group = self.references.pool, self.reference

        def average() -> None:
            wait_within([group.actors[0].average.remote(*arguments)], self._model_s)

        self._with_all(pool, average)
        self.tokenizer.backend.save_pretrained(directory)

    def load_reference(self, path: str) -> None:
        """Make every replica the policy of this checkpoint."""
        self.reference_path = path
        trust = self.config.policy.trust_remote_code
        self.reference.wait_living(self.reference.start(ReferenceWorker.load, path, trust), self._model_s)
        if self.turns:
            self.reference.call_living(ReferenceWorker.offload)

    def _with_all(self, pool: Pool, attempt: Callable[[], Result]) -> Result:
        """What needs every worker of a pool; made again, with replacements, if one of them dies in it."""
        self.scheduler.replace_dead(pool)
        while True:
            try:
                return attempt()
            except (RayActorError, TimeoutError):
                if not self.scheduler.replace_dead(pool):
                    raise

    @property
    def _model_s(self) -> float:
        """Seconds that reading or writing a whole model may take."""
        return self.config.cluster.faults.start_s

    # -- the run's own reward model ------------------------------------------------------------------------

    @contextmanager
    def reward_trainer(self, start: str) -> Iterator[WorkerGroup]:
        """A training group on the policy's slots that lives for as long as the reward model is trained."""
        training = self.config.reward.train
        assert training is not None
        group = self._launch("policy", RewardTrainWorker, self._rank_arguments)
        try:
            address = group.first(RewardTrainWorker.rendezvous)
            cluster = self.config.cluster
            ranks = cluster.policy.model_copy(update={"offload_optimizer": False})
            spec = engine_spec(cluster.device, self.config.reward.precision, ranks, training)
            model = self.config.policy.model_copy(update={"path": start, "lora": None})
            group.wait(
                group.start(RewardTrainWorker.load, model, spec, address, training.trainable_layers),
                self._model_s,
            )
            yield group
        finally:
            group.stop()

    def peak_memory(self) -> dict[str, int]:
        """Peak bytes of the largest process of each role."""
        peaks = {role: group.call_living(Worker.peak_memory) for role, group in self.groups.items()}
        return {role: max(found) for role, found in peaks.items() if found}

    @property
    def groups(self) -> dict[str, WorkerGroup]:
        """The groups that have started, by role."""
        own = {role: getattr(self, role) for role in ("policy", "reference") if hasattr(self, role)}
        return super().groups | own | {group.role: group for group in self.scorers.groups}
