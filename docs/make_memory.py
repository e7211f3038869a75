"""What fits where: the plans of a common run over models, ways of training and machines.

`python docs/make_memory.py > docs/memory.md` renews the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ultramed_rl.cluster.hours import ASSUMED, round_hours
from ultramed_rl.cluster.layout import PlanError
from ultramed_rl.cluster.memory import GIB
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.learning.costs import Gpu

RENEW = "python docs/make_memory.py > docs/memory.md"
MODELS = {
    "0.5B": "Qwen/Qwen2.5-0.5B-Instruct",
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct",
    "3B": "Qwen/Qwen2.5-3B-Instruct",
    "7B": "Qwen/Qwen2.5-7B-Instruct",
    "14B": "Qwen/Qwen2.5-14B-Instruct",
    "32B": "Qwen/Qwen2.5-32B-Instruct",
    "70B": "meta-llama/Meta-Llama-3-70B-Instruct",
}
_SMALL = [*MODELS.values()][:3]  # whose weights in 4 bits save nothing that matters
TRAINED: dict[str, Any] = {
    "4-bit LoRA": {"rank": 16, "quantize": "nf4"},
    "LoRA": {"rank": 16},
    "all weights": None,
}


@dataclass(frozen=True)
class Machines:
    """Nodes of GPUs: what a GPU's memory leaves to a process in GiB, and how roles share them."""

    title: str
    gpu: Gpu
    memory_gib: float
    nodes: int = 1
    devices: int = 1
    layout: str = "colocated"


MACHINES = (
    Machines("1 x 24 GB (RTX 4090)", "RTX 4090", 23.5),
    Machines("1 x 48 GB (L40S)", "L40S", 44.5),
    Machines("1 x 80 GB (H100)", "H100", 79.0),
    Machines("8 x 80 GB (H100), colocated", "H100", 79.0, devices=8),
    Machines("8 x 80 GB, disaggregated", "H100", 79.0, devices=8, layout="disaggregated"),
    Machines("4 x 8 x 80 GB, colocated", "H100", 79.0, nodes=4, devices=8),
)

_HEAD = f"""# Memory and time

Which model fits on which machine, by `plan`'s arithmetic; nothing here was measured. Generated: `{RENEW}` renews it. For a run of your own,
`ultramed-rl plan CONFIG --gpu NAME` prints the same figures, each role for itself.

The run: 1,000 prompts of at most 512 tokens a round, 8 answers of at most 1,024, DPO on the best against the worst, 100 held-out prompts. The
reward model is Skywork-Reward-V2-Qwen3-0.6B for policies up to 3B, and the one of 8B above. Disaggregated, 4 GPUs train, 2 sample, 1 scores and 1 is
the reference (with LoRA 5 train, since the policy is its own reference).

A cell is the GiB of a training rank, and the minutes of a round; GPU minutes are these times the GPUs. The rest of a GPU goes
to an engine's cache while it samples. `host` keeps the optimizer in host memory (`cluster.policy.offload_optimizer`; its steps there are not
counted), `tp N` gives each engine N GPUs (`cluster.rollout.tensor_parallel`), `split` splits reference and reward model (`shard`). A dash: none of these
ways fits. {ASSUMED[0].upper()}{ASSUMED[1:]}.
"""


def render_sizes() -> str:
    """The page as Markdown."""
    titles = [machines.title for machines in MACHINES]
    lines = [_HEAD, f"| policy | trained | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for model, path in MODELS.items():
        for trained, lora in TRAINED.items():
            if trained == "4-bit LoRA" and path in _SMALL:
                continue
            cells = (_cell(path, lora, machines) for machines in MACHINES)
            lines.append(f"| {model} | {trained} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(path: str, lora: Any, machines: Machines) -> str:
    """The first way that fits, or a later one that is a fifth faster."""
    best, cell = float("inf"), "-"
    for marks, config in _ways(path, lora, machines):
        try:
            plan = make_plan(config)
        except PlanError:
            continue
        hours = round_hours(config, plan, machines.gpu).hours
        if hours < 0.8 * best:  # what is saved has costs that aren't counted
            rank = next(role.total_bytes for role in plan.roles if role.role == "policy") / GIB
            best, cell = hours, ", ".join([f"{rank:.0f} GiB, {60 * hours:.1f} min", *marks])
    return cell


def _ways(path: str, lora: Any, machines: Machines) -> Iterator[tuple[list[str], RunConfig]]:
    """Configs from the fastest to the leanest, each with the marks of what it saves."""
    apart = machines.layout == "disaggregated"
    total = machines.nodes * machines.devices
    ranks = (4 if lora is None else 5) if apart else total
    quantized = lora is not None and "quantize" in lora
    stage = 0 if total == 1 else 2 if quantized or (lora and not apart) else 3
    for shard in (False, True) if total > 1 and not apart else (False,):
        for host in (False, True) if lora is None else (False,):
            for width in (1, 2) if apart else (1, 2, 4, 8):
                marks = [f"tp {width}"] * (width > 1) + ["host"] * host + ["split"] * shard
                cluster = {
                    "device": "cuda",
                    "nodes": machines.nodes,
                    "devices_per_node": machines.devices,
                    "device_memory_gib": machines.memory_gib,
                    "layout": machines.layout,
                    "policy": {
                        "ranks": ranks,
                        "zero_stage": max(stage, int(host)),
                        "offload_optimizer": host,
                    },
                    "rollout": {
                        "engines": (2 if apart else total) // width,
                        "tensor_parallel": width,
                        "memory_fraction": 0.75,
                    },
                    "reference": {"replicas": 1 if apart else total, "shard": shard},
                    "reward": {"replicas": 1 if apart else total, "shard": shard},
                }
                if width <= machines.devices:
                    yield marks, _config(path, lora, cluster)


def _config(path: str, lora: Any, cluster: dict[str, Any]) -> RunConfig:
    reward = f"Skywork/Skywork-Reward-V2-Qwen3-{'0.6' if path in _SMALL else '8'}B"
    return parse_config(
        {
            "run": {"name": "sizes"},
            "policy": {"path": path, "precision": "bfloat16", "max_length": 2048, "lora": lora},
            "reference": {"micro_batch_tokens": 4096},
            "reward": {"path": reward, "precision": "bfloat16", "micro_batch_tokens": 4096},
            "prompts": {"sources": [{"uri": "prompts.jsonl"}], "per_round": 1000, "held_out": 100},
            "objective": {"type": "dpo"},
            "training": {"micro_batch_tokens": 4096},
            "cluster": cluster,
        }
    )


if __name__ == "__main__":
    sys.stdout.write(render_sizes())
