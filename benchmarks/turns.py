"""Optimizer steps of this project and of TRL, in turn: each in a process of its own, a step at a time.

So a noisy machine is as noisy for both. A side says "ready", then answers each "step" with (seconds, loss, mfu)
and "stop" with its peak memory.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MODEL = "offline://smollm2-135m-instruct"
SIDES = ("ours", "peer")


def peak_bytes() -> int:
    """This process's resident peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


# -- within a side's process -------------------------------------------------------------------------------


def start_policy(precision: str) -> Any:
    """The product's policy worker with the model, one rank, outside Ray."""
    from ultramed_rl.actors.deepspeed_setup import EngineSpec
    from ultramed_rl.actors.policy import PolicyWorker
    from ultramed_rl.config.cluster import TrainerGroup
    from ultramed_rl.config.models import Model
    from ultramed_rl.config.rounds import Optimization

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    worker = PolicyWorker(0, 1, 0)
    spec = EngineSpec(
        "cpu",
        precision,
        TrainerGroup(zero_stage=0),
        Optimization(gradient_checkpointing=False, max_skipped_steps=0),
    )
    worker.load(Model(path=MODEL), spec, ("127.0.0.1", port))
    return worker


def answer_steps(steps: Iterator[dict[str, float]], turn: Connection) -> None:
    """Take a step of `steps` whenever it is this side's turn."""
    turn.send("ready")
    while turn.recv() == "step":
        started = time.perf_counter()
        metrics = next(steps)
        turn.send((time.perf_counter() - started, metrics["loss"], metrics["mfu"]))
    turn.send(peak_bytes())


def train_in_turn(make_trainer: Callable[[list[Any]], Any], turn: Connection) -> None:
    """Let a trainer of TRL take a step whenever it is its turn; `make_trainer` is given its callbacks."""
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        started = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turn.send("ready")

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if turn.recv() != "step":
                turn.send(peak_bytes())
                turn.close()
                os._exit(0)
            self.started = time.perf_counter()

        def on_log(self, _: Any, __: Any, ___: Any, logs: Any = None, **____: Any) -> None:
            if logs and "loss" in logs:
                turn.send((time.perf_counter() - self.started, float(logs["loss"]), None))

    make_trainer([InTurn()]).train()
    turn.recv()
    turn.send(peak_bytes())


# -- both --------------------------------------------------------------------------------------------------


def take_turns(
    sides: Mapping[str, Callable[[Any, Connection], None]], work: Any, steps: int
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Each side's (seconds, loss, mfu) of every step, and its peak bytes."""
    os.environ.update(
        DS_ACCELERATOR="cpu", OMP_NUM_THREADS=str(os.cpu_count()), TOKENIZERS_PARALLELISM="false"
    )
    context = multiprocessing.get_context("spawn")
    turns: dict[str, Connection] = {}
    for name, side in sides.items():
        turns[name], theirs = context.Pipe()
        context.Process(target=side, args=(work, theirs), daemon=True).start()
        assert turns[name].recv() == "ready"
    results: dict[str, list[Any]] = {name: [] for name in turns}
    for step in range(steps):
        for name in turns if step % 2 else reversed(list(turns)):
            turns[name].send("step")
            results[name].append(turns[name].recv())
            seconds, loss, _ = results[name][-1]
            print(f"step {step} {name}: {seconds:.2f} s, loss {loss:.5f}", flush=True)
    memory = {}
    for name, turn in turns.items():
        turn.send("stop")
        memory[name] = turn.recv()
    return results, memory


def step_figures(results: Mapping[str, list[Any]], memory: Mapping[str, int]) -> dict[str, Any]:
    """What a benchmark of steps reports besides its rates."""
    losses = {name: [loss for _, loss, _ in found] for name, found in results.items()}
    gaps = [abs(a - b) for a, b in zip(losses["ours"], losses["peer"], strict=True)]
    return {
        "memory_ratio": round(memory["ours"] / memory["peer"], 3),
        "memory_gb": {name: round(size / 1e9, 2) for name, size in memory.items()},
        "mfu": round(statistics.median(m for _, _, m in results["ours"][1:]), 3),
        "loss_gap_first": round(gaps[0], 6),
        "loss_gap_max": round(max(gaps), 6),
    }
