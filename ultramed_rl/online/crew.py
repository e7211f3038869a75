"""The crew: every role's actors, behind verbs that take records and give records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultramed_rl.actors.engine import EngineSpec
from ultramed_rl.actors.policy import PolicyWorker, RoundPlace
from ultramed_rl.actors.reward_trainer import RewardTrainWorker
from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker, SamplingRequest
from ultramed_rl.actors.scorer import ReferenceWorker, RewardWorker
from ultramed_rl.actors.weight_sync import transfer_backend
from ultramed_rl.cluster.group import WorkerGroup, wait
from ultramed_rl.cluster.placement import Placement, connect, reserve
from ultramed_rl.cluster.plan import Plan, make_plan
from ultramed_rl.config import RunConfig
from ultramed_rl.config.precision import resolve_precision
from ultramed_rl.models.offline import resolve_model
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, PreferencePair, Prompt, ReferenceLogprobs, ScoredCompletion

Advance = Callable[[int], None]


class Crew:
    """Owns the actors of one run. Groups start when first needed and stay until `stop`."""

    policy: WorkerGroup
    reference: WorkerGroup
    reward: WorkerGroup
    rollout: WorkerGroup

    def __init__(
        self, config: RunConfig, tokenizer: ChatTokenizer, reward_tokenizer: ChatTokenizer | None = None
    ) -> None:
        """`reward_tokenizer` is the reward model's, where it isn't the policy's own."""
        self.config, self.tokenizer = config, tokenizer
        self.reward_tokenizer = reward_tokenizer
        self._starting: list[Any] = []
        self.plan: Plan = make_plan(config)
        self.turns = config.cluster.layout == "colocated"
        connect(config.cluster)
        self.placement: Placement = reserve(self.plan, config.cluster)

    # -- start and stop ------------------------------------------------------------------------------------

    def start_rollout(self, model: str, version: int) -> None:
        """Start the vLLM engines with this checkpoint's weights."""
        self.begin_rollout(model, version)
        self._finish_rollout()

    def begin_rollout(self, model: str, version: int) -> None:
        """Begin to start the engines; `start_learners` waits for them.

        Engines that share GPUs with the learners are waited for at once: they measure free memory.
        """
        self.rollout = self._launch("rollout", RolloutWorker, lambda m: (m.rank,))
        arguments = self.engine_arguments(model)
        self._starting = self.rollout.start("start", arguments, self.tokenizer.end_id, version)
        if arguments.sleeps:
            self._finish_rollout()

    def _finish_rollout(self) -> None:
        if self._starting:
            wait(self._starting)
            self._starting = []
            if self.turns:
                self.rollout.call("offload")

    def start_learners(self, policy: str, version: int, reference: str, reward: str) -> None:
        """Start policy, reference and reward model together, and connect the policy to the engines."""
        config = self.config
        device = config.cluster.device
        self.policy = self._launch("policy", PolicyWorker, self._rank_arguments)
        self.reference = self._launch_scorers(
            "reference", ReferenceWorker, self.policy_precision, config.reference.micro_batch_tokens
        )
        reward_precision = resolve_precision(config.reward.precision, device)
        self.reward = self._launch_scorers(
            "reward", RewardWorker, reward_precision, config.reward.micro_batch_tokens
        )
        address = self.policy.first("rendezvous")
        trust = config.policy.trust_remote_code
        pending = self.policy.start("load", policy, self._policy_spec(), address, trust)
        pending += self.reference.start("load", reference, trust)
        pending += self.reward.start("load", reward, config.reward.trust_remote_code)
        wait(pending)
        self._finish_rollout()
        backend = transfer_backend(device, config.cluster.layout)
        self._collective("connect", backend, self.rollout.actors, config.cluster.rollout.tensor_parallel)
        if self.turns:
            self.policy.call("offload")

    def stop(self) -> None:
        """End all actors and give the devices back."""
        for role in ("policy", "reference", "reward", "rollout"):
            if hasattr(self, role):
                getattr(self, role).stop()
        self.placement.release()

    @property
    def policy_precision(self) -> str:
        return resolve_precision(self.config.policy.precision, self.config.cluster.device)

    def _launch(self, role: str, worker: type, arguments: Callable[[Any], tuple[Any, ...]]) -> WorkerGroup:
        members = next(r.members for r in self.plan.roles if r.role == role)
        return WorkerGroup.launch(worker, members, self.placement, arguments, takes_turns=self.turns)

    def _launch_scorers(self, role: str, worker: type, precision: str, batch_tokens: int) -> WorkerGroup:
        replicas = getattr(self.config.cluster, role)
        shards = replicas.replicas if replicas.shard else 1
        device = self.config.cluster.device
        group = self._launch(role, worker, lambda m: (m.rank, device, precision, batch_tokens, shards))
        if shards > 1:
            group.call("join", group.first("rendezvous"))
        return group

    def _rank_arguments(self, member: Any) -> tuple[int, int, int]:
        return (member.rank, self.config.cluster.policy.ranks, self.config.run.seed)

    def _policy_spec(self) -> EngineSpec:
        training, group = self.config.training, self.config.cluster.policy
        return EngineSpec(
            device=self.config.cluster.device,
            precision=self.policy_precision,
            zero_stage=group.zero_stage,
            offload_optimizer=group.offload_optimizer,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            micro_batch_size=training.micro_batch_size,
            gradient_checkpointing=training.gradient_checkpointing,
        )

    def engine_arguments(self, model: str) -> EngineArguments:
        """How a rollout engine of this run is started."""
        cluster, group = self.config.cluster, self.config.cluster.rollout
        cache = None if group.kv_cache_gib is None else int(group.kv_cache_gib * 2**30)
        return EngineArguments(
            model=resolve_model(model),
            device=cluster.device,
            precision=self.policy_precision,
            max_length=self.config.policy.max_length,
            max_num_seqs=group.max_num_seqs,
            tensor_parallel=group.tensor_parallel,
            enforce_eager=group.enforce_eager,
            kv_cache_bytes=cache,
            memory_fraction=group.memory_fraction,
            transfer_backend=transfer_backend(cluster.device, cluster.layout),
            sleeps=self.turns and cluster.device == "cuda",
            trust_remote_code=self.config.policy.trust_remote_code,
        )

    # -- generate ------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[SamplingRequest], version: int, advance: Advance
    ) -> list[Completion]:
        """Completions in the order of requests, all of policy `version`; none lost, none doubled."""
        shards = [list(requests[rank :: len(self.rollout)]) for rank in range(len(self.rollout))]
        found: dict[str, list[Completion]] = {}
        with self.rollout.awake():
            for _, completions in self.rollout.stream("generate", [(shard,) for shard in shards]):
                assert completions[0].prompt_id not in found, "a prompt was answered twice"
                found[completions[0].prompt_id] = completions
                advance(len(completions))
        missing = [r.prompt.prompt_id for r in requests if len(found.get(r.prompt.prompt_id, ())) != r.n]
        assert not missing, f"prompts without all of their completions: {missing}"
        stale = {c.policy_version for cs in found.values() for c in cs} - {version}
        assert not stale, f"completions of policy {sorted(stale)}, expected {version}"
        return [completion for request in requests for completion in found[request.prompt.prompt_id]]

    # -- score ---------------------------------------------------------------------------------------------

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order. A non-finite reward is kept; selection quarantines it."""
        by_id = {p.prompt_id: p for p in prompts}
        items = [self._reward_tokens(by_id[c.prompt_id], c) for c in completions]
        rewards = self._scores(self.reward, items, (self.reward_tokenizer or self.tokenizer).pad_id, advance)
        return [ScoredCompletion(c, r) for c, r in zip(completions, rewards, strict=True)]

    def _reward_tokens(self, prompt: Prompt, completion: Completion) -> tuple[Sequence[int], Sequence[int]]:
        """What the reward model reads: the policy's own tokens, or the same chat in its own tokens."""
        if self.reward_tokenizer is None:
            return prompt.token_ids, completion.token_ids
        text = self.reward_tokenizer.encode_text(completion.text)
        end = [] if completion.finish_reason == "length" else [self.reward_tokenizer.end_id]
        return self.reward_tokenizer.encode_chat(prompt.messages), [*text, *end]

    def reference_logprobs(
        self, pairs: Sequence[PreferencePair], advance: Advance
    ) -> list[ReferenceLogprobs]:
        """The reference policy's logprobs of both sides of each pair, computed once per round.

        Raises:
            ValueError: naming the pairs whose logprobs are not finite.
        """
        items = [(p.prompt.token_ids, side.token_ids) for p in pairs for side in (p.chosen, p.rejected)]
        values = self._scores(self.reference, items, self.tokenizer.pad_id, advance)
        records = [
            ReferenceLogprobs(p.pair_id, chosen, rejected)
            for p, chosen, rejected in zip(pairs, values[::2], values[1::2], strict=True)
        ]
        broken = [r.pair_id for r in records if not math.isfinite(r.chosen + r.rejected)]
        if broken:
            raise ValueError(
                f"reference logprobs are not finite for pairs {', '.join(broken)}: drop these prompts"
            )
        return records

    def _scores(
        self,
        group: WorkerGroup,
        items: Sequence[tuple[Sequence[int], Sequence[int]]],
        pad: int,
        advance: Advance,
    ) -> list[float]:
        replicas = len(group)
        shards = [items[rank::replicas] for rank in range(replicas)]
        values: list[float | None] = [None] * len(items)
        with group.awake():
            for rank, scores in group.stream("score", [(shard, pad) for shard in shards]):
                for index, value in scores:
                    values[rank + index * replicas] = value
                advance(len(scores))
        assert all(v is not None for v in values), "an item was not scored"
        return [float(v) for v in values if v is not None]

    # -- learn ---------------------------------------------------------------------------------------------

    def train(
        self, pairs: Sequence[PreferencePair], references: Sequence[ReferenceLogprobs], place: RoundPlace
    ) -> Iterator[dict[str, float]]:
        """One round of policy training; yields each optimizer step's metrics."""
        config = self.config
        with self.policy.awake():
            if config.training.optimizer_state == "reset":
                self._collective("start_round")
            arguments = (pairs, references, config.objective, config.training, place)
            for rank, metrics in self.policy.stream("train", [arguments] * len(self.policy)):
                if rank == 0:
                    yield metrics

    def save_policy(self, directory: Path) -> None:
        """Write the policy as a Hugging Face checkpoint, with the optimizer where the config keeps it."""
        with self.policy.awake():
            self._collective("save", str(directory))
            if self.config.training.optimizer_state == "keep":
                self._collective("save_optimizer", str(directory / "optimizer"))

    def restore_optimizer(self, checkpoint: Path) -> None:
        """Take up the optimizer's state that `save_policy` wrote."""
        with self.policy.awake():
            self._collective("load_optimizer", str(checkpoint / "optimizer"))

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
            spec = EngineSpec(
                device=self.config.cluster.device,
                precision=resolve_precision(self.config.reward.precision, self.config.cluster.device),
                zero_stage=self.config.cluster.policy.zero_stage,
                offload_optimizer=False,
                weight_decay=0.0,
                max_grad_norm=1.0,
                micro_batch_size=training.micro_batch_size,
                gradient_checkpointing=False,
            )
            group.call("load", start, spec, address, training.trainable_layers)
            yield group
        finally:
            group.stop()

    def peak_memory(self) -> dict[str, int]:
        """Peak bytes of the largest process of each role."""
        roles: Iterable[str] = ("policy", "reference", "reward", "rollout")
        return {role: max(getattr(self, role).call("peak_memory")) for role in roles}
