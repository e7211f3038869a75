"""Ranks: how they meet and agree, and how DeepSpeed is set up on them, for training and for frozen models."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.learning.costs import reduced_at_once, zero3_limits
from ultramed_rl.models.files import decoder_config, text_model, whole_size
from ultramed_rl.models.load import PolicyModel, RewardModel


@dataclass(frozen=True)
class EngineSpec:
    """How a module is trained; `precision` is "float32" or "bfloat16"."""

    device: str
    precision: str
    group: TrainerGroup
    training: Optimization


def open_store(ranks: int) -> torch.distributed.TCPStore:
    """The store through which ranks find each other, for the first of them: it listens at `store.port` of its node's
    address alone, which is loopback where a run has one machine. The one that torch would open in `join_ranks` listens on
    all interfaces."""
    import ray

    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    port = listener.getsockname()[1]
    how: dict[str, Any] = {"wait_for_workers": False, "multi_tenant": True}
    return torch.distributed.TCPStore(
        address, port, ranks, is_master=True, master_listen_fd=listener.detach(), **how
    )


def join_ranks(rank: int, world_size: int, address: str, port: int, device: str) -> None:
    """Join the process group of the policy's ranks. The first has opened a store at this address, which torch takes."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", MASTER_ADDR=address, MASTER_PORT=str(port)
    )
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import Init

    # On CPU DeepSpeed would compile a shared-memory all-reduce first: a minute, and a compiler on the machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(0)
    else:
        # Of a module's gathers at loading DeepSpeed 0.19.6 waits for the last alone (partition_parameters.py:2082). NCCL ends them in
        # order; gloo's threads don't, and one that ended late wrote what a weight was before loading over what was loaded.
        each = Init._allgather_params_sequential
        Init._allgather_params_coalesced = lambda init, split, *_, **__: each(init, split)
    deepspeed.init_distributed(dist_backend=backend, rank=rank, world_size=world_size, verbose=False)


def sharing_ranks(count: int) -> torch.distributed.ProcessGroup | None:
    """The ranks that share this one's micro-batches, itself among them: so many that follow each other, and with them are on
    one node where that has a multiple. Collective."""
    return torch.distributed.new_subgroups(count)[0] if count > 1 else None


def most_of_ranks(count: int, device: torch.device | str) -> int:
    """The largest count among ranks that must do something equally often. Collective."""
    most = torch.tensor(count, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def deepspeed_config(spec: EngineSpec, lm: nn.Module | None = None) -> dict[str, Any]:
    """DeepSpeed's own config, complete with the model. Accumulation is ours (see `Engine.step`), so it is 1 there."""
    zero: dict[str, Any] = {"stage": spec.group.zero_stage}
    if spec.group.zero_stage == 3 and lm is not None:
        zero |= limits_of(lm)
    if lm is not None:  # what is never filled is not laid out: a gigabyte, of a small model too
        zero["reduce_bucket_size"] = reduced_at_once(sum(map(whole_size, lm.parameters())))
    if spec.group.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    # Of gradients that are partitioned; with it stage 1 would have another optimizer. See `Engine` for the other stages.
    summed_in = {"grad_accum_dtype": "fp32"} if spec.group.zero_stage >= 2 else {}
    return {
        "data_types": summed_in,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.training.max_grad_norm,
        "zero_optimization": zero,
        # `Engine.step` has looked at the gradients: DeepSpeed's own look would wait for the device once more.
        "bf16": {"enabled": spec.precision == "bfloat16", "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def settle_splitting(module: PolicyModel | RewardModel, config: dict[str, Any]) -> None:
    """What stage 3 gathers as one, and what it never splits, before an engine takes the module.

    As one: a head, which is called once a pass, with its adapters; and a block of experts, of which ranks call others, in
    another order. Never split is what this config says alone: `zero.Init` had another limit while it loaded, and what is
    above the engine's and below that one would stay whole, and never be updated.
    """
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import set_z3_leaf_module

    head = module.lm.get_output_embeddings()
    blocks = (part for part in module.lm.modules() if hasattr(part, "experts"))
    for part in (*blocks, *([head] if head is not None else [])):
        set_z3_leaf_module(part, True)
    if limit := config["zero_optimization"].get("stage3_param_persistence_threshold"):
        Init.param_persistence_threshold = limit  # of adapters, which are split when the engine begins
        for parameter in module.parameters():
            parameter.ds_persist = False


def limits_of(lm: Any) -> dict[str, int]:
    """What stage 3 gathers ahead and keeps of a model, which may be split already."""
    layers = next(m for m in text_model(lm).modules() if isinstance(m, nn.ModuleList))
    ends = (m for m in (lm.get_input_embeddings(), lm.get_output_embeddings()) if m is not None)

    def largest(modules: Iterable[nn.Module]) -> int:
        return max(sum(map(whole_size, module.parameters())) for module in modules)

    return zero3_limits(largest(layers), largest(ends), decoder_config(lm.config).hidden_size)


def loading_context(config: dict[str, Any]) -> Any:
    """With ZeRO-3, `from_pretrained` must know of this config, so that no rank ever holds the whole model. Keep it alive."""
    if config["zero_optimization"]["stage"] != 3:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)


def inference_config(precision: str, lm: nn.Module | None = None) -> dict[str, Any]:
    """ZeRO-3 for a frozen model, complete with it: weights are split over ranks and stream from host memory."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": torch.cuda.is_available()},
            **(limits_of(lm) if lm is not None else {}),
        },
        "bf16": {"enabled": precision == "bfloat16"},
        "steps_per_print": 10**9,
    }


def build_host_adam() -> None:
    """Compile DeepSpeed's Adam for the host, or load it where that was done. Raises ValueError: this machine cannot."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # the builder's own, a compiler's, or of a path that is None
        raise ValueError(
            f"offload_optimizer=true: DeepSpeed cannot compile its Adam for the host ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); install a C++ compiler, ninja and the toolkit of CUDA {torch.version.cuda} and "
            "set CUDA_HOME, or with one of another 13.x set DS_SKIP_CUDA_CHECK=1; or set offload_optimizer=false"
        ) from None


def shard_for_inference(module: PolicyModel | RewardModel, precision: str) -> nn.Module:
    """Wrap a frozen module that was loaded under `loading_context`. Collective."""
    import deepspeed

    config = inference_config(precision, module.lm)
    settle_splitting(module, config)
    backend, *_ = deepspeed.initialize(model=module, config=config)
    backend.eval()  # DeepSpeed's returns nothing
    return backend
