"""A training rank with torch and transformers alone: the product's step without DeepSpeed, Ray and vLLM.

What it trains is what ZeRO 0 trains on one device: float32 masters beside bfloat16 weights, gradients added up in float32.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.trainer import TrainWorker
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.models.load import model_shape

Rank = TypeVar("Rank", bound=TrainWorker)


class PlainBackend:
    """What `Engine` uses of DeepSpeed's engine, for one rank."""

    def __init__(self, module: Any, max_norm: float) -> None:
        self.module, self.max_norm = module, max_norm
        self.trained = [p for p in module.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.grad_dtype = torch.float32
        self.masters = [p.detach().float() for p in self.trained]  # in float32 the weights themselves
        self.optimizer = torch.optim.AdamW(self.masters, lr=0.0, betas=(0.9, 0.95), fused=True)

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        pass

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self) -> None:
        for master, parameter in zip(self.masters, self.trained, strict=True):
            master.grad, parameter.grad = parameter.grad, None
        nn.utils.clip_grad_norm_(self.masters, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_copy_([p.detach() for p in self.trained], self.masters)


def plain_rank(
    kind: type[Rank], module: Any, device: str, precision: str, *, checkpointing: bool = False
) -> Rank:
    """The only rank of a training, its module loaded and on the device. It meets itself over a store in its memory."""
    if not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    module.train()
    if checkpointing:
        module.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    training = Optimization(gradient_checkpointing=checkpointing, max_skipped_steps=0)
    worker = kind(0, 1, 0)
    engine = worker.engine = Engine.__new__(Engine)  # its own beginning wraps the module in DeepSpeed
    engine.spec = EngineSpec(device, precision, TrainerGroup(zero_stage=0), training)
    engine.device, engine.skipped_steps, engine.module = torch.device(device), 0, module
    engine.backend = PlainBackend(module, training.max_grad_norm)
    worker.device, worker.shape = device, model_shape(module.lm)
    return worker
