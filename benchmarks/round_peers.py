"""The peers of `round.py`: scripts in processes of their own, and what they told of each round."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ultramed_rl.config import RunConfig

STAGED = Path(__file__).parent / "staged"
STAGES = ("generate", "score", "train")


def job_of(
    config: RunConfig, ours: Mapping[str, Any], index: int, options: argparse.Namespace
) -> dict[str, Any]:
    """What a peer's scripts are told of the rounds from `index` on."""
    from ultramed_rl.models.files import resolve_model
    from ultramed_rl.models.tokenizer import ChatTokenizer

    policy = str(ours["folders"][index - 1] / "checkpoint") if index else resolve_model(config.policy.path)
    sampling, group = config.sampling, config.cluster.rollout
    assert config.objective.type == "dpo" and config.reference.update == "initial"
    return {
        "policy": policy,
        "reference": resolve_model(config.policy.path),
        "reward": config.reward.path,
        "prompts_a_round": config.prompts.per_round,
        "n": sampling.n,
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "end_token": ChatTokenizer(config.policy.path).end_id,
        "seeded": not options.unseeded,
        "precision": options.precision,
        "engine": {
            "max_length": config.policy.max_length,
            "max_num_seqs": group.max_num_seqs,
            "kv_cache_bytes": int((group.kv_cache_gib or 0.5) * 2**30),
            "enforce_eager": group.enforce_eager,
        },
        "score_tokens": config.reward.micro_batch_tokens,
        "min_margin": config.pairs.min_margin,
        "training": config.training.model_dump(),
        "beta": config.objective.beta,
        "peer_pass": options.peer_pass,
        "precompute": options.precompute,
    }


def run_scripts(
    names: Sequence[str], job: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One script after the other, a process each -> each one's report with the seconds of its process."""
    reports: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {name: str(folder / f"{name}.jsonl") for name in ("prompts", "answers", "pairs")}
        Path(files["prompts"]).write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        file = folder / "job.json"
        for name in names:
            file.write_text(json.dumps({**job, **files, "output": str(folder / "policy")}))
            started = time.perf_counter()
            command = [sys.executable, STAGED / f"{name}.py", file]
            subprocess.run(command, check=True, env=_environment(), stdout=sys.stderr)
            reports[name] = {"process": time.perf_counter() - started}
            reports[name] |= json.loads(file.with_suffix(".report").read_text())
    return reports


def _environment() -> dict[str, str]:
    """As the project's own actors have it: all cores, no hub."""
    return os.environ | {
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",  # TRL imports DeepSpeed, which would look for one
        "PYTHONWARNINGS": "ignore",
    }


def prompts_of(config: RunConfig, ours: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
    """The prompts of our round, with the seeds that its samples were drawn with."""
    from ultramed_rl.learning.seeds import derive_seed
    from ultramed_rl.records import Prompt
    from ultramed_rl.store.tables import read_records

    prompts = read_records(Prompt, ours["folders"][index] / "prompts.parquet")
    return [
        {
            "ids": list(p.token_ids),
            "messages": list(p.messages),
            "seed": derive_seed(config.run.seed, index, p.prompt_id),
        }
        for p in prompts
    ]


def run_staged(config: RunConfig, ours: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Three scripts a round, from the policy that ours began it with -> the measured rounds, and what is told beside."""
    reports = [
        run_scripts(STAGES, job_of(config, ours, index, options), prompts_of(config, ours, index))
        for index in range(1, options.repeats + 1)
    ]
    processes = {s: round(statistics.median(r[s]["process"] for r in reports), 2) for s in STAGES}
    return {"rounds": [staged_round(r) for r in reports], "beside": {"peer_processes": processes}}


def staged_round(reports: Mapping[str, Any]) -> dict[str, Any]:
    """What three scripts told of a round. `loading` is all that isn't work: starts, imports, models, exits."""
    seconds = sum(report["process"] for report in reports.values())
    phases = {
        "generation": reports["generate"]["seconds"]["work"],
        "scoring": reports["score"]["seconds"]["work"],
        "reference_and_training": reports["train"]["seconds"]["work"],
        "saving": reports["train"]["seconds"]["save"],
    }
    return {
        "seconds": seconds,
        "tokens": reports["generate"]["tokens"],
        "pairs": reports["score"]["pairs"],
        "phases": {**phases, "loading": seconds - sum(phases.values())},
    }


def run_online_dpo(config: RunConfig, ours: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All rounds in one process -> the measured ones, and what is told beside."""
    prompts = [p for index in range(options.repeats + 1) for p in prompts_of(config, ours, index)]
    report = run_scripts(["online_dpo"], job_of(config, ours, 0, options), prompts)["online_dpo"]
    rounds = [online_round(counts) for counts in report["rounds"]]
    assert len(rounds) == options.repeats + 1, report
    beside = {
        "peer_first": round(rounds[0]["seconds"], 2),
        "peer_startup": round(report["process"] - sum(r["seconds"] for r in rounds), 2),
        "peer_ties": sum(r.get("ties", 0) for r in rounds[1:]),
    }
    return {"rounds": rounds[1:], "beside": beside}


def online_round(counts: Mapping[str, float]) -> dict[str, Any]:
    """What the script told of a round, the rest of its seconds being forward and backward passes and steps."""
    phases = {name: counts[name] for name in ("generation", "scoring", "saving")}
    rest = counts["seconds"] - sum(phases.values())
    return {**counts, "phases": {**phases, "reference_and_training": rest}}


class Peer(NamedTuple):
    """A baseline: how it runs, what it is, and by what share its work may differ from ours."""

    run: Callable[[RunConfig, Mapping[str, Any], argparse.Namespace], dict[str, Any]]
    name: str
    allowed: Mapping[str, float]


PEERS = {
    "staged": Peer(
        run_staged,
        "vLLM, transformers and TRL's DPOTrainer, a process each",
        {"tokens": 0.03, "pairs": 0.03},
    ),
    "online_dpo": Peer(
        run_online_dpo,
        "TRL's OnlineDPOTrainer",
        {"prompts": 0.0, "prompt_tokens": 0.0, "completions": 0.0, "tokens": 0.1, "pairs": 0.03},
    ),
}
