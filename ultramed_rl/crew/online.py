"""The crew: every role's actors, behind verbs that take records and give records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultramed_rl.actors.deepspeed_setup import engine_spec
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.reward_trainer import RewardTrainWorker
from ultramed_rl.actors.scorer import ReferenceWorker
from ultramed_rl.actors.trainer import TrainingPlace
from ultramed_rl.actors.weight_sync import transfer_backend
from ultramed_rl.cluster.architecture import resolve_architecture
from ultramed_rl.cluster.demands import needs_reference
from ultramed_rl.cluster.group import WorkerGroup, wait
from ultramed_rl.cluster.scoring import number_answers, pair_references
from ultramed_rl.config import RunConfig
from ultramed_rl.crew.sampling import Advance, SamplingCrew
from ultramed_rl.crew.scorers import Scorers, launch_replicas, launch_scorers
from ultramed_rl.learning.checks import check_groups, check_references
from ultramed_rl.learning.preference_data import reference_answers
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, ScoredCompletion


class Crew(SamplingCrew):
    """Owns the actors of one online run."""

    policy: WorkerGroup
    reference: WorkerGroup

    def __init__(self, config: RunConfig, tokenizer: ChatTokenizer, scorers: Scorers) -> None:
        self.config, self.scorers, self.tokenizer = config, scorers, tokenizer
        policy = resolve_architecture(config.policy.path, config.policy.architecture, "policy")
        self.vocab_size = policy.vocab_size
        super().__init__(config, tokenizer)

    # -- start and stop ------------------------------------------------------------------------------------

    def start_learners(self, policy: str, version: int, reference: str, rewards: Sequence[str]) -> None:
        """Start policy, reference and reward models together, and connect the policy to the engines."""
        config = self.config
        device = config.cluster.device
        self.policy = self._launch("policy", PolicyWorker, self._rank_arguments)
        if needs_reference(config):
            self.reference = launch_replicas(
                self.plan,
                self.placement,
                "reference",
                ReferenceWorker,
                config.cluster,
                config.cluster.reference,
                self.policy_precision,
                config.reference.micro_batch_tokens,
            )
        address = self.policy.first("rendezvous")
        spec = engine_spec(device, config.policy.precision, config.cluster.policy, config.training)
        trained = policy if version else None
        pending = self.policy.start("load", config.policy, spec, address, trained)
        if needs_reference(config):
            pending += self.reference.start("load", reference, config.policy.trust_remote_code)
        pending += launch_scorers(self.scorers, self.plan, self.placement, config.cluster, rewards)
        wait(pending)
        self._finish_rollout()
        backend = transfer_backend(device, config.cluster.layout)
        self._collective("connect", backend, self.rollout.actors, config.cluster.rollout.tensor_parallel)
        if self.turns:
            self.policy.call("offload")

    def _rank_arguments(self, member: Any) -> tuple[int, int, int]:
        return (member.rank, self.config.cluster.policy.ranks, self.config.run.seed)

    # -- score ---------------------------------------------------------------------------------------------

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order. A non-finite reward is kept; selection quarantines it."""
        return self.scorers.score(prompts, completions, advance)

    def reference_logprobs(
        self, groups: Sequence[PreferenceGroup], advance: Advance
    ) -> list[ReferenceLogprobs]:
        """The reference policy's logprobs of every answer of each group, computed once per round.

        Raises:
            ValueError: naming the groups that cannot be learnt from, or whose logprobs are not finite.
        """
        config = self.config
        length = config.policy.max_length
        check_groups(groups, self.vocab_size, length)
        packed = reference_answers(groups, config.objective.kl == "mismatched", length)
        if config.policy.lora is None:
            values = number_answers(self.reference, "score", packed, (), advance)
        else:
            budget = config.reference.micro_batch_tokens
            values = number_answers(self.policy, "score_base", packed, (budget,), advance)
        references = pair_references(groups, values)
        check_references(groups, references)
        return references

    # -- learn ---------------------------------------------------------------------------------------------

    def train(
        self,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        place: TrainingPlace,
    ) -> Iterator[dict[str, float]]:
        """One round of policy training; yields each optimizer step's metrics."""
        config = self.config
        with self.policy.awake():
            if config.training.optimizer_state == "reset":
                self._collective("start_round")
            self._collective(
                "learn_preferences", groups, references, config.objective, config.policy.max_length
            )
            for rank, metrics in self.policy.stream("train", [(config.training, place)] * len(self.policy)):
                if rank == 0:
                    yield metrics

    def save_policy(self, directory: Path) -> None:
        """Write the policy as a Hugging Face checkpoint, with the optimizer where the config keeps it."""
        with self.policy.awake():
            self._collective("save", str(directory))
            if self.config.training.optimizer_state == "keep":
                self._collective("save_state", str(directory / "optimizer"))

    def restore_optimizer(self, checkpoint: Path) -> None:
        """Take up the optimizer's state that `save_policy` wrote."""
        with self.policy.awake():
            self._collective("load_state", str(checkpoint / "optimizer"))

    def sync(self, version: int) -> dict[str, float]:
        """The policy's weights into every engine; returns seconds and bytes."""
        with self.policy.awake(), self.rollout.awake():
            seconds_and_bytes: dict[str, float] = self._collective("send_weights", version)[0]
            held = set(self.rollout.call("version"))
        assert held == {version}, f"engines hold policy {held} after a sync of {version}"
        return seconds_and_bytes

    def adopt_reference(self, checkpoint: str) -> None:
        """Move the reference as the config says: stay, follow, or average."""
        rule = self.config.reference
        if not needs_reference(self.config):
            return
        if rule.update == "previous":
            self.load_reference(checkpoint)
        elif rule.update == "ema":
            self.reference.call("blend", checkpoint, rule.ema_decay)
        if self.turns and rule.update != "initial":
            self.reference.call("offload")

    def load_reference(self, path: str) -> None:
        """Make every replica the policy of this checkpoint."""
        self.reference.call("load", path, self.config.policy.trust_remote_code)
        if self.turns:
            self.reference.call("offload")

    def save_reference(self, directory: Path) -> None:
        """Write the averaged reference."""
        self.reference.first("save", str(directory))
        self.tokenizer.backend.save_pretrained(directory)

    def _collective(self, method: str, *arguments: Any) -> list[Any]:
        return self.policy.call(method, *arguments)

    # -- the run's own reward model ------------------------------------------------------------------------

    @contextmanager
    def reward_trainer(self, start: str) -> Iterator[WorkerGroup]:
        """A training group on the policy's slots that lives for as long as the reward model is trained."""
        training = self.config.reward.train
        assert training is not None
        group = self._launch("policy", RewardTrainWorker, self._rank_arguments)
        try:
            address = group.first("rendezvous")
            cluster = self.config.cluster
            ranks = cluster.policy.model_copy(update={"offload_optimizer": False})
            spec = engine_spec(cluster.device, self.config.reward.precision, ranks, training)
            model = self.config.policy.model_copy(update={"path": start, "lora": None})
            group.call("load", model, spec, address, training.trainable_layers)
            yield group
        finally:
            group.stop()

    def peak_memory(self) -> dict[str, int]:
        """Peak bytes of the largest process of each role."""
        return {role: max(group.call("peak_memory")) for role, group in self.groups.items()}

    @property
    def groups(self) -> dict[str, WorkerGroup]:
        """The groups that have started, by role."""
        own = {role: getattr(self, role) for role in ("policy", "reference") if hasattr(self, role)}
        return super().groups | own | {group.role: group for group in self.scorers.groups}
