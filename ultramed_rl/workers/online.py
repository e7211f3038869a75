"""All roles of an online run, behind verbs that take records and give records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker
from ultramed_rl.actors.scorer import ReferenceWorker
from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.actors.weight_sync import ADAPTER, transfer_backend
from ultramed_rl.actors.work import Worker
from ultramed_rl.cluster.group import WorkerGroup, wait_for_both, wait_within
from ultramed_rl.cluster.memory import resolve_architecture
from ultramed_rl.cluster.plan import needs_reference
from ultramed_rl.cluster.transport import WorkerSet
from ultramed_rl.config import RunConfig
from ultramed_rl.config.judge_models import POLICY
from ultramed_rl.learning.checks import check_groups
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.learning.preference_data import read_reference, reference_answers
from ultramed_rl.models.load import ADAPTER_FOLDER
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import (
    Completion,
    JudgedAnswer,
    OptionRequest,
    PreferenceGroup,
    Prompt,
    ReferenceLogprobs,
    SamplingRequest,
    ScoredCompletion,
)
from ultramed_rl.rewards.judge_client import JudgeClient, Turn
from ultramed_rl.scheduling.dispatch import WorkItem
from ultramed_rl.scheduling.pool import Outcome, Pool, PoolRules, RanksLost
from ultramed_rl.workers.deployment import WAVES
from ultramed_rl.workers.judges import EngineJudge, launch_engine_judges, served
from ultramed_rl.workers.policy import PolicyRanks, TrainingRanks, WeightSync
from ultramed_rl.workers.sampling import Advance, SamplingWorkers
from ultramed_rl.workers.scorers import Judges, Scorers

Result = TypeVar("Result")


class WeightsBehind(RuntimeError):
    """An engine was replaced in a round that no checkpoint was written before: it has older weights than the others."""


class OnlineWorkers(SamplingWorkers):
    """Owns the actors of one online run.

    Attributes:
        version: of the policy that the engines hold, or are to hold: rounds that it was trained for.
        catch_up: trains ranks that were started again on the rounds between their checkpoint and `version`.
    """

    policy: PolicyRanks
    reference: WorkerGroup
    references: ReferenceScorer
    weight_sync: WeightSync

    def __init__(
        self,
        config: RunConfig,
        tokenizer: ChatTokenizer,
        scorers: Scorers,
        say: Callable[[str], None] = lambda text: None,
        judges: Judges | None = None,
    ) -> None:
        """`say` is told when the policy is started again; `judges` score held-out answers, where there are any."""
        self.config, self.scorers, self.tokenizer, self.say = config, scorers, tokenizer, say
        self.judges = judges
        self.engine_judges: list[EngineJudge] = []
        policy = resolve_architecture(config.policy.path, config.policy.architecture, "policy")
        self.vocab_size = policy.vocab_size
        self.reference_path = ""  # what a replaced reference loads
        self.version = 0
        self.catch_up: Callable[[], None] = lambda: None
        self._behind = self._syncing = False
        self._model_s = config.cluster.faults.start_s  # that reading or writing a whole model may take
        super().__init__(config, tokenizer)

    # -- start, and start again ----------------------------------------------------------------------------

    def begin_rollout(self, model: str, version: int) -> None:
        """Begin to start the engines; those of judges, which keep their weights, have started then."""
        self.version = version
        super().begin_rollout(model, version)
        self.engine_judges = launch_engine_judges(self.deployment, self.config.judge_engines.values())
        for key, judge in zip(self.config.judge_engines, self.engine_judges, strict=True):
            if judge.tokenizer.backend.get_vocab() == self.tokenizer.backend.get_vocab():
                self.say(
                    f"{key}: its judge has the policy's vocabulary, so that it may be of its family and prefer answers like its own; "
                    "have one of another family among evaluation.judges"
                )
        length = self.config.policy.max_length
        own = EngineJudge(POLICY, self.rollout, self.engines, self.tokenizer, length, self.check_weights)
        for scorers in filter(None, (self.scorers, self.judges)):
            scorers.judge_on([*self.engine_judges, own])

    def start_learners(self, policy: str, version: int, reference: str, rewards: Sequence[str]) -> None:
        """Start policy, reference and reward models together, and connect the policy to the engines."""
        config = self.config
        self.policy = PolicyRanks(config, self.deployment)
        self.policy.trained = version
        backend = transfer_backend(config.cluster.device, config.cluster.layout, config.policy.lora)
        parallel = config.cluster.rollout.tensor_parallel
        self.weight_sync = WeightSync(self.policy, self.rollout, backend, parallel)
        loads = self.policy.begin(policy, version)
        replicas = []
        if needs_reference(config):
            self.reference_path = reference
            group, tokens = config.cluster.reference, config.reference.micro_batch_tokens
            started = self.deployment.launch_replicas(
                "reference", ReferenceWorker, group, self.policy_precision, tokens, self._reference_load
            )
            self.reference = started.group
            self._open_references(started.pool)
            replicas.append(started)
        self.scorers.models = self.deployment.launch_reward_models(
            config.reward, config.cluster.reward, rewards
        )
        if self.judges is not None:
            self.judges.models = self.deployment.launch_judges(config.evaluation.models, config.cluster.judge)
            replicas += self.judges.models
        self.policy.finish_load(loads, policy, version)
        for started in [*self.scorers.models, *replicas]:
            self.scheduler.wait_for_start(started.pool, started.loads, self._model_s)
            if self.turns:  # as the policy when it has joined: devices are the engines' from here on
                started.group.call_living(Worker.offload)
        self._finish_rollout()
        # Now, so that what keeps weights from the engines shows before a round is generated.
        self.with_policy_restart(lambda: self.scheduler.with_all(self.engines, self.weight_sync.connect))
        self.with_policy_restart(self._join_policy)
        if backend == ADAPTER:  # some layers' adapters vLLM refuses: now too, and not after a round
            self.with_policy_restart(lambda: self.sync(version))
        for role, others in self.groups.items():
            if role != "rollout":
                others.follows = self.rollout

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
                    self._renew()
                return work()
            except RanksLost as error:
                lost = error
            except WeightsBehind as error:
                self.say(f"{error}; it gets those of policy {self.version}")

    def _renew(self) -> None:
        """The engines' weights once more. Raises like `sync`."""
        if self.policy.learning or self.policy.trained > self.version:
            self.restart_policy(*self.weights)  # its ranks have newer weights than the engines
        self.sync(self.version)

    def restart_policy(self, checkpoint: str, version: int) -> None:
        """All policy ranks anew, with the weights of a checkpoint; version 0 is the starting policy.

        Raises:
            LostWorkers: it has been restarted too often, or its ranks find no place.
        """
        self.policy.respawn_all(self.config.cluster.faults.restarts)
        self.policy.finish_load(self.policy.begin(checkpoint, version), checkpoint, version)
        self._join_policy()
        self.policy.restore_state(checkpoint, version)
        self.policy.end_round(version)
        self.catch_up()

    def _join_policy(self) -> None:
        """What ranks that have loaded need before they work; `sync` connects them to the engines."""
        config = self.config
        if config.policy.lora is not None and config.objective.uses_reference:  # it is its own reference
            budget, sharing = config.reference.micro_batch_tokens, config.cluster.policy.sequence_parallel
            self.policy.call(PolicyWorker.scores_within, budget)
            room = WAVES * budget * self.policy.size // sharing
            rules = PoolRules(config.cluster.faults, room, upstream=("reward",), ranks=True)
            worker_set = WorkerSet(self.policy, lambda actors: [], lockstep=True, sharing=sharing)
            self._open_references(self.scheduler.add("reference", worker_set, rules))
        if self.turns:
            self.policy.call(PolicyWorker.offload)

    def _prepare_engine(self, actors: Sequence[Any]) -> list[Any]:
        """An engine that is replaced starts with the newest checkpoint's weights: older ones, unless a sync follows."""
        self._behind = self._behind or (self.weights[1] != self.version and not self._syncing)
        return super()._prepare_engine(actors)

    def engine_arguments(self, model: str) -> EngineArguments:
        """Engines that share GPUs with the policy keep no weights while they sleep: they get them from it. Those that get
        adapters alone keep the base model."""
        policy = self.config.policy
        if policy.lora is not None and policy.lora.sync == "adapter":
            adapter = None if model == policy.path else str(Path(model) / ADAPTER_FOLDER)
            begun = super().engine_arguments(policy.path)
            return replace(begun, transfer_backend=ADAPTER, lora_rank=policy.lora.rank, adapter=adapter)
        arguments = super().engine_arguments(model)
        # A run that trains its reward model samples before there is a policy; a policy that judges is asked after it slept.
        reward = self.config.reward
        forgets = arguments.sleep_level and reward.train is None and not reward.asks_policy
        return replace(arguments, sleep_level=2) if forgets else arguments

    def answer(self, requests: Iterable[SamplingRequest | OptionRequest]) -> Iterator[Outcome]:
        if self.turns and -1 in self.rollout.call_living(RolloutWorker.version):
            self._renew()
        yield from super().answer(requests)

    def check_weights(self) -> None:
        """Raises WeightsBehind."""
        if self._behind:
            raise WeightsBehind(f"rollout: a new engine has the weights of policy {self.weights[1]}")

    # -- score ---------------------------------------------------------------------------------------------

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order. A non-finite reward is kept; selection quarantines it."""
        return self.scorers.score(prompts, completions, advance, self.scheduler)

    def judge(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> list[JudgedAnswer]:
        """What each judge says of each completion, in order."""
        assert self.judges is not None, "there is nobody to judge"
        return self.judges.judge(prompts, completions, advance, self.scheduler)

    def served(self, client: JudgeClient) -> AbstractContextManager[Turn]:
        """Turns of a benchmark judge's engines."""
        return served(self.engine_judges, client, self.scheduler)

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
        beside, length = self.config.objective.beside, self.config.policy.max_length
        source = (
            (groups[index], reference_answers(groups, index, beside, length))
            for index in range(len(groups))
            if groups[index].group_id not in known
        )
        pool = self.references.pool
        with self.reference_on_device():
            for outcome in self.scheduler.stream(pool, source, lambda item: self.references.offer(*item)):
                reference = self.references.take(outcome)
                advance(len(reference.logprobs))
                yield reference

    def _open_references(self, pool: Pool) -> None:
        config = self.config
        self.references = ReferenceScorer(
            pool, self.vocab_size, config.policy.max_length, config.objective.beside
        )

    # -- the next policy -----------------------------------------------------------------------------------

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
            sent = self.scheduler.with_all(self.engines, lambda: self._send_weights(version))
        finally:
            self._syncing = False
        self._behind = False
        held = set(self.rollout.call_living(RolloutWorker.version))
        assert held <= {version}, f"engines hold policy {held} after a sync of {version}"
        return sent

    def _send_weights(self, version: int) -> dict[str, float]:
        with self.policy.on_device():
            if self.turns:
                wait_for_both(self.policy, [], self.rollout, self.rollout.start(RolloutWorker.reload_weights))
            return self.weight_sync.send(version)

    def average_reference(self, checkpoint: str, directory: Path) -> None:
        """Write the reference moved towards a checkpoint: decay * reference + (1 - decay) * checkpoint's weights."""
        policy, decay = self.config.policy, self.config.reference.ema_decay
        arguments = (self.reference_path, checkpoint, decay, str(directory), policy.trust_remote_code)

        def average() -> None:
            wait_within([self.reference.actors[0].average.remote(*arguments)], self._model_s)

        self.scheduler.with_all(self.references.pool, average)
        self.tokenizer.backend.save_pretrained(directory)

    def load_reference(self, path: str) -> None:
        """Make every replica the policy of this checkpoint."""
        self.reference_path = path
        self.reference.wait_living(self.reference.start(*self._reference_load()), self._model_s)
        if self.turns:
            self.reference.call_living(ReferenceWorker.offload)

    def _reference_load(self) -> tuple[Any, ...]:
        return (ReferenceWorker.load, self.reference_path, self.config.policy.trust_remote_code)

    # -- the run's own reward model ------------------------------------------------------------------------

    @contextmanager
    def reward_trainer(self, start: str) -> Iterator[WorkerGroup]:
        """A training group on the policy's slots that lives for as long as the reward model is trained."""
        config, training = self.config, self.config.reward.train
        assert training is not None
        group = TrainingRanks(self.deployment, "policy", RewardTrainWorker, config.run.seed)
        try:
            model = config.policy.model_copy(update={"path": start, "lora": None})
            trainer = config.cluster.policy.model_copy(update={"offload_optimizer": False})
            group.finish(
                group.begin_load(model, config.reward.precision, trainer, training, training.trainable_layers)
            )
            yield group
        finally:
            group.stop()

    # -- all -----------------------------------------------------------------------------------------------

    def peak_memory(self) -> dict[str, int]:
        """Peak bytes of the largest process of each role."""
        peaks = {role: group.call_living(Worker.peak_memory) for role, group in self.groups.items()}
        return {role: max(bytes_) for role, bytes_ in peaks.items() if bytes_}

    @property
    def groups(self) -> dict[str, WorkerGroup]:
        """The groups that have started, by role."""
        own = {role: getattr(self, role) for role in ("policy", "reference") if hasattr(self, role)}
        scorers = [self.scorers, *([] if self.judges is None else [self.judges])]
        others = [judge.group for judge in self.engine_judges] + [g for one in scorers for g in one.groups]
        return super().groups | own | {group.role: group for group in others}


class ReferenceScorer:
    """Whoever holds the reference's weights, behind offers and outcomes."""

    def __init__(self, pool: Pool, vocab_size: int, max_length: int, beside: str = "none") -> None:
        self.pool, self.vocab_size, self.max_length, self.beside = pool, vocab_size, max_length, beside
        self._answers: dict[str, int] = {}  # of the groups under way

    def offer(self, group: PreferenceGroup, packed: AnswerGroup | None = None) -> None:
        """A group whose answers need reference logprobs; `packed` has them and perhaps one beside them, which KTO takes of
        other groups.

        Raises:
            ValueError: a group that cannot be learnt from.
        """
        check_groups([group], self.vocab_size, self.max_length)
        packed = packed or reference_answers([group], 0, self.beside, self.max_length)
        self._answers[group.group_id] = len(group.completions)
        tokens = packed.packed_tokens
        self.pool.offer(WorkItem(group.group_id, tokens, float(tokens)), packed)

    def take(self, outcome: Outcome) -> ReferenceLogprobs:
        """A group's logprobs, in nats.

        Raises:
            RuntimeError: no worker could compute them.
        """
        if outcome.error:
            raise RuntimeError(f"{outcome.key}: no reference logprobs: {outcome.error}")
        return read_reference(outcome.key, self._answers.pop(outcome.key), outcome.value)

    def forget(self) -> None:
        """Drop all that is under way; the scheduler forgets its part itself."""
        self._answers = {}
