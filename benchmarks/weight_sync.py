"""How fast are new weights in the engine? Bytes/s of a policy-to-engine sync over bytes/s of a plain copy.

    python benchmarks/weight_sync.py --repeats 10

A policy rank and a vLLM engine, each the product's own Ray actor, hold SmolLM2-135M; the weights go over as after
each round. The peer copies as many bytes between two tensors that have been touched before, with one thread and with
all (the faster counts), in turn with the syncs. On CPU both sides compute in float32 with all cores; an engine packs
its linear layers and the output head on arrival, which is part of the sync. With `--device cuda` both actors share
one GPU, the transfer is vLLM's own, and the peer is a copy within the GPU; with `--layout disaggregated` each has its
own and the weights go by NCCL. `--lora merged` sends a LoRA policy's weights with the adapters in them, `--lora adapter`
the adapters alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

from line import add_spread, compare_sides, print_line

from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.workers.policy import WeightSync

MODEL = "offline://smollm2-135m-instruct"
WANTED = 0.5


class Copier:
    """The peer: two touched buffers of so many bytes on the device."""

    def __init__(self, size: int, device: str) -> None:
        import torch

        self.device = device
        self.source = torch.ones(size // 4, dtype=torch.float32, device=device)
        self.target = torch.zeros_like(self.source)

    def seconds(self, threads: int) -> float:
        """Of one copy."""
        import torch

        if self.device == "cpu":
            torch.set_num_threads(threads)
        else:
            torch.cuda.synchronize()
        started = time.perf_counter()
        self.target.copy_(self.source)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def start_actors(options: argparse.Namespace) -> WeightSync:
    """The policy's rank 0 and an engine, and the way between them."""
    import ray

    from ultramed_rl.actors.deepspeed_setup import EngineSpec
    from ultramed_rl.actors.policy import PolicyWorker
    from ultramed_rl.actors.rollout import EngineArguments
    from ultramed_rl.actors.weight_sync import transfer_backend
    from ultramed_rl.config.cluster import RolloutGroup, TrainerGroup
    from ultramed_rl.config.models import LoRA, Model
    from ultramed_rl.config.rounds import Optimization
    from ultramed_rl.models.files import resolve_model

    device, precision = options.device, options.precision
    lora = None if options.lora is None else LoRA(sync=options.lora)
    backend = transfer_backend(device, options.layout, lora)
    actor_options = _options(device, options.threads, options.layout)
    policy = ray.remote(PolicyWorker).options(**actor_options).remote(0, 1, 0)
    engine = ray.remote(RolloutWorker).options(**actor_options).remote(0)
    arguments = EngineArguments(
        model=resolve_model(options.model),
        device=device,
        precision=precision,
        max_length=256,
        group=RolloutGroup(max_num_seqs=16, enforce_eager=True, kv_cache_gib=0.25, memory_fraction=0.3),
        transfer_backend=backend,
        lora_rank=lora.rank if lora is not None else 0,
    )
    ray.get(engine.start.remote(arguments, None, 0))
    spec = EngineSpec(
        device,
        precision,
        TrainerGroup(zero_stage=0),
        Optimization(gradient_checkpointing=False, max_skipped_steps=0),
    )
    ray.get(
        policy.load.remote(Model(path=options.model, lora=lora), spec, ray.get(policy.rendezvous.remote()))
    )
    groups = (
        WorkerGroup(role, lambda _, actor=actor: actor, 1, takes_turns=False)
        for role, actor in (("policy", policy), ("rollout", engine))
    )
    return WeightSync(*groups, backend)


def _options(device: str, threads: int, layout: str) -> dict[str, Any]:
    """Ray's options of an actor, with the environment that a run gives it."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    gpus = {"colocated": 0.5, "disaggregated": 1}[layout] if device == "cuda" else 0
    return {"num_cpus": 0, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}


def measure(way: WeightSync, options: argparse.Namespace) -> dict[str, list[Any]]:
    """Each repeat's sync, as the driver reports it; and the copies in turn with them."""
    way.connect()
    found: dict[str, list[Any]] = {"syncs": [], "one": [], "all": []}
    copier = None
    for version in range(1, options.repeats + options.warm_up + 1):
        sync = way.send(version)
        assert way.engines.call(RolloutWorker.version) == [version]
        copier = copier or Copier(int(sync["bytes"]), options.device)
        found["syncs"].append(sync)
        for name, threads in (("one", 1), ("all", options.threads)):
            found[name].append(copier.seconds(threads))
        print(
            f"sync {version}: {sync['seconds']:.3f} s, copy {found['one'][-1]:.3f} s with one thread, "
            f"{found['all'][-1]:.3f} s with {options.threads}",
            flush=True,
        )
    return found


def report(found: dict[str, list[Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The JSON line: medians of what comes after the warm-up."""
    syncs = found["syncs"][options.warm_up :]
    size = syncs[0]["bytes"]
    copies = {name: statistics.median(found[name][options.warm_up :]) for name in ("one", "all")}
    fastest = min(copies, key=lambda name: copies[name])
    seconds = statistics.median(sync["seconds"] for sync in syncs)
    parts = [name for name in syncs[0] if name.startswith("seconds_")]
    rates = {
        "ours": [size / sync["seconds"] / 1e9 for sync in syncs],
        "`torch.Tensor.copy_`": [size / one / 1e9 for one in found[fastest][options.warm_up :]],
    }
    return {
        "benchmark": "weight_sync",
        **compare_sides(rates, options.spread),
        "unit": "GB/s",
        "wanted": WANTED,
        "device": options.device,
        "precision": options.precision,
        "lora": options.lora,
        "bytes": int(size),
        "seconds": round(seconds, 4),
        "seconds_first": round(found["syncs"][0]["seconds"], 4),
        "parts": {n: round(statistics.median(s[n] for s in syncs), 4) for n in parts},
        "copy_threads": options.threads if fastest == "all" else 1,
        "copy_seconds": {name: round(value, 4) for name, value in copies.items()},
        "work": f"{options.precision}, {size / 1e6:.0f} MB from policy to engine in {seconds:.2f} s",
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    arguments.add_argument("--layout", choices=["colocated", "disaggregated"], default="colocated")
    arguments.add_argument("--lora", choices=["merged", "adapter"])
    arguments.add_argument("--model", default=MODEL, help="a local directory, a hub id or offline://NAME")
    arguments.add_argument("--repeats", type=int, default=10, help="measured syncs")
    arguments.add_argument("--warm-up", type=int, default=2, help="syncs before them")
    add_spread(arguments, 1.5)
    arguments.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    options = arguments.parse_args()

    from ultramed_rl.cluster.connection import connect, disconnect
    from ultramed_rl.config.cluster import Cluster

    connect(Cluster(device=options.device))
    try:
        found = measure(start_actors(options), options)
    finally:
        disconnect()
    print_line(report(found, options))


if __name__ == "__main__":
    main()
