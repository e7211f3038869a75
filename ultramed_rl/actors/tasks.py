"""What a training rank can learn: samples by index, and the loss of a micro-batch of them.

`TrainWorker` owns steps, shards, rates and evaluation; a task owns the loss:

    lengths                   tokens that each sample costs in a forward pass
    sums                      what `losses` adds up; loss, units, tokens and flops (of the whole step) among them
    losses(batch, micro_batches, sums, first)
                              each micro-batch's share of the mean loss of the whole batch, whose indices are of all ranks,
                              the micro-batches of this one; `first`: no step was taken since the task was set. Collective
    metrics(totals)           a batch's metrics out of its sums over all ranks
    sample_id(index)          the name that errors give a sample

To add one: its class here, its name in `Task`, and a method that sets it on the worker whose model it trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from ultramed_rl.actors.engine import Engine
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.stages import BradleyTerry, LogExp
from ultramed_rl.learning.batching import MicroBatch
from ultramed_rl.learning.costs import ModelShape, forward_flops, training_flops
from ultramed_rl.learning.objectives import (
    Answers,
    bradley_terry_loss,
    kl_estimate,
    log_exp_loss,
    objective_losses,
)
from ultramed_rl.learning.objectives.bradley_terry import RankedPairs, ranked_pairs
from ultramed_rl.learning.packing import (
    AnswerGroup,
    PackedBatch,
    pack_groups,
    pack_sequences,
    sum_by_answer,
)
from ultramed_rl.learning.preference_data import PreferenceSet
from ultramed_rl.models.load import is_packed
from ultramed_rl.models.lora import has_adapters
from ultramed_rl.records import PreferenceGroup, TokenizedChat


class Sums:
    """Named numbers that a rank adds up over a batch, and that are then added up over ranks.

    What the device computes is added up there: reading a number would wait for all that it still has to do.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.names = tuple(names)
        self._known = [0.0] * len(self.names)
        self._computed = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def add(self, **amounts: float | torch.Tensor) -> None:
        """Add numbers, or scalars of the device, to some of them."""
        for name, amount in amounts.items():
            place = self.names.index(name)
            if isinstance(amount, torch.Tensor):
                self._computed[place] += amount.detach()
            else:
                self._known[place] += amount

    @property
    def values(self) -> torch.Tensor:
        """[names] float64, on the device."""
        known = torch.tensor(self._known, dtype=torch.float64)
        return self._computed + known.to(self._computed.device, non_blocking=True)


class ImitationTask:
    """Supervised fine-tuning: chats packed end to end, each blind to the others; the NLL of what the assistant wrote.

    Every learned token weighs the same, whichever chat, micro-batch or rank it is in.
    """

    sums = ("loss", "units", "tokens", "flops")

    def __init__(self, engine: Engine, shape: ModelShape, chats: Sequence[TokenizedChat]) -> None:
        self.engine, self.shape, self.chats = engine, shape, chats
        sizes = [(len(chat.token_ids), sum(chat.learned[1:])) for chat in chats]
        self.lengths = [tokens for tokens, _ in sizes]
        self.targets = [learned for _, learned in sizes]

    def sample_id(self, index: int) -> str:
        return self.chats[index].conversation_id

    def losses(
        self, batch: Sequence[int], micro_batches: Sequence[MicroBatch], sums: Sums, first: bool
    ) -> Iterator[torch.Tensor]:
        units = sum(self.targets[i] for i in batch)
        for micro in micro_batches:
            chats = [self.chats[i] for i in micro.indices]
            packed = pack_sequences([(c.token_ids, c.learned) for c in chats], self.engine.device)
            loss = -self.engine.backend(packed).sum()
            if micro.filler:
                yield loss * 0.0
                continue
            flops = training_flops(
                forward_flops(self.shape, packed, len(packed.targets)),
                frozen_base=has_adapters(self.engine.module.lm),
            )
            sums.add(loss=loss, units=len(packed.targets), tokens=packed.tokens, flops=flops)
            yield loss / units

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        loss = totals["loss"] / totals["units"]
        return {"loss": loss, "perplexity": math.exp(min(loss, 50.0)), "learned_tokens": totals["units"]}


class PreferenceTask:
    """Groups with their reference logprobs under one of the preference objectives."""

    sums = (
        *("loss", "units", "tokens", "flops", "pairs", "accuracy", "gap", "sampled"),
        *("chosen", "rejected", "chosen_logratio", "rejected_logratio"),
    )

    def __init__(self, engine: Engine, shape: ModelShape, data: PreferenceSet, objective: Objective) -> None:
        self.engine, self.shape, self.data, self.objective = engine, shape, data, objective

    @property
    def lengths(self) -> list[int]:
        return self.data.index.tokens

    def sample_id(self, index: int) -> str:
        return self.data.index.ids[index]

    def losses(
        self, batch: Sequence[int], micro_batches: Sequence[MicroBatch], sums: Sums, first: bool
    ) -> Iterator[torch.Tensor]:
        """`first` asks for the gap between the policy and the rollout engines, while their weights are equal."""
        data, objective = self.data, self.objective
        kl = self._reference_points(micro_batches, sums)
        units = sum(data.index.answers[i] for i in batch) if objective.unpaired else len(batch)
        constants = objective.model_dump()
        for micro, packed, logprobs in self._passes(micro_batches, data.answers_of):
            answers = self._answers(micro.indices, packed, logprobs)
            losses = objective_losses(answers, kl, constants)
            if micro.filler:
                yield losses.sum() * 0.0
                continue
            self._count(packed, answers, losses, sums)
            if first:
                _add_gaps([data.group(i) for i in micro.indices], answers.logprobs, sums)
            yield losses.sum() / units

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        # A batch of single answers may have them of one kind alone, and none of them has a counterpart.
        sides = [side for side in ("chosen", "rejected") if totals[side]]
        ratios = {f"{side}_logratio": totals[f"{side}_logratio"] / totals[side] for side in sides}
        if len(sides) > 1:
            lead = ratios["chosen_logratio"] - ratios["rejected_logratio"]
            ratios["implicit_margin"] = self.objective.beta * lead
        compared = {"accuracy": totals["accuracy"] / totals["pairs"]} if totals["pairs"] else {}
        gap = {"rollout_gap": totals["gap"] / totals["sampled"]} if totals["sampled"] else {}
        return {
            "loss": totals["loss"] / totals["units"],
            **compared,
            **ratios,
            **gap,
        }

    @torch.no_grad()
    def _count(self, packed: PackedBatch, answers: Answers, losses: torch.Tensor, sums: Sums) -> None:
        ratios = answers.logratios
        # Objectives without a reference compare means per token.
        if getattr(self.objective, "length_normalized", not self.objective.uses_reference):
            ratios = ratios / answers.lengths
        forward = forward_flops(self.shape, packed, len(packed.targets))
        sides = {"chosen": answers.chosen(ratios), "rejected": answers.rejected(ratios)}
        counts: dict[str, int | torch.Tensor] = dict.fromkeys(sides, answers.groups)
        if self.objective.unpaired or self.objective.chosen_only:
            kinds = {"chosen": answers.desirable, "rejected": ~answers.desirable}
            sides = {side: ratios * kind for side, kind in kinds.items()}
            counts = {side: kind.sum() for side, kind in kinds.items()}
        sums.add(
            loss=losses.sum(),
            units=len(losses),
            **counts,
            **{f"{side}_logratio": values.sum() for side, values in sides.items()},
            pairs=sum(size > 1 for size in answers.sizes),
            accuracy=(answers.margin(ratios) > 0).sum(),
            tokens=packed.tokens,
            flops=training_flops(forward, frozen_base=has_adapters(self.engine.module.lm)),
        )

    @torch.no_grad()
    def _reference_points(self, micro_batches: Sequence[MicroBatch], sums: Sums) -> tuple[torch.Tensor, ...]:
        """KTO's, over the whole batch, so that they depend on neither micro-batches nor ranks."""
        if self.objective.kl == "none":
            return ()
        mismatched = self.objective.kl == "mismatched"
        points = Sums(("first", "second", "count"), self.engine.device)
        pick = self.data.mismatched_of if mismatched else self.data.answers_of
        for micro, packed, tokens in self._passes(micro_batches, pick):
            if micro.filler:
                continue
            logprobs = sum_by_answer(tokens, packed)
            sums.add(flops=forward_flops(self.shape, packed, len(packed.targets)))
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
        """Each micro-batch, packed, with the [N] token logprobs of the answers that `pick` gives of its groups; [2, N] as
        `PackedBatch.collisions` says."""
        for micro in micro_batches:
            packed = pack_groups([pick(i) for i in micro.indices], self.engine.device)
            packed = replace(packed, collisions=getattr(self.objective, "policy_weighted", False))
            yield micro, packed, self.engine.backend(packed)

    def _answers(self, indices: Sequence[int], packed: PackedBatch, logprobs: torch.Tensor) -> Answers:
        """The groups' answers, with all that the objective asks for."""
        weights = shared = None
        if packed.collisions:
            logprobs, collisions = logprobs
            aligned = sum_by_answer(logprobs.detach() - collisions, packed)
            weights = (aligned / packed.lengths).exp()
        if self.objective.beside == "cut":
            shared = self.data.shared_logratios(indices, logprobs, packed)
        answers = self.data.answers(indices, sum_by_answer(logprobs, packed))
        return replace(answers, shared=shared, weights=weights)


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


class RankingTask:
    """Reward modelling: ranked answers of a prompt in one packed group, all pairs of different score compared.

    The loss is a mean over prompts of each one's mean over its pairs (arXiv 2203.02155, eq. 1), so that a
    prompt with many answers does not outweigh the others.
    """

    def __init__(
        self,
        engine: Engine,
        shape: ModelShape,
        groups: Sequence[PreferenceGroup],
        objective: BradleyTerry | LogExp,
    ) -> None:
        self.engine, self.shape, self.groups, self.objective = engine, shape, groups, objective
        costs = [
            (AnswerGroup.of(g), g.prompt.kind) for g in groups
        ]  # one look: groups may be read from a file
        packed = is_packed(engine.module.lm)
        self.lengths = [answers.cost(packed) for answers, _ in costs]
        self.kinds = sorted({kind for _, kind in costs})
        by_kind = [f"{what}:{kind}" for kind in self.kinds for what in ("pairs", "right")]
        self.sums = ("loss", "units", "tokens", "flops", "margin", "reward", "answers", *by_kind)

    def sample_id(self, index: int) -> str:
        return self.groups[index].group_id

    def losses(
        self, batch: Sequence[int], micro_batches: Sequence[MicroBatch], sums: Sums, first: bool
    ) -> Iterator[torch.Tensor]:
        for micro in micro_batches:
            groups = [self.groups[i] for i in micro.indices]
            packed = pack_groups([AnswerGroup.of(g) for g in groups], self.engine.device)
            rewards = self.engine.backend(packed)
            pairs = ranked_pairs([g.rewards for g in groups], rewards.device)
            losses = self._losses_of(rewards, pairs)
            means = losses.new_zeros(len(groups)).index_add(0, pairs.group, losses * pairs.weight)
            if micro.filler:
                yield means.sum() * 0.0
                continue
            self._count(groups, rewards, pairs, sums)
            flops = training_flops(forward_flops(self.shape, packed, 0))
            sums.add(loss=means.sum(), units=len(groups), tokens=packed.tokens, flops=flops)
            yield means.sum() / len(batch)

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        pairs = {kind: totals[f"pairs:{kind}"] for kind in self.kinds}
        count = sum(pairs.values())
        by_kind = {f"accuracy_{k}": totals[f"right:{k}"] / n for k, n in pairs.items() if n}
        return {
            "loss": totals["loss"] / totals["units"],
            "accuracy": sum(totals[f"right:{k}"] for k in self.kinds) / count,
            "margin": totals["margin"] / count,
            "reward_mean": totals["reward"] / totals["answers"],
            **(by_kind if len(self.kinds) > 1 else {}),
        }

    def _losses_of(self, rewards: torch.Tensor, pairs: RankedPairs) -> torch.Tensor:
        chosen, rejected = rewards[pairs.better], rewards[pairs.worse]
        if isinstance(self.objective, LogExp):
            return log_exp_loss(chosen, rejected)
        scaled = self.objective.margin == "score_difference"
        margin = pairs.gap * self.objective.margin_scale if scaled else 0.0
        return bradley_terry_loss(chosen, rejected, margin, self.objective.centering)

    @torch.no_grad()
    def _count(
        self, groups: Sequence[PreferenceGroup], rewards: torch.Tensor, pairs: RankedPairs, sums: Sums
    ) -> None:
        margins = rewards[pairs.better] - rewards[pairs.worse]
        sums.add(margin=margins.sum(), reward=rewards.sum(), answers=len(rewards))
        right = (margins.sign().double() + 1) / 2  # a tie counts half, as in RewardBench
        counted = list(zip((g.prompt.kind for g in groups), pairs.counts, strict=True))
        kinds = torch.tensor([self.kinds.index(kind) for kind, count in counted for _ in range(count)])
        places = kinds.to(right.device, non_blocking=True)
        by_kind = right.new_zeros(len(self.kinds)).index_add(0, places, right)
        for place, kind in enumerate(self.kinds):
            known = sum(count for own, count in counted if own == kind)
            sums.add(**{f"pairs:{kind}": known, f"right:{kind}": by_kind[place]})


Task = ImitationTask | PreferenceTask | RankingTask
