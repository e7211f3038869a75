"""What does a round cost beyond its generation, scoring, reference logprobs and optimizer steps?

    python benchmarks/cheap_rounds.py --prompts 8 32 128 --rounds 5

The quickstart with a reward model that is there, of as many rounds as asked, with `checkpoint.every` and
`evaluation.every` so high that only the last round has them. A round is timed from the commit of the one before to its
own; the first and the last are left out. `peer` is what the round's work took: the phases' seconds as its manifests have
them and the sum of its steps; `ours` the whole round; `ratio` their quotient, 1 at best. What remains is choosing
prompts and pairs, the ranks' reading, the weight sync, manifests with their digests, metrics and the commit. `every_round`
is the same with a checkpoint and an evaluation of 48 held-out prompts in each round. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import Any

from line import print_line
from scoring import make_reward_model

from ultramed_rl.config import RunConfig, load_config

PHASES = ("completions", "scored", "reference")


def config_of(folder: Path, prompts: int, rounds: int, every: int) -> RunConfig:
    changes = {
        "run.name": f"{prompts}-{every}",
        "run.directory": folder,
        "run.rounds": rounds,
        "run.keep_checkpoints": 1,
        "reward.train": "null",
        "reward.path": folder / "reward",
        "reward.terms": [],
        "reward.length_slope": "null",
        "evaluation.judges": [],
        "cluster.rollout.precision": "null",
        "prompts.per_round": prompts,
        "prompts.reuse": "true",
        "pairs.min_margin": 0.0,
        "checkpoint.every": every,
        "evaluation.every": every,
        "training.batch_size": min(8, prompts),
        "tracking.wandb": "disabled",
    }
    return load_config("configs/quickstart.yaml", [f"{key}={value}" for key, value in changes.items()])


def measure(config: RunConfig) -> dict[str, float]:
    """Medians over the rounds but the first and the last."""
    from ultramed_rl.cluster.connection import disconnect
    from ultramed_rl.online.run import run

    found = run(config)
    disconnect()
    commits = [
        (found.directory / "rounds" / f"{index:03d}" / "commit.json").stat().st_mtime
        for index in range(len(found.rounds))
    ]
    log = [json.loads(line) for line in (found.directory / "metrics.jsonl").read_text().splitlines()]
    whole, work, sync = [], [], []
    for index, row in list(enumerate(found.rounds))[1:-1]:
        whole.append(commits[index] - commits[index - 1])
        steps = sum(r["seconds"] for r in log if "step_index" in r and r["round"] == index)
        work.append(sum(row[f"seconds_{name}"] for name in PHASES) + steps)
        sync.append(row["sync_seconds"])
    beyond = statistics.median(1 - w / all_of for w, all_of in zip(work, whole, strict=True))
    return {
        "round_s": round(statistics.median(whole), 2),
        "work_s": round(statistics.median(work), 2),
        "sync_s": round(statistics.median(sync), 2),
        "beyond": round(beyond, 4),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--prompts", type=int, nargs="+", default=[8, 32, 128])
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        maker = multiprocessing.get_context("spawn").Process(
            target=make_reward_model, args=(folder / "reward", "float32")
        )
        maker.start()
        maker.join()
        for prompts in options.prompts:
            found[str(prompts)] = measure(config_of(folder, prompts, options.rounds, 1000))
            found[str(prompts)]["every_round"] = measure(config_of(folder, prompts, options.rounds, 1))
            print(json.dumps({prompts: found[str(prompts)]}), flush=True)
    asked = "32" if "32" in found else next(iter(found))
    middle = found[asked]
    line = {
        "benchmark": "cheap_rounds",
        "ours": middle["round_s"],
        "peer": middle["work_s"],
        "ratio": round(1 - middle["beyond"], 4),
        "unit": "s a round",
        "peer_name": "its generation, scoring, reference logprobs and steps alone",
        "by_prompts": found,
        "work": f"{asked} prompts a round, with `checkpoint.every` and `evaluation.every`",
    }
    print_line(line)


if __name__ == "__main__":
    main()
