"""The float32 weights that bfloat16 training adds its steps to (masters): a rank's own, on disk, and how much of what they
took up shows in bfloat16.

A step of 5e-7 is a hundredth of what bfloat16 can tell apart near a weight of 0.02: only in the masters do small steps add
up, so they go on from round to round and lie beside a checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ultramed_rl.actors.deepspeed_setup import EngineSpec

_SAMPLE = 2**20  # values of a rank by which a round's update is judged


def masters_of(optimizer: Any, spec: EngineSpec) -> list[torch.Tensor]:
    """A rank's masters where DeepSpeed's optimizer keeps them: flat parts of all, or without ZeRO each whole. None in float32,
    where the weights are their own."""
    if spec.precision == "float32":
        return []
    if spec.zero_stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if spec.zero_stage > 0:
        return list(optimizer.single_partition_of_fp32_groups)
    return [master for group in optimizer.fp32_groups for master in group]


def write_masters(masters: Sequence[torch.Tensor], file: Path) -> None:
    """Write a rank's masters as safetensors."""
    from safetensors.torch import save_file

    save_file({f"{k:05d}": m.detach().cpu().contiguous() for k, m in enumerate(masters)}, file)


def read_masters(masters: Sequence[torch.Tensor], file: Path) -> None:
    """Put what `write_masters` wrote in the masters' place.

    Raises:
        ValueError: they were cut up in another way.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        names = sorted(stored.keys())
        sizes = [tuple(stored.get_slice(name).get_shape()) for name in names]
        if sizes != [tuple(master.shape) for master in masters]:
            raise ValueError(
                f"{file}: float32 weights in parts of {sizes[:4]}, and this run's are {[tuple(m.shape) for m in masters[:4]]}; "
                "use the same cluster.policy.ranks and zero_stage"
            )
        for name, master in zip(names, masters, strict=True):
            master.data.copy_(stored.get_tensor(name))


def sample_of(masters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values of a rank's masters at even distances, all of them where they are few; float32, on the host."""
    distance = (
        sum(master.numel() for master in masters) // _SAMPLE | 1
    )  # odd: not the same column of every matrix
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
