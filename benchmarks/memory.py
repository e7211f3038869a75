"""Does `ultramed-rl plan` tell the truth? Its bytes for each role against the peaks of a real run.

    python benchmarks/memory.py --config configs/quickstart.yaml

Runs one round of the config, on a few prompts of full length, and compares each role's planned bytes with the peak
of its largest process: what is resident on CPU, what torch allocated on CUDA. `ratio` is planned over measured, of
the fullest device or node; the plan is meant to be within 15 % of 1. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from line import print_line
from scoring import make_reward_model

from ultramed_rl.cluster.layout import Plan
from ultramed_rl.cluster.memory import PROCESS_BYTES
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import RunConfig, dump_config, load_config

GIB = 2**30


def short_config(path: str, prompts: int, folder: Path) -> RunConfig:
    """One round of the config with a reward model that is there."""
    config = load_config(path)
    assert isinstance(config, RunConfig), f"{path}: not an online run"
    changes = {
        "run.name": "memory",
        "run.directory": folder,
        "run.rounds": 1,
        "prompts.per_round": prompts,
        "prompts.held_out": 4,
        "reward.train": "null",
        "reward.path": folder / "reward",
        "tracking.wandb": "disabled",
    }
    return load_config(path, [f"{key}={value}" for key, value in changes.items()])


def measured_peaks(config: RunConfig, folder: Path) -> dict[str, int]:
    """Run the config; bytes at the peak of each role's largest process."""
    file = folder / "memory.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "ultramed_rl.cli", "run", str(file)]
    subprocess.run(command, check=True, env=os.environ | {"RAY_ADDRESS": "local"})
    rows = map(json.loads, (folder / "memory" / "metrics.jsonl").read_text().splitlines())
    peaks = next(row for row in rows if "peak_memory_policy" in row)
    prefix = "peak_memory_"
    return {name.removeprefix(prefix): int(x) for name, x in peaks.items() if name.startswith(prefix)}


def planned_peaks(plan: Plan) -> dict[str, int]:
    """The same by the plan; on CPU with the process itself."""
    process = PROCESS_BYTES if plan.cluster.device == "cpu" else 0
    return {role.role: role.total_bytes + process for role in plan.roles}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--config", default="configs/quickstart.yaml")
    arguments.add_argument("--prompts", type=int, default=16)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_reward_model(folder / "reward", "float32")
        config = short_config(options.config, options.prompts, folder)
        plan = make_plan(config)
        planned, measured = planned_peaks(plan), measured_peaks(config, folder)
    count = {role.role: len(role.members) for role in plan.roles}
    if plan.cluster.device == "cpu":
        ours = sum(planned[role] * count[role] for role in planned)
        peer = sum(measured[role] * count[role] for role in planned)
    else:
        ours, peer = max(planned.values()), max(measured[role] for role in planned)
    gib = {role: [round(planned[role] / GIB, 2), round(measured[role] / GIB, 2)] for role in planned}
    found = {
        "benchmark": "memory",
        "ours": round(ours / GIB, 3),
        "peer": round(peer / GIB, 3),
        "ratio": round(ours / peer, 3),
        "unit": "GiB",
        "peer_name": "what a run took",
        "roles": gib,
        "work": f"what `plan` says of {options.config}",
    }
    print_line(found)


if __name__ == "__main__":
    main()
