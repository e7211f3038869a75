"""Preference optimisation: the policy's answers against each other and against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.passes import policy_chunks, policy_logprobs
from ultramed_rl.actors.tasks.base import Sums
from ultramed_rl.config.objectives import Objective
from ultramed_rl.learning.batching import MicroBatch
from ultramed_rl.learning.flops import ModelShape, forward_flops, training_flops
from ultramed_rl.learning.objectives import Answers, kl_estimate, objective_losses
from ultramed_rl.learning.packing import AnswerGroup, PackedBatch, pack_groups, sum_by_answer
from ultramed_rl.learning.preference_data import PreferenceData
from ultramed_rl.models.lora import has_adapters
from ultramed_rl.records import PreferenceGroup


class PreferenceTask:
    """Groups with their reference logprobs under one of the preference objectives."""

    sums = (
        "loss",
        "units",
        "tokens",
        "flops",
        "groups",
        "pairs",
        "accuracy",
        "chosen_logratio",
        "rejected_logratio",
        "gap",
        "sampled",
    )

    def __init__(self, engine: Engine, shape: ModelShape, data: PreferenceData, objective: Objective) -> None:
        self.engine, self.shape, self.data, self.objective = engine, shape, data, objective

    @property
    def lengths(self) -> list[int]:
        return self.data.lengths

    def sample_id(self, index: int) -> str:
        return self.data.index.ids[index]

    def losses(
        self, batch: Sequence[int], micro_batches: Sequence[MicroBatch], sums: Sums, first: bool
    ) -> Iterator[torch.Tensor]:
        """`first` asks for the gap between the policy and the rollout engines, while their weights are equal."""
        data, objective = self.data, self.objective
        kl = self._reference_points(micro_batches, sums)
        units = sum(data.answer_count(i) for i in batch) if objective.unpaired else len(batch)
        constants = objective.model_dump(exclude={"type"})
        for micro, packed, logprobs in self._passes(micro_batches, data.answers_of):
            answers = data.answers(micro.indices, logprobs)
            losses = objective_losses(objective.type, answers, kl, constants)
            if micro.filler:
                yield losses.sum() * 0.0
                continue
            self._count(packed, answers, losses, sums)
            if first:
                _add_gaps([data.groups[i] for i in micro.indices], answers.logprobs, sums)
            yield losses.sum() / units

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        count = totals["groups"]
        chosen, rejected = totals["chosen_logratio"] / count, totals["rejected_logratio"] / count
        gap = {"rollout_gap": totals["gap"] / totals["sampled"]} if totals["sampled"] else {}
        # One answer alone has no counterpart to be compared with.
        pairs = totals["pairs"]
        compared = {"accuracy": totals["accuracy"] / pairs} if pairs else {}
        return {
            "loss": totals["loss"] / totals["units"],
            **compared,
            "chosen_logratio": chosen,
            "rejected_logratio": rejected,
            "implicit_margin": self.objective.beta * (chosen - rejected),
            **gap,
        }

    @torch.no_grad()
    def _count(self, packed: PackedBatch, answers: Answers, losses: torch.Tensor, sums: Sums) -> None:
        ratios = answers.logratios
        # Objectives without a reference compare means per token.
        if getattr(self.objective, "length_normalized", not self.objective.uses_reference):
            ratios = ratios / answers.lengths
        margins = answers.margin(ratios)
        frozen_base = has_adapters(self.engine.module.lm)
        sums.add(
            loss=losses.sum(),
            units=len(losses),
            groups=answers.groups,
            pairs=sum(size > 1 for size in answers.sizes),
            accuracy=(margins > 0).sum(),
            chosen_logratio=answers.chosen(ratios).sum(),
            rejected_logratio=answers.rejected(ratios).sum(),
            tokens=packed.tokens,
            flops=training_flops(self._forward_flops(packed), frozen_base=frozen_base),
        )

    @torch.no_grad()
    def _reference_points(self, micro_batches: Sequence[MicroBatch], sums: Sums) -> tuple[torch.Tensor, ...]:
        """KTO's, over the whole batch, so that they depend on neither micro-batches nor ranks."""
        if self.objective.kl == "none":
            return ()
        mismatched = self.objective.kl == "mismatched"
        points = Sums(("first", "second", "count"), self.engine.device)
        pick = self.data.mismatched_of if mismatched else self.data.answers_of
        for micro, packed, logprobs in self._passes(micro_batches, pick):
            if micro.filler:
                continue
            sums.add(flops=self._forward_flops(packed))
            if mismatched:
                ratios = logprobs - self.data.mismatched_references(micro.indices, logprobs.device)
                points.add(first=ratios.sum(), count=len(ratios))
            else:
                answers = self.data.answers(micro.indices, logprobs)
                chosen, rejected = answers.chosen(answers.logratios), answers.rejected(answers.logratios)
                points.add(first=chosen.sum(), second=rejected.sum(), count=answers.groups)
        first, second, count = self.engine.total(points.values).float()
        return tuple(kl_estimate(point / count) for point in ((first,) if mismatched else (first, second)))

    def _passes(
        self, micro_batches: Sequence[MicroBatch], pick: Callable[[int], AnswerGroup]
    ) -> Iterator[tuple[MicroBatch, PackedBatch, torch.Tensor]]:
        """Each micro-batch, packed, with the [A] logprobs of the answers that `pick` gives of its groups."""
        targets = [sum(len(a) for i in micro.indices for a in pick(i).answers) for micro in micro_batches]
        chunks = policy_chunks(self.engine, targets, self.shape.vocab)
        for micro, parts in zip(micro_batches, chunks, strict=True):
            packed = pack_groups([pick(i) for i in micro.indices], self.engine.device)
            yield micro, packed, sum_by_answer(policy_logprobs(self.engine, packed, parts), packed)

    def _forward_flops(self, packed: PackedBatch) -> float:
        return forward_flops(self.shape, packed.segments, packed.tokens, len(packed.targets))


@torch.no_grad()
def _add_gaps(groups: Sequence[PreferenceGroup], logprobs: torch.Tensor, sums: Sums) -> None:
    """|policy - rollout engine| in nats per token of each sampled answer: two views of the same weights."""
    answers = [c for g in groups for c in g.completions]
    sampled = [(k, c) for k, c in enumerate(answers) if c.finish_reason != "reference"]
    places = torch.tensor([k for k, _ in sampled], dtype=torch.long)
    engine = torch.tensor([(c.logprob, len(c.token_ids)) for _, c in sampled], dtype=torch.float64)
    theirs, lengths = engine.reshape(-1, 2).to(logprobs.device, non_blocking=True).unbind(1)
    own = logprobs.index_select(0, places.to(logprobs.device, non_blocking=True))
    sums.add(gap=((own.double() - theirs).abs() / lengths).sum(), sampled=len(sampled))
