"""Sides of a benchmark that work in turn, each in a process of its own: a noisy machine is as noisy for all.

A side says "ready", then answers each "go" with (seconds, what it found) and "stop" with its peak memory.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MODEL = "offline://smollm2-135m-instruct"

# How far a loss may be from ours (relative to it where it is above 1) in the first step, before weights move, and later.
MOST_LOSS_GAP = {"float32": (1e-4, 1e-2), "bfloat16": (5e-2, 2e-1)}


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


def answer_turns(act: Callable[[], Any], turn: Connection) -> None:
    """Call `act` whenever it is this side's turn."""
    turn.send("ready")
    while turn.recv() == "go":
        started = time.perf_counter()
        found = act()
        turn.send((time.perf_counter() - started, found))
    turn.send(peak_bytes())


def train_in_turn(make_trainer: Callable[[list[Any]], Any], turn: Connection) -> None:
    """Let a trainer of TRL take a step whenever it is its turn; `make_trainer` is given its callbacks."""
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        started = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turn.send("ready")

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if turn.recv() != "go":
                turn.send(peak_bytes())
                turn.close()
                os._exit(0)
            self.started = time.perf_counter()

        def on_log(self, _: Any, __: Any, ___: Any, logs: Any = None, **____: Any) -> None:
            if logs and "loss" in logs:
                turn.send((time.perf_counter() - self.started, {"loss": float(logs["loss"])}))

    make_trainer([InTurn()]).train()
    turn.recv()
    turn.send(peak_bytes())


# -- all sides ---------------------------------------------------------------------------------------------


def take_turns(
    sides: Mapping[str, Callable[[Any, Connection], None]], work: Any, turns: int
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Each side's (seconds, found) of `turns` turns after one that warms it up and is first in the list; its peak bytes."""
    os.environ.update(DS_ACCELERATOR="cpu", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    for name, side in sides.items():
        ends[name], theirs = context.Pipe()
        processes.append(context.Process(target=side, args=(work, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a side that dies is told of
        assert ends[name].recv() == "ready"
    results: dict[str, list[Any]] = {name: [] for name in ends}
    for index in range(turns + 1):
        for name in ends if index % 2 else reversed(list(ends)):
            ends[name].send("go")
            results[name].append(ends[name].recv())
            print(f"turn {index} {name}: {results[name][-1][0]:.2f} s", flush=True)
    memory = {}
    for (name, end), process in zip(ends.items(), processes, strict=True):
        end.send("stop")
        memory[name] = end.recv()
        process.join(60)
    return results, memory


def step_figures(
    results: Mapping[str, list[Any]], memory: Mapping[str, int], peer: str, precision: str
) -> dict[str, Any]:
    """What a benchmark of steps tells besides its rates, and as `faults` whose losses are not ours."""
    losses = {name: [found["loss"] for _, found in turns] for name, turns in results.items()}
    ours = losses.pop("ours")
    gaps = {n: [abs(a - b) / max(1, a) for a, b in zip(ours, x, strict=True)] for n, x in losses.items()}
    first, later = MOST_LOSS_GAP[precision]
    return {
        "memory_ratio": round(memory["ours"] / memory[peer], 3),
        "memory_gb": {name: round(size / 1e9, 2) for name, size in memory.items()},
        "mfu": round(statistics.median(found["mfu"] for _, found in results["ours"][1:]), 3),
        "loss_gap_first": {name: float(f"{gap[0]:.2g}") for name, gap in gaps.items()},
        "loss_gap_max": {name: float(f"{max(gap):.2g}") for name, gap in gaps.items()},
        "faults": [
            f"{name}: its losses are not ours"
            for name, gap in gaps.items()
            if gap[0] > first or max(gap) > later
        ],
    }
