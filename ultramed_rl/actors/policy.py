"""The policy's ranks: a round of preference optimisation, checkpoints, and weights for the engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ultramed_rl.actors.engine import EngineSpec
from ultramed_rl.actors.trainer import TrainWorker
from ultramed_rl.actors.weight_sync import Sender, make_sender
from ultramed_rl.config.rounds import Objective, Training
from ultramed_rl.learning.batching import MicroBatch, epoch_batches, pad_batch, shard_batch
from ultramed_rl.learning.logprobs import sum_by_row
from ultramed_rl.learning.objectives import dpo_loss, kl_estimate, kto_pair_loss
from ultramed_rl.learning.schedule import learning_rate, step_progress
from ultramed_rl.models.load import PolicyModel, load_policy
from ultramed_rl.records import PreferencePair, ReferenceLogprobs


@dataclass(frozen=True)
class RoundPlace:
    """Where in the run a round's training stands; `rounds` is 1 when each round has its own schedule."""

    index: int
    rounds: int
    seed: int


class PolicyWorker(TrainWorker):
    """One rank of the policy."""

    sender: Sender | None = None

    def load(
        self, path: str, spec: EngineSpec, address: tuple[str, int], trust_remote_code: bool = False
    ) -> None:
        """Load the policy from a checkpoint. Collective."""

        def module_of(spec: EngineSpec) -> PolicyModel:
            return load_policy(path, spec.precision, spec.device, trust_remote_code=trust_remote_code)

        self.build(module_of, path, spec, address)

    def start_round(self) -> None:
        """Fresh optimizer, from exactly the weights that the engines sample with. Collective."""
        self.engine.start_round()

    def save_optimizer(self, directory: str) -> None:
        """Write the optimizer's state. Collective."""
        self.engine.save_optimizer(directory)

    def load_optimizer(self, directory: str) -> None:
        """Restore the optimizer's state. Collective."""
        self.engine.load_optimizer(directory)

    def train(
        self,
        pairs: Sequence[PreferencePair],
        references: Sequence[ReferenceLogprobs],
        objective: Objective,
        training: Training,
        place: RoundPlace,
    ) -> Iterator[dict[str, float]]:
        """One round of training; yields each optimizer step's metrics. Collective.

        Raises:
            NonFiniteError: with the batch's pair ids; a non-finite loss never becomes a gradient, and
                nothing is saved after a non-finite gradient.
        """
        data = _TrainingData(pairs, references)
        batches = epoch_batches(len(pairs), training.batch_size, training.epochs, place.seed)
        for step, batch in enumerate(batches):
            progress = step_progress(step, len(batches), place.index, place.rounds)
            rate = learning_rate(
                progress, peak=training.learning_rate, warmup=training.warmup, shape=training.schedule
            )
            micro_batches = shard_batch(batch, data.lengths, training.micro_batch_size, self.world_size)[
                self.rank
            ]
            metrics = self._step(data, batch, micro_batches, objective, rate)
            yield {"step": step, "pairs": len(batch), "learning_rate": rate, **metrics}

    def _step(
        self,
        data: _TrainingData,
        batch: Sequence[int],
        micro_batches: Sequence[MicroBatch],
        objective: Objective,
        rate: float,
    ) -> dict[str, float]:
        kl = self._batch_kl(data, micro_batches) if objective.type == "kto_pair" else None
        totals = torch.zeros(6, dtype=torch.float64)
        losses = partial(self._losses, data, micro_batches, len(batch), objective, kl, totals)
        norm = self.engine.step(losses(), len(micro_batches), rate, [data.pairs[i].pair_id for i in batch])
        loss, correct, chosen, rejected, tokens, count = self.engine.total(totals).tolist()
        return {
            "loss": loss / count,
            "accuracy": correct / count,
            "chosen_logratio": chosen / count,
            "rejected_logratio": rejected / count,
            "implicit_margin": objective.beta * (chosen - rejected) / count,
            "grad_norm": norm,
            "tokens": tokens,
        }

    def _losses(
        self,
        data: _TrainingData,
        micro_batches: Sequence[MicroBatch],
        batch_size: int,
        objective: Objective,
        kl: tuple[torch.Tensor, torch.Tensor] | None,
        totals: torch.Tensor,
    ) -> Iterator[torch.Tensor]:
        for micro in micro_batches:
            chosen, rejected = self._logratios(data, micro)
            losses = _objective_losses(objective, chosen, rejected, kl)
            if micro.filler:
                yield losses.sum() * 0.0
                continue
            totals += torch.tensor(
                [
                    losses.detach().sum(),
                    (chosen > rejected).sum(),
                    chosen.detach().sum(),
                    rejected.detach().sum(),
                    sum(data.lengths[i] for i in micro.indices),
                    len(micro.indices),
                ],
                dtype=torch.float64,
            )
            yield losses.sum() / batch_size

    def _logratios(self, data: _TrainingData, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi - log pi_ref of chosen and rejected, [B] each; both sides in one forward pass."""
        batch = pad_batch(data.sequences(micro.indices), self.tokenizer.pad_id, self.engine.device)
        flat = self.engine.backend(batch.input_ids, batch.attention_mask, batch.completion_mask)
        logprobs = sum_by_row(flat, batch.completion_mask)
        chosen, rejected = logprobs.chunk(2)
        references = data.reference_tensor(micro.indices).to(self.engine.device)
        return chosen - references[0], rejected - references[1]

    @torch.no_grad()
    def _batch_kl(
        self, data: _TrainingData, micro_batches: Sequence[MicroBatch]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """KTO's reference points over the whole batch, so that they don't depend on micro-batches or ranks."""
        sums = torch.zeros(3, dtype=torch.float64)
        for micro in micro_batches:
            chosen, rejected = self._logratios(data, micro)
            if not micro.filler:
                sums += torch.tensor([chosen.sum(), rejected.sum(), len(micro.indices)], dtype=torch.float64)
        chosen_sum, rejected_sum, count = self.engine.total(sums).float()
        return kl_estimate(chosen_sum / count), kl_estimate(rejected_sum / count)

    def connect(self, backend: str, engines: Sequence[object], tensor_parallel: int) -> None:
        """Open the way of the weights to the rollout engines. Collective."""
        self.sender = make_sender(backend, self.engine, engines, tensor_parallel)

    def send_weights(self, version: int) -> dict[str, float]:
        """Put the current weights into every rollout engine under this version. Collective."""
        assert self.sender is not None
        return self.sender.send(version)


def _objective_losses(
    objective: Objective,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    kl: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    if objective.type == "dpo":
        return dpo_loss(chosen, rejected, beta=objective.beta, label_smoothing=objective.label_smoothing)
    assert kl is not None
    return kto_pair_loss(chosen, rejected, *kl, beta=objective.beta)


class _TrainingData:
    """Pairs with their reference logprobs, in matching order."""

    def __init__(self, pairs: Sequence[PreferencePair], references: Sequence[ReferenceLogprobs]) -> None:
        if [p.pair_id for p in pairs] != [r.pair_id for r in references]:
            raise ValueError("reference logprobs are of other pairs; delete the round's reference.parquet")
        self.pairs, self.references = pairs, references
        self.lengths = [
            2 * len(p.prompt.token_ids) + len(p.chosen.token_ids) + len(p.rejected.token_ids) for p in pairs
        ]

    def sequences(self, indices: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        chosen = [(self.pairs[i].prompt.token_ids, self.pairs[i].chosen.token_ids) for i in indices]
        return chosen + [(self.pairs[i].prompt.token_ids, self.pairs[i].rejected.token_ids) for i in indices]

    def reference_tensor(self, indices: Sequence[int]) -> torch.Tensor:
        """[2, B]: chosen and rejected reference logprobs."""
        rows = [(self.references[i].chosen, self.references[i].rejected) for i in indices]
        return torch.tensor(rows).T
