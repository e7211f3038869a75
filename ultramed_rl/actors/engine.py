"""A DeepSpeed engine around one module: build, step, export, save. The same on gloo/CPU and NCCL/CUDA.

In bfloat16 DeepSpeed adds steps to float32 weights of its own (masters), of which the module's are roundings. A step of
5e-7 is a hundredth of what bfloat16 can tell apart near a weight of 0.02: only in the masters do small steps add up, so
they go on from round to round and lie beside a checkpoint's weights.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ultramed_rl.actors.deepspeed_setup import EngineSpec, deepspeed_config, settle_persistence
from ultramed_rl.actors.host_memory import HostMemory
from ultramed_rl.models.files import text_model
from ultramed_rl.models.load import ADAPTER_FOLDER, PolicyModel, RewardModel, save_model
from ultramed_rl.models.lora import (
    adapter_parameters,
    adapter_state,
    has_adapters,
    merged_shapes,
    merged_weights,
    save_adapter,
)
from ultramed_rl.models.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from ultramed_rl.actors.tasks import Sums

logger = logging.getLogger(__name__)

_FIX = "look at them, or lower training.learning_rate"
_SAMPLE = 2**20  # values of a rank by which a round's update is judged


class NonFiniteError(RuntimeError):
    """A loss or gradient that isn't finite. Nothing was saved from it."""


class Engine:
    """One rank of a training engine.

    To DeepSpeed all ranks are data-parallel. Those that share a micro-batch have its loss alike, and by it different parts of
    its gradient: added up over all ranks, gradients are those of one rank that computes everything.
    """

    def __init__(self, module: PolicyModel | RewardModel, spec: EngineSpec) -> None:
        import deepspeed
        from deepspeed.utils import set_z3_leaf_module

        self.spec = spec
        if (head := module.lm.get_output_embeddings()) is not None:
            set_z3_leaf_module(head, True)  # it is called once a pass, and with it its adapters are gathered
        # Which experts are called, and in what order, is not the same on all ranks.
        for block in (m for m in module.lm.modules() if hasattr(m, "experts")):
            set_z3_leaf_module(block, True)
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
        settle_persistence(module, config)
        self.backend, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        if spec.group.zero_stage < 2:
            for parameter in trainable:
                parameter.grad_dtype = torch.float32
        self.module: PolicyModel | RewardModel = self.backend.module
        self.device = torch.device(spec.device)
        self.skipped_steps = 0
        self._host_sums: list[torch.Tensor] = []  # of this rank's gradients, see `_keep_in_float32`
        self._host = HostMemory()
        self._begun: torch.Tensor | None = None  # of the masters, when the round began
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

    # -- step ----------------------------------------------------------------------------------------------

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

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks; of those that share micro-batches, each of which has the same numbers, the mean counts."""
        summed = values.detach().clone().to(self.device)
        dist.all_reduce(summed)
        return summed / self.spec.group.sequence_parallel

    # -- weights -------------------------------------------------------------------------------------------

    @contextmanager
    def full(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Within it, ZeRO-3's partitioned parameters are whole on every rank: all of them by one gather, where DeepSpeed's
        GatheredParameters takes one for each. Collective."""
        split: list[Any] = []
        if self.spec.group.zero_stage == 3:
            from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

            # Small ones are whole at all times.
            split = [p for p in parameters if getattr(p, "ds_status", None) == ZeroParamStatus.NOT_AVAILABLE]
        if split:
            split[0].all_gather_coalesced(split).wait()
        try:
            yield
        finally:
            if split:
                split[0].partition(param_list=split)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that a checkpoint holds, whole, one at a time, under its Hugging Face name. Collective."""
        yield from merged_weights(self.module.lm, self.full)

    def weight_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, type and whole shape of everything that `weights` yields, in its order."""
        return list(merged_shapes(self.module.lm))

    def adapters(self) -> dict[str, torch.Tensor]:
        """A LoRA model's adapters by peft's names, on the CPU. Collective."""
        with self.full(adapter_parameters(self.module.lm)):
            return adapter_state(self.module.lm)

    def save(self, directory: str, tokenizer: ChatTokenizer) -> None:
        """Write a Hugging Face checkpoint from rank 0; adapters beside the merged weights, which cannot be taken apart
        again. Collective."""
        main, adapted = dist.get_rank() == 0, has_adapters(self.module.lm)
        # ZeRO-3's gathered and LoRA's merged tensors live for a moment; others are copied by the writer.
        passing = self.spec.group.zero_stage == 3 or adapted
        state: dict[str, torch.Tensor] = {}
        for name, tensor in self.weights():
            if main:
                state[name] = tensor.cpu().clone() if passing else tensor
        if main:
            save_model(self.module, tokenizer.backend, directory, state, tokenizer.end_id)
        if adapted:
            adapters = self.adapters()
            if main:
                save_adapter(self.module.lm, adapters, Path(directory) / ADAPTER_FOLDER)
        dist.barrier()

    # -- the optimizer's state -----------------------------------------------------------------------------

    def start_round(self, fresh: bool) -> None:
        """Begin a round, if `fresh` with Adam's moments anew. bfloat16's masters go on: steps too small for it add up."""
        self.skipped_steps = 0
        self._begun = sample_of(masters) if (masters := self.masters()) else None
        if fresh:
            self._forget_moments()

    def _forget_moments(self) -> None:
        optimizer = self.backend.optimizer
        for state in getattr(optimizer, "optimizer", optimizer).state.values():
            for name, value in state.items():
                if torch.is_tensor(value):
                    value.zero_()
                elif name == "step":  # DeepSpeedCPUAdam's is a number
                    state[name] = 0

    def update_survives(self) -> float:
        """The share of the weights' change since `start_round` that shows in what checkpoints and engines hold, see
        `surviving`; 1.0 in float32, and where nothing changed. Collective."""
        masters = self.masters()
        if not masters:
            return 1.0
        assert self._begun is not None, "no round was begun"
        shown, moved = self.total(surviving(self._begun, sample_of(masters))).tolist()
        return shown / moved if moved else 1.0

    def masters(self) -> list[torch.Tensor]:
        """This rank's masters where DeepSpeed's optimizer keeps them: flat parts of all, or without ZeRO each whole. None
        in float32, where the weights are their own."""
        optimizer = self.backend.optimizer
        if self.spec.precision == "float32":
            return []
        if self.spec.group.zero_stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        if self.spec.group.zero_stage > 0:
            return list(optimizer.single_partition_of_fp32_groups)
        return [master for group in optimizer.fp32_groups for master in group]

    def save_state(self, directory: str, moments: bool = True) -> None:
        """What training needs besides the weights to go on from exactly here: with Adam's `moments` DeepSpeed's own
        sharded state, else bfloat16's masters alone, a file for each rank. Collective."""
        folder = Path(directory)
        if moments:
            # A LoRA policy's frozen weights are its base model's.
            frozen = has_adapters(self.module.lm)
            self.backend.save_checkpoint(directory, tag="optimizer", exclude_frozen_parameters=frozen)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            masters = {f"{k:05d}": m.detach().cpu().contiguous() for k, m in enumerate(self.masters())}
            save_file(masters, folder / self._masters_file)
        if dist.get_rank() == 0:
            # DeepSpeed's recovery script is code in a data directory; nothing here runs it.
            (folder / "zero_to_fp32.py").unlink(missing_ok=True)
            (folder / "ranks.json").write_text(json.dumps({"ranks": dist.get_world_size()}))
        dist.barrier()

    def load_state(self, directory: str) -> None:
        """Restore what `save_state` wrote. The number of ranks must be the same. Collective. Raises ValueError:
        nothing was written there, or by another number of ranks or another ZeRO stage."""
        folder = Path(directory)
        if not (folder / "ranks.json").exists():
            raise ValueError(
                f"{folder}/ranks.json: not there, and with it what training goes on from besides the weights; put it "
                f"back, or begin a new run with policy.path={folder.parent}"
            )
        saved = json.loads((folder / "ranks.json").read_text())["ranks"]
        if saved != dist.get_world_size():
            raise ValueError(
                f"optimizer state in {directory} is of {saved} ranks, this run has {dist.get_world_size()}; "
                "use the same cluster.policy.ranks"
            )
        if (folder / self._masters_file).exists():
            self._read_masters(folder / self._masters_file)
        else:
            strict = not has_adapters(self.module.lm)
            self.backend.load_checkpoint(directory, tag="optimizer", load_module_strict=strict)

    def _read_masters(self, file: Path) -> None:
        masters = self.masters()
        with safe_open(file, "pt") as stored:
            names = sorted(stored.keys())
            sizes = [tuple(stored.get_slice(name).get_shape()) for name in names]
            if sizes != (wanted := [tuple(master.shape) for master in masters]):
                raise ValueError(
                    f"{file}: float32 weights in parts of {sizes[:4]}, and this run's are {wanted[:4]}; "
                    "use the same cluster.policy.ranks and zero_stage"
                )
            for name, master in zip(names, masters, strict=True):
                master.data.copy_(stored.get_tensor(name))

    @property
    def _masters_file(self) -> str:
        return f"masters-{dist.get_rank():05d}.safetensors"

    # -- leaving the device --------------------------------------------------------------------------------

    def offload(self) -> None:
        """Move everything off the GPU while other roles have it. Nothing to do on CPU."""
        if self.device.type == "cpu":
            return
        if self.spec.group.zero_stage > 0:
            from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

            # At stage 3 DeepSpeed moves masters of its own FusedAdam only; those of ours are moved below.
            own = State.contiguous_grad_buffer if self.spec.group.zero_stage == 3 else State.hp_params
            self.backend.offload_states(include=[own, State.lp_params, State.lp_grads])
        self._host.store(self._left())
        self._move_gradients("cpu")
        torch.cuda.empty_cache()

    def reload(self) -> None:
        """Undo `offload`."""
        if self.device.type == "cpu":
            return
        if self.spec.group.zero_stage > 0:
            held = vars(self.backend.optimizer)
            pinned = {name: kept for name, kept in held.items() if name.endswith("_pin_buffers")}
            self.backend.reload_states()
            held.update(pinned)  # stages 1 and 2 give them up, and would lock others the next time
        self._host.restore(self._left(), self.device)
        self._move_gradients(self.device)

    def _left(self) -> list[torch.Tensor]:
        """What DeepSpeed leaves on the GPU: all of stage 0, frozen weights of stages 1 and 2, masters of 3, Adam's moments."""
        stage = self.spec.group.zero_stage
        left: list[torch.Tensor] = []
        if stage < 3:
            left += [p for p in self.module.parameters() if stage == 0 or not p.requires_grad]
            left += self.module.buffers()
        if self.spec.group.offload_optimizer:
            return left
        optimizer = self.backend.optimizer
        left += getattr(optimizer, "fp32_partitioned_groups_flat", ())  # of stage 3
        # Of stage 0 in bfloat16.
        left += [master for group in getattr(optimizer, "fp32_groups", ()) for master in group]
        states = getattr(optimizer, "optimizer", optimizer).state.values()
        return left + [v for state in states for v in state.values() if torch.is_tensor(v) and v.dim()]

    def _move_gradients(self, device: torch.device | str) -> None:
        """Those of stage 0, where a step leaves any."""
        for parameter in self.module.parameters() if self.spec.group.zero_stage == 0 else ():
            if parameter.grad is not None:
                parameter.grad.data = parameter.grad.data.to(device)


def checkpoint_layers(lm: Any, count: int | None) -> None:
    """Compute the activations of a model's layers again in the backward pass: of all of them, or so many from the first on.
    Their turn comes last, when what the others keep is gone: so the one that is whole at a time takes that room."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if count is not None:
        layers = [m for m in text_model(lm).modules() if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers[count:]:
            layer.gradient_checkpointing = False


def sample_of(masters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values of a rank's masters at even distances, all of them where they are few; float32, on the host."""
    # An odd distance: not the same column of every matrix.
    distance = sum(master.numel() for master in masters) // _SAMPLE | 1
    return torch.cat([master.detach().flatten()[::distance].cpu() for master in masters])


def surviving(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How far an update u = after - before moved the bfloat16 weights along u, and |u|^2: [2] float64.

    The first over the second, summed over ranks, is the share of the update that shows in bfloat16: 0 where every
    weight rounds to what it was, 1 where rounding hides nothing. Rounding up and down even out, also over rounds: what
    one of them hides, a later one shows on top of its own.
    """
    update = after.double() - before.double()
    shown = after.bfloat16().double() - before.bfloat16().double()
    return torch.stack([(shown * update).sum(), update.square().sum()])
