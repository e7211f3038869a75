"""How long does a round of online preference learning take? Ours against a pipeline of scripts, written well.

    python benchmarks/round.py --baseline staged --size 1 --repeats 2

Ours is the product: a run of the quickstart's rounds with its actors resident. The peer is what one writes without
it (`staged/`): vLLM generates and exits, transformers scores in padded batches and exits, TRL's DPOTrainer trains
and saves, each a process of its own that loads its model from disk. Our run goes first; each peer's round then
begins with the policy that ours began that round with, on the same prompts; `same_work` says whether tokens and pairs
of both sides are within 3 %; if not, the exit status is 1. By default the peer gives each prompt a seed, as ours does; `--unseeded` is its fastest way,
and cannot be repeated. Both compute on all cores in `--precision`. In bfloat16, which `precision: auto` means where
cores have it, our optimizer keeps float32 weights; the peer's are bfloat16, the faster way for it.

A round of ours is timed from the commit of the one before to its own, less its evaluation, which the peer has not
got. The first round and the start-up, which a run pays once, are reported beside the median of the others. A
peer's round is the sum of its three processes, each from its start to its exit. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoring import make_reward_model

from ultramed_rl.config import RunConfig, load_config

STAGED = Path(__file__).parent / "staged"
STAGES = ("generate", "score", "train")
OURS = {
    "generation": "seconds_completions",
    "scoring": "seconds_scored",
    "reference": "seconds_reference",
    "training": "seconds_training",
    "sync": "sync_seconds",
}


# -- ours --------------------------------------------------------------------------------------------------


def round_config(options: argparse.Namespace, folder: Path) -> RunConfig:
    """The quickstart with a reward model that is there, all checkpoints kept, and next to no evaluation."""
    config = load_config(options.config)
    changes = {
        "run.name": "ours",
        "run.directory": folder,
        "run.rounds": options.repeats + 1,
        "run.keep_checkpoints": "null",
        "reward.train": "null",
        "reward.path": folder / "reward",
        "policy.precision": options.precision,
        "reward.precision": options.precision,
        "prompts.held_out": 1,
        "prompts.per_round": (options.prompts or config.prompts.per_round) * options.size,
        "sampling.max_new_tokens": options.tokens or config.sampling.max_new_tokens,
        "pairs.min_margin": 0.0,  # as many pairs as can be, whatever the reward model's scale
        "evaluation.bootstrap": 100,
        "tracking.wandb": "disabled",
    }
    own = [item for item in options.set if item]
    return load_config(options.config, [*(f"{key}={value}" for key, value in changes.items()), *own])


def run_ours(config: RunConfig) -> dict[str, Any]:
    """All rounds -> the run's folder, the seconds before the first, each round's seconds, and its metrics."""
    from ultramed_rl.cluster.placement import disconnect
    from ultramed_rl.online.run import run

    started = time.time()
    found = run(config)
    disconnect()
    folders = [found.directory / "rounds" / f"{index:03d}" for index in range(len(found.rounds))]
    ends = [(folder / "commit.json").stat().st_mtime for folder in folders]
    begun = (folders[0] / "prompts.json").stat().st_mtime
    whole = [end - start for start, end in zip([begun, *ends], ends, strict=False)]
    return {
        "directory": found.directory,
        "startup": begun - started - _evaluation(found.directory),
        "seconds": [s - row["seconds_evaluation"] for s, row in zip(whole, found.rounds, strict=True)],
        "rounds": found.rounds,
        "folders": folders,
    }


def _evaluation(directory: Path) -> float:
    """Seconds of the starting policy's evaluation."""
    first = directory / "initial" / "evaluation.json"
    return float(json.loads(first.read_text()).get("seconds", 0.0)) if first.is_file() else 0.0


# -- the peer ----------------------------------------------------------------------------------------------


def job_of(
    config: RunConfig, ours: Mapping[str, Any], index: int, options: argparse.Namespace
) -> dict[str, Any]:
    """What the three scripts are told about a round."""
    from ultramed_rl.models.offline import resolve_model
    from ultramed_rl.models.tokenizer import ChatTokenizer

    policy = str(ours["folders"][index - 1] / "checkpoint") if index else resolve_model(config.policy.path)
    sampling, group = config.sampling, config.cluster.rollout
    assert config.objective.type == "dpo" and config.reference.update == "initial"
    return {
        "policy": policy,
        "reference": resolve_model(config.policy.path),
        "reward": config.reward.path,
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


def run_peer(job: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One round by scripts -> its seconds, and each script's report with the seconds of its process."""
    reports: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {name: str(folder / f"{name}.jsonl") for name in ("prompts", "answers", "pairs")}
        Path(files["prompts"]).write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        file = folder / "job.json"
        for stage in STAGES:
            file.write_text(json.dumps({**job, **files, "output": str(folder / "policy")}))
            started = time.perf_counter()
            command = [sys.executable, STAGED / f"{stage}.py", file]
            subprocess.run(command, check=True, env=_environment(), stdout=sys.stderr)
            reports[stage] = {"process": time.perf_counter() - started}
            reports[stage] |= json.loads(file.with_suffix(".report").read_text())
    return {"seconds": sum(report["process"] for report in reports.values()), "stages": reports}


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
        {"ids": list(p.token_ids), "seed": derive_seed(config.run.seed, index, p.prompt_id)} for p in prompts
    ]


# -- both --------------------------------------------------------------------------------------------------


def our_phases(ours: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds by phase; where phases overlap they come to more than the round."""
    rounds = ours["rounds"][1:]
    phases = {name: [row.get(key, 0.0) for row in rounds] for name, key in OURS.items()}
    phases["saving"] = [row["seconds_checkpoint"] - row["seconds_training"] for row in rounds]
    return {name: round(statistics.median(values), 2) for name, values in phases.items()}


def peer_phases(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds by phase. `loading` is all that isn't work: starts, imports, models, exits."""
    names = {"generation": "generate", "scoring": "score", "reference_and_training": "train"}
    found = {n: [r["stages"][stage]["seconds"]["work"] for r in rounds] for n, stage in names.items()}
    found["saving"] = [r["stages"]["train"]["seconds"]["save"] for r in rounds]
    worked = [sum(values) for values in zip(*found.values(), strict=True)]
    found["loading"] = [r["seconds"] - work for r, work in zip(rounds, worked, strict=True)]
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def same_work(ours: Mapping[str, Any], peer: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens and pairs of both sides, over the measured rounds."""
    rounds = ours["rounds"][1:]
    tokens = [sum(row["tokens"] for row in rounds), sum(r["stages"]["generate"]["tokens"] for r in peer)]
    pairs = [sum(row["pairs"] for row in rounds), sum(r["stages"]["score"]["pairs"] for r in peer)]
    gap = abs(tokens[1] - tokens[0]) / tokens[0]
    return {
        "tokens": {"ours": int(tokens[0]), "peer": int(tokens[1])},
        "pairs": {"ours": int(pairs[0]), "peer": int(pairs[1])},
        "token_gap": round(gap, 4),
        "same_work": gap < 0.03 and abs(pairs[1] - pairs[0]) <= 0.03 * pairs[0],
    }


def report(
    ours: Mapping[str, Any], peer: Sequence[Mapping[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """The JSON line."""
    mine = statistics.median(ours["seconds"][1:])
    theirs = statistics.median(r["seconds"] for r in peer)
    return {
        "benchmark": "round",
        "ours": round(mine, 2),
        "peer": round(theirs, 2),
        "ratio": round(theirs / mine, 3),
        "unit": "seconds a round",
        "peer_name": "vLLM, transformers and TRL's DPOTrainer, a process each",
        "size": options.size,
        "precision": options.precision,
        "ours_first": round(ours["seconds"][0], 2),
        "ours_startup": round(ours["startup"], 2),
        "ours_rounds": [round(s, 2) for s in ours["seconds"]],
        "peer_rounds": [round(r["seconds"], 2) for r in peer],
        "ours_phases": our_phases(ours),
        "peer_phases": peer_phases(peer),
        "peer_processes": {
            s: round(statistics.median(r["stages"][s]["process"] for r in peer), 2) for s in STAGES
        },
        "peer_pass": options.peer_pass,
        **same_work(ours, peer),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--baseline", choices=["staged"], default="staged")
    arguments.add_argument("--config", default="configs/quickstart.yaml")
    arguments.add_argument("--size", type=int, default=1, help="times the config's prompts a round")
    arguments.add_argument("--repeats", type=int, default=2, help="measured rounds of each side")
    arguments.add_argument("--prompts", type=int, default=None, help="instead of the config's, before --size")
    arguments.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    arguments.add_argument("--tokens", type=int, default=None, help="longest answer, instead of the config's")
    arguments.add_argument(
        "--peer-pass", type=int, default=8, help="pairs of a pass of TRL's; divides the batch"
    )
    arguments.add_argument("--precompute", action="store_true", help="TRL computes reference logprobs before")
    arguments.add_argument("--unseeded", action="store_true", help="the peer samples without seeds a prompt")
    arguments.add_argument("--folder", type=Path, default=None, help="kept; else a temporary one")
    arguments.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="more changes to the config"
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        config = round_config(options, folder)
        if config.training.batch_size % options.peer_pass:
            arguments.error(f"--peer-pass {options.peer_pass}: must divide {config.training.batch_size}")
        maker = multiprocessing.get_context("spawn").Process(
            target=make_reward_model, args=(folder / "reward", "float32")
        )
        maker.start()
        maker.join()
        ours = run_ours(config)
        peer = []
        for index in range(1, options.repeats + 1):
            job = job_of(config, ours, index, options)
            peer.append(run_peer(job, prompts_of(config, ours, index)))
            print(
                f"round {index}: ours {ours['seconds'][index]:.1f} s, peer {peer[-1]['seconds']:.1f} s",
                flush=True,
            )
        line = report(ours, peer, options)
        print(json.dumps(line))
    sys.exit(not line["same_work"])


if __name__ == "__main__":
    main()
