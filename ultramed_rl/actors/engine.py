"""A DeepSpeed engine around one module, and its steps. The same on gloo/CPU and NCCL/CUDA."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ultramed_rl.actors.deepspeed_setup import EngineSpec, deepspeed_config, settle_splitting
from ultramed_rl.actors.engine_state import EngineState
from ultramed_rl.models.files import text_model
from ultramed_rl.models.load import PolicyModel, RewardModel

if TYPE_CHECKING:
    from ultramed_rl.actors.tasks import Sums

logger = logging.getLogger(__name__)

_FIX = "look at them, or lower training.learning_rate"


class NonFiniteError(RuntimeError):
    """A loss or gradient that isn't finite. Nothing was saved from it."""


class Engine(EngineState):
    """One rank of a training engine.

    To DeepSpeed all ranks are data-parallel. Those that share a micro-batch have its loss alike, and by it different parts of
    its gradient: added up over all ranks, gradients are those of one rank that computes everything.
    """

    def __init__(self, module: PolicyModel | RewardModel, spec: EngineSpec) -> None:
        import deepspeed

        if spec.training.gradient_checkpointing:
            checkpoint_layers(module.lm, spec.training.checkpointed_layers)
        trainable = [p for p in module.parameters() if p.requires_grad]
        decay = spec.training.weight_decay
        constants: dict[str, Any] = {"lr": 0.0, "betas": (0.9, 0.95), "weight_decay": decay}
        if spec.group.offload_optimizer:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            optimizer = DeepSpeedCPUAdam(trainable, adamw_mode=True, **constants)
        else:
            optimizer = torch.optim.AdamW(trainable, fused=True, **constants)
        config = deepspeed_config(spec, module.lm)
        settle_splitting(module, config)
        backend, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        super().__init__(backend, spec)
        if spec.group.zero_stage < 2:
            for parameter in trainable:
                parameter.grad_dtype = torch.float32
        if dist.get_world_size() == 1:
            # Stage 0 would copy all gradients into a buffer and back, to reduce them over a single rank. What it does
            # before stays: a weight without a gradient gets one of zeros, as on several ranks.
            backend.allreduce_no_retain = lambda *_, **__: None
        self.skipped_steps = 0
        self._host_sums: list[torch.Tensor] = []  # of this rank's gradients, see `_keep_in_float32`
        if spec.group.zero_stage == 3:
            self._record_backward_too()
        self._forget_moments()  # DeepSpeed's stage 0 has taken an empty step to make them, in bfloat16

    def _record_backward_too(self) -> None:
        """ZeRO-3 records the calls of one pass, to fetch weights ahead in those after it, and forgets them where one has more.
        A pass without gradients that was recorded (KTO's reference points, an evaluation before the first step) has no
        backward half, so the next pass with gradients is recorded instead. One without them is then its first half."""
        coordinator = self.backend.optimizer.parameter_offload.get_param_coordinator()
        whole = False

        def before(*_: Any) -> None:
            nonlocal whole
            if torch.is_grad_enabled() and not whole and not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()
            if coordinator.is_invalid_trace():
                whole = torch.is_grad_enabled()

        self.module.register_forward_pre_hook(before, prepend=True)

    def start_round(self, fresh: bool) -> None:
        """Begin a round as `EngineState.start_round` does, and count skipped steps anew."""
        super().start_round(fresh)
        self.skipped_steps = 0

    def step(
        self,
        losses: Iterator[torch.Tensor],
        micro_batches: int,
        rate: float,
        ids: Sequence[str],
        sums: Sums,
    ) -> tuple[float, dict[str, float]]:
        """Accumulate this rank's micro-batch losses and take one optimizer step. Collective.

        Ranks agree once, and the device is read once: of the whole batch's losses, gradients and `sums`, when all
        backward passes are under way. A step whose gradient is not finite leaves the weights as they are.

        Args:
            losses: scaled so that their sum over all micro-batches and ranks is the batch's loss.
            sums: what `losses` adds to as it goes.

        Returns:
            the gradient norm before clipping, NaN for a skipped step; and the sums over all ranks.

        Raises:
            NonFiniteError: naming `ids`, before a gradient of a batch with a non-finite loss moves a weight, or when
                more than `max_skipped_steps` steps since `start_round` had a non-finite gradient.
        """
        ranks = dist.get_world_size()
        broken = torch.zeros((), dtype=torch.float64, device=self.device)
        for index, loss in enumerate(losses):
            finite = torch.isfinite(loss.detach())
            broken += ~finite
            last = index == micro_batches - 1
            if self._sums_on_host:  # to DeepSpeed each micro-batch is a step's only one
                self.backend.optimizer.micro_step_id = -1
            self.backend.set_gradient_accumulation_boundary(last or self._sums_on_host)
            # Replaced, not left out: other ranks wait in this backward pass. DeepSpeed averages gradients over ranks.
            self.backend.backward(torch.where(finite, loss, torch.zeros_like(loss)) * ranks)
            self._keep_in_float32(last)
        # Of these the square alone isn't the same on ranks that share a micro-batch.
        square = self._own_square() * self.spec.group.sequence_parallel
        own = torch.cat([sums.values, torch.stack([broken, square])])
        *totals, non_finite, square = self.total(
            own
        ).tolist()  # all that a step waits for: ranks, then the device
        if non_finite:
            raise NonFiniteError(f"loss is not finite; the batch holds {', '.join(ids)}; {_FIX}")
        norm = math.sqrt(square) if math.isfinite(square) else math.nan
        if math.isnan(norm):
            self._discard_gradients(ids)
        for group in self.backend.optimizer.param_groups:
            group["lr"] = 0.0 if math.isnan(norm) else rate
        self.backend.step()
        return norm, dict(zip(sums.names, totals, strict=True))

    @property
    def _sums_on_host(self) -> bool:
        return self.spec.group.offload_optimizer and self.spec.group.zero_stage == 2

    def _keep_in_float32(self, last: bool) -> None:
        """Stages 0, 1 and 3 add up micro-batches in float32 by themselves; bfloat16 would lose what is below 2^-8 of the sum.
        Stage 2 adds them to the first one's gradients in these gradients' type; with the optimizer on the host it would
        round the sum to bfloat16 again and again, so each micro-batch's gradients are added to the others' here."""
        if self._sums_on_host:
            self._add_on_host(last)
            return
        for kept in getattr(self.backend.optimizer, "all_grad_tensors", {}).values():
            if kept is not None:
                kept[:] = [gradient.float() for gradient in kept]

    def _add_on_host(self, last: bool) -> None:
        """Add a micro-batch's gradients to those before, and give DeepSpeed the sum with the `last`, and its norms."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # DeepSpeed copies them to the host while backward goes on
        gradients, optimizer = self._gradients(), self.backend.optimizer
        self._host_sums = self._host_sums or [torch.zeros_like(g) for g in gradients]
        for kept, gradient in zip(self._host_sums, gradients, strict=True):
            kept += gradient
            gradient.zero_()
            if last:
                gradient += kept
                kept.zero_()
        if last:  # it clips by the norms that it took of the last micro-batch alone
            for name in optimizer.norm_for_param_grads:
                group, _, start, size = optimizer.grad_position[name]
                part = optimizer.single_partition_of_fp32_groups[group].grad[start : start + size]
                optimizer.norm_for_param_grads[name] = torch.linalg.vector_norm(part)

    def _own_square(self) -> torch.Tensor:
        """This rank's part of the squared gradient norm, float64, on the device."""
        if self.spec.group.offload_optimizer and self.device.type == "cuda":
            torch.cuda.synchronize()  # DeepSpeed copies gradients to the host while backward goes on
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self._gradients()]
        if not norms:  # more ranks than weights
            return torch.zeros((), dtype=torch.float64, device=self.device)
        square = torch.stack(norms).double().square().sum().to(self.device, non_blocking=True)
        # Without ZeRO each rank has all gradients, averaged already.
        return square / dist.get_world_size() if self.spec.group.zero_stage == 0 else square

    def _gradients(self) -> list[torch.Tensor]:
        """This rank's gradients, wherever the ZeRO stage keeps them."""
        optimizer = self.backend.optimizer
        if self.spec.group.offload_optimizer:  # on the host, at the masters, which there are in float32 too
            sharded = self.spec.group.zero_stage == 3
            flat = "fp32_partitioned_groups_flat" if sharded else "single_partition_of_fp32_groups"
            return [master.grad for master in getattr(optimizer, flat) if master.grad is not None]
        if partitioned := getattr(optimizer, "averaged_gradients", None):  # a part of each, of ZeRO 1 to 3
            return [g for group in partitioned.values() for g in group or () if g is not None]
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def _discard_gradients(self, ids: Sequence[str]) -> None:
        """Clipping cannot mend an infinite norm: inf / inf is NaN. The step is taken with a rate of zero and
        tiny gradients (DeepSpeed asserts a positive norm): weights stand still, Adam's moments fade by a step.
        """
        self.skipped_steps += 1
        logger.warning("gradient is not finite; step skipped; the batch holds %s", ", ".join(ids))
        if self.skipped_steps > self.spec.training.max_skipped_steps:
            raise NonFiniteError(
                f"gradient is not finite in {self.skipped_steps} steps, training.max_skipped_steps="
                f"{self.spec.training.max_skipped_steps}; the batch holds {', '.join(ids)}; {_FIX}"
            )
        for gradient in self._gradients():
            gradient.fill_(1e-12)


def checkpoint_layers(lm: Any, count: int | None) -> None:
    """Compute the activations of a model's layers again in the backward pass: of all of them, or so many from the first on.
    Their turn comes last, when what the others keep is gone: so the one that is whole at a time takes that room."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if count is not None:
        layers = [m for m in text_model(lm).modules() if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers[count:]:
            layer.gradient_checkpointing = False
