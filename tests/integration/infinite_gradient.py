"""Run by a test in a process of its own: DeepSpeed and its process group don't share one with other tests."""

from __future__ import annotations

import socket
import sys

import torch

from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.engine import NonFiniteError
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.tasks import Sums
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.models import Model
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.learning.packing import AnswerGroup, pack_groups


def main(policy: str, stage: int) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    worker = PolicyWorker(0, 1, 0)
    spec = EngineSpec(
        "cpu",
        "float32",
        TrainerGroup(zero_stage=stage),
        Optimization(gradient_checkpointing=False, max_skipped_steps=1),
    )
    worker.load(Model(path=policy), spec, ("127.0.0.1", port))
    engine = worker.engine
    packed = pack_groups([AnswerGroup([5, 6, 7], [[8, 9], [10]])])

    def loss(broken: bool) -> torch.Tensor:
        total: torch.Tensor = engine.backend(packed).sum()
        # sqrt has an infinite slope at zero, and a finite value.
        return (total - total.detach()).sqrt() if broken else total * 0.01

    def weights() -> dict[str, torch.Tensor]:
        return {name: w.clone() for name, w in engine.weights()}

    def moved(before: dict[str, torch.Tensor]) -> bool:
        return any(not torch.equal(w, before[name]) for name, w in weights().items())

    def step(*broken: bool) -> float:
        losses = (loss(bad) for bad in broken)
        norm, _ = engine.step(losses, len(broken), 1e-3, ["bad" if any(broken) else "good"], Sums(()))
        return norm

    start = weights()
    assert step(False) > 0 and moved(start)
    before = weights()
    norm = step(True)
    assert norm != norm and not moved(before)
    print("weights stood still")
    assert step(False) > 0 and moved(before)
    assert all(bool(torch.isfinite(w).all()) for w in weights().values())
    try:
        step(True)
    except NonFiniteError as error:
        print(f"stopped: {error}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
