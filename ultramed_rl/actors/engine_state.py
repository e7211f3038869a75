"""What a rank's engine holds: weights, float32 masters, Adam's moments. Read, kept, restored, and moved off the device.

In bfloat16 DeepSpeed adds steps to float32 weights of its own (masters), of which the module's are roundings. A step of
5e-7 is a hundredth of what bfloat16 can tell apart near a weight of 0.02: only in the masters do small steps add up, so
they go on from round to round and lie beside a checkpoint's weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.host_memory import HostMemory
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

_SAMPLE = 2**20  # values of a rank by which a round's update is judged


class EngineState:
    """One rank's part of a DeepSpeed engine's weights and optimizer, wherever its ZeRO stage keeps them."""

    def __init__(self, backend: Any, spec: EngineSpec) -> None:
        self.backend, self.spec = backend, spec
        self.module: PolicyModel | RewardModel = backend.module
        self.device = torch.device(spec.device)
        self._host = HostMemory()
        self._begun: torch.Tensor | None = None  # of the masters, when the round began

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
