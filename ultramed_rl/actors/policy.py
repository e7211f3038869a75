"""The policy's ranks: what a language model can learn, checkpoints, and weights for the engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.scorer import AnswerNumber, number_batch, score_groups
from ultramed_rl.actors.tasks import ImitationTask, PreferenceTask
from ultramed_rl.actors.trainer import TrainWorker, plan_batches
from ultramed_rl.actors.weight_sync import SENDERS, Sender, WeightBucket
from ultramed_rl.actors.work import TrainingPlace, WorkBatch, WorkResult
from ultramed_rl.config.models import Model
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.rounds import Training
from ultramed_rl.learning.checks import check_chats, check_groups, check_references
from ultramed_rl.learning.packing import AnswerGroup, PackedBatch, sum_by_answer
from ultramed_rl.learning.preference_data import GroupIndex, PreferenceSet
from ultramed_rl.models.load import load_policy
from ultramed_rl.models.lora import adapters_off
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs, TokenizedChat
from ultramed_rl.store.shards import RoundPairs, read_references


class PolicyWorker(TrainWorker):
    """One rank of the policy."""

    sender: Sender
    scoring_budget: int = 0

    def load(
        self, model: Model, spec: EngineSpec, address: tuple[str, int], checkpoint: str | None = None
    ) -> None:
        """Load the policy: the starting model, or the `checkpoint` that it has become since; of a LoRA policy
        the base is loaded, and the checkpoint's adapters. Collective."""
        path = model.path if checkpoint is None or model.lora is not None else checkpoint
        load = partial(
            load_policy,
            path,
            spec.precision,
            lora=model.lora,
            adapter=checkpoint if model.lora is not None else None,
            trust_remote_code=model.trust_remote_code,
        )
        self.build(load, model, spec, address)

    def start_round(self, fresh: bool) -> None:
        """Begin a round, if `fresh` with a fresh optimizer. Collective."""
        self.engine.start_round(fresh)

    def update_survives(self) -> float:
        """The share of the round's update that the engines get to see. Collective."""
        return self.engine.update_survives()

    # -- what it can learn ---------------------------------------------------------------------------------

    def learn_preferences(
        self,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        objective: Objective,
        max_length: int,
        held_out: tuple[Sequence[PreferenceGroup], Sequence[ReferenceLogprobs] | None] | None = None,
    ) -> None:
        """Set the task: these groups, with their references where the objective has one, and perhaps held-out ones to
        evaluate on. Raises ValueError with the ids of groups that cannot be learnt from, before anything is computed."""

        def task(
            groups: Sequence[PreferenceGroup], references: Sequence[ReferenceLogprobs] | None
        ) -> PreferenceTask:
            data = self._at_hand(groups, references, objective, max_length)
            return PreferenceTask(self.engine, self.shape, data, objective)

        self.set_task(task(groups, references), task(*held_out) if held_out else None)

    def _at_hand(
        self,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        objective: Objective,
        max_length: int,
    ) -> PreferenceSet:
        check_groups(groups, self.shape.vocab, max_length, paired=not objective.unpaired)
        how = {"packed": self._packed, "chosen_only": objective.chosen_only}
        return PreferenceSet.at_hand(groups, references, max_length, **how)

    def learn_round(
        self,
        folder: str,
        objective: Objective,
        max_length: int,
        training: Training,
        place: TrainingPlace,
        start: int,
    ) -> None:
        """Set the task: the pairs in a round's folder, from step `start` on. Of these a rank reads what its own micro-batches
        hold. Raises ValueError: groups of this rank that cannot be learnt from, with their ids, before anything is
        computed."""
        pairs = RoundPairs(Path(folder))
        tokens = (pairs.packed_tokens if self._packed else pairs.padded_tokens).tolist()
        batches, _ = plan_batches(len(pairs), training, place)
        parts = (self._shard(tokens, batch, training.micro_batch_tokens) for batch in batches[start:])
        own = sorted({i for part in parts for micro in part for i in micro.indices})
        beside = {(i + 1) % len(pairs) for i in own} if objective.kl == "mismatched" else set()
        pairs.load({*own, *beside})
        groups = [pairs[i] for i in own]
        check_groups(groups, self.shape.vocab, max_length, paired=not objective.unpaired)
        references = None
        if objective.uses_reference:
            logprobs = read_references(Path(folder), [group.group_id for group in groups])
            check_references(groups, logprobs)
            references = dict(zip(own, logprobs, strict=True))
        index = GroupIndex(pairs.ids, pairs.answer_counts.tolist(), tokens)
        data = PreferenceSet(pairs, references, max_length, index, objective.chosen_only)
        task = PreferenceTask(self.engine, self.shape, data, objective)
        if start:  # the steps before were of the same training, and so are those that it skipped
            self.task = task
        else:
            self.set_task(task)

    def learn_next(
        self,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        training: Training,
        place: TrainingPlace,
        step: int,
    ) -> dict[str, float]:
        """Take up the groups that are the batch of `step`, and learn them; the step's metrics. Collective.
        Raises ValueError: like `learn_preferences`."""
        task = self.task
        assert isinstance(task, PreferenceTask), "no preferences are being learnt"
        more = self._at_hand(groups, references, task.objective, task.data.max_length)
        task.data = task.data.extended(more)
        (metrics,) = self.train(training, place, step, step + 1)
        return metrics

    def learn_chats(
        self, chats: Sequence[TokenizedChat], held_out: Sequence[TokenizedChat] | None = None
    ) -> None:
        """Set the task: what the assistant wrote in these chats. Raises ValueError: token ids outside the vocabulary,
        with the chats' ids."""

        def task(chats: Sequence[TokenizedChat]) -> ImitationTask:
            check_chats(chats, self.shape.vocab)
            return ImitationTask(self.engine, self.shape, chats)

        self.set_task(task(chats), task(held_out) if held_out else None)

    # -- the policy as its own reference -------------------------------------------------------------------

    @torch.no_grad()
    def score_base(self, groups: Sequence[AnswerGroup], budget: int) -> Iterator[list[AnswerNumber]]:
        """Summed logprobs under the base model, the adapters off; without adapters, under the model as it is.
        Collective under ZeRO-3."""

        def logprobs(packed: PackedBatch) -> torch.Tensor:
            return sum_by_answer(self.engine.backend(packed), packed)

        with adapters_off(self.engine.module.lm):
            how = {"in_step": self.engine.spec.group.zero_stage == 3, "packed": self._packed}
            yield from score_groups(groups, logprobs, budget, self.engine.device, **how)

    def scores_within(self, budget: int) -> None:
        """How many tokens a pass of `work` may have."""
        self.scoring_budget = budget

    def work(self, work: WorkBatch) -> WorkResult:
        """The base model's logprobs of each request's answers, an `AnswerGroup`'s. Collective under ZeRO-3."""
        return number_batch(work, lambda groups: self.score_base(groups, self.scoring_budget))

    # -- weights -------------------------------------------------------------------------------------------

    def connect(self, backend: str, engines: int, tensor_parallel: int) -> list[dict[str, Any]]:
        """Open this end of the weights' way to so many rollout engines; what each of them is to be told. Collective."""
        self.sender = SENDERS[backend](self.engine, engines, tensor_parallel)
        return self.sender.init_infos

    def meet_engines(self) -> None:
        """Open the way, while engines open their end in `init_weight_transfer`."""
        self.sender.meet()

    def describe_weights(self, first: bool) -> WeightBucket:
        """The next bucket of the current weights, or the `first`; engines have taken the one before. Collective."""
        return self.sender.describe(first)

    def push_weights(self) -> None:
        """Send the bucket, while engines take it in `pull_weights`. Collective."""
        self.sender.push()

    def offload(self) -> None:
        if hasattr(self, "sender"):
            self.sender.close()
        super().offload()
