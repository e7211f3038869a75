"""Weights that ZeRO-3 splits over ranks as they are read are the file's, and made whole a layer at a time, by one collective."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from tests.tiny import make_model
from ultramed_rl.models.load import load_policy

# Modules with several weights of their own: a bias beside a matrix, experts' matrices side by side.
KINDS = {
    **{"plain": "llama", "lora": "llama"},
    **{kind: kind for kind in ("qwen2", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")},
}


class Late:
    """A collective that ends when it is waited for; one that nobody waits for ends later, as gloo's threads may end it."""

    pending: ClassVar[list[Late]] = []

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.pending.append(self)

    def wait(self) -> None:
        if self in self.pending:
            self.pending.remove(self)
            self.act()

    @classmethod
    def end_all(cls) -> None:
        """The others, as a rank begins something else."""
        while cls.pending:
            cls.pending[0].wait()


def rank_of_two(rank: int, port: int, paths: dict[str, str], folder: str) -> None:
    """Each model's weights as this rank sees them, and how often ranks gathered."""
    calls: list[Any] = []
    gather, broadcast = torch.distributed.all_gather_into_tensor, torch.distributed.broadcast

    def late_gather(*arguments: Any, async_op: bool = False, **named: Any) -> Any:
        calls.append(arguments)
        if async_op:
            return Late(lambda: gather(*arguments, **named))
        return gather(*arguments, **named)

    def later_broadcast(*arguments: Any, **named: Any) -> Any:
        Late.end_all()
        return broadcast(*arguments, **named)

    # Before DeepSpeed takes them.
    torch.distributed.all_gather_into_tensor, torch.distributed.broadcast = late_gather, later_broadcast
    from ultramed_rl.actors import engine as engines
    from ultramed_rl.actors.deepspeed_setup import EngineSpec, deepspeed_config, join_ranks, loading_context
    from ultramed_rl.config.cluster import TrainerGroup
    from ultramed_rl.config.models import LoRA
    from ultramed_rl.config.rounds import Optimization

    torch.set_num_threads(1)
    join_ranks(rank, 2, "127.0.0.1", port, "cpu")
    training = Optimization(gradient_checkpointing=False, max_skipped_steps=0)
    spec = EngineSpec("cpu", "float32", TrainerGroup(zero_stage=3, ranks=2), training)

    def split_all(spec: EngineSpec, lm: Any = None) -> dict[str, Any]:
        config = deepspeed_config(spec, lm)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # no weight is small
        return config

    engines.deepspeed_config = split_all  # type: ignore[assignment]
    found: dict[str, Any] = {}
    for name, path in paths.items():
        lora = LoRA(rank=2, target_modules=["q_proj", "o_proj"]) if name == "lora" else None
        held = loading_context(split_all(spec))
        torch.manual_seed(0)
        policy = load_policy(path, "float32", lora=lora)
        engine = engines.Engine(policy.train(), spec)
        del held
        calls.clear()
        weights = {key: weight.clone() for key, weight in engine.weights()}
        found[name] = (weights, len(calls), {p.ds_status.name for p in policy.parameters()})
    torch.save(found, f"{folder}/{rank}.pt")


def test_a_layers_weights_are_gathered_at_once(tmp_path: Path) -> None:
    """Two layers, what is before them and what is after; with adapters and with experts as without."""
    paths = {name: str(make_model(tmp_path / name, kind)) for name, kind in KINDS.items()}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(rank_of_two, (port, paths, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, path in paths.items():
            weights, gathers, status = found[name]
            plain = load_policy(path, "float32").lm.state_dict()
            assert gathers == 2 + 2, name
            assert status == {"NOT_AVAILABLE"}, "weights stay split"
            assert weights.keys() == plain.keys()
            assert all(torch.equal(weight, plain[key]) for key, weight in weights.items()), name
