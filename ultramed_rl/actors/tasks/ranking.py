"""Reward modelling: every better answer above every worse one of the same prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.tasks.base import Sums
from ultramed_rl.config.stages import BradleyTerry, LogExp
from ultramed_rl.learning.batching import MicroBatch
from ultramed_rl.learning.flops import ModelShape, forward_flops, training_flops
from ultramed_rl.learning.objectives import bradley_terry_loss, log_exp_loss
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.learning.ranking import RankedPairs, ranked_pairs
from ultramed_rl.models.load import is_packed
from ultramed_rl.records import PreferenceGroup


class RankingTask:
    """Ranked answers of a prompt in one packed group, all pairs of different score compared.

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
        costs = [(AnswerGroup.of(g), g.prompt.kind) for g in groups]
        packed = is_packed(engine.module.lm)
        self.lengths = [a.packed_tokens if packed else a.padded_tokens for a, _ in costs]
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
            forward = forward_flops(self.shape, packed.segments, packed.tokens, 0)
            sums.add(
                loss=means.sum(),
                units=len(groups),
                tokens=packed.tokens,
                flops=training_flops(forward),
            )
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
        by_kind = right.new_zeros(len(self.kinds)).index_add(
            0, kinds.to(right.device, non_blocking=True), right
        )
        for place, kind in enumerate(self.kinds):
            known = sum(count for own, count in counted if own == kind)
            sums.add(**{f"pairs:{kind}": known, f"right:{kind}": by_kind[place]})
