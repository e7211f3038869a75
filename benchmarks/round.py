"""How long does a round of online preference learning take? Ours against the two ways that one has without it.

    python benchmarks/round.py --baseline staged --size 1 --repeats 2
    python benchmarks/round.py --baseline online_dpo --size 1 --repeats 2

Ours is the product: a run of the quickstart's rounds with its actors resident. It goes first. A peer's scripts
(`staged/`) are processes of their own, so that the sides never compute at once; both have all cores and `--precision`.
In bfloat16, which `precision: auto` means where cores have it, our optimizer keeps float32 weights; the peers' are
bfloat16, the faster way for them.

staged: what one writes by hand: vLLM generates and exits, transformers scores in padded batches and exits, TRL's
DPOTrainer trains and saves. Each round begins with the policy that ours began that round with, on the same prompts; tokens
and pairs may differ by 3 %. By default each prompt has a seed, as ours; `--unseeded` is the peer's fastest way, and cannot
be repeated.

online_dpo: TRL's OnlineDPOTrainer as it ships, over all rounds in one process, resident as ours, from the same policy on
the same prompts in the same order, two answers each. It samples every batch from the policy of the step before, ours a
round from the policy of the round before: the prompts are the same to the token, but answers drift apart, so that tokens
may differ by 10 %, and `tokens_per_second` stands beside. It learns from every prompt, ours not from equal texts or rewards
(3 % at most).

A round of ours is timed from the commit of the one before to its own, less its evaluation, which the peers have not
got. The first round and the start-up, which a run pays once, are reported beside the median of the others. A round of
`staged` is the sum of its three processes, each from its start to its exit; one of `online_dpo` lasts from checkpoint
to checkpoint. The last line is JSON; where the sides' work is not the same, or their rounds spread, the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from line import add_spread, compare_sides, print_line
from round_peers import PEERS
from scoring import make_reward_model

from ultramed_rl.config import RunConfig, load_config

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
        "reward.terms": [],  # the reward model alone
        "reward.length_slope": "null",
        "evaluation.judges": [],
        "cluster.rollout.precision": "null",  # the policy's
        "prompts.held_out": 1,
        "prompts.per_round": (options.prompts or config.prompts.per_round) * options.size,
        "sampling.n": 2 if options.baseline == "online_dpo" else config.sampling.n,
        "sampling.max_new_tokens": options.tokens or config.sampling.max_new_tokens,
        "pairs.min_margin": 0.0,  # as many pairs as can be, whatever the reward model's scale
        "evaluation.bootstrap": 100,
        "tracking.wandb": "disabled",
    }
    own = [item for item in options.set if item]
    return load_config(options.config, [*(f"{key}={value}" for key, value in changes.items()), *own])


def why_unequal(config: RunConfig, options: argparse.Namespace) -> str | None:
    """Why the peer could not do the same work, if it couldn't."""
    batch, epochs = config.training.batch_size, config.training.epochs
    if batch % options.peer_pass:
        return f"--peer-pass {options.peer_pass}: must divide training.batch_size={batch}"
    if options.baseline == "online_dpo":
        if config.prompts.per_round % batch:
            return f"prompts.per_round={config.prompts.per_round}: online_dpo takes whole batches of {batch}; use a multiple"
        if epochs != 1:
            return f"training.epochs={epochs}: online_dpo samples anew in each; use 1"
    return None


def run_ours(config: RunConfig) -> dict[str, Any]:
    """All rounds -> the run's folder, the seconds before the first, each round's seconds, prompts and metrics."""
    from ultramed_rl.cluster.connection import disconnect
    from ultramed_rl.online.run import run
    from ultramed_rl.records import Prompt
    from ultramed_rl.store.tables import read_records

    started = time.time()
    found = run(config)
    disconnect()
    folders = [found.directory / "rounds" / f"{index:03d}" for index in range(len(found.rounds))]
    ends = [(folder / "commit.json").stat().st_mtime for folder in folders]
    begun = (folders[0] / "prompts.json").stat().st_mtime
    whole = [end - start for start, end in zip([begun, *ends], ends, strict=False)]
    prompts = [read_records(Prompt, folder / "prompts.parquet") for folder in folders]
    return {
        "directory": found.directory,
        "startup": begun - started - _evaluation(found.directory),
        "seconds": [s - row["seconds_evaluation"] for s, row in zip(whole, found.rounds, strict=True)],
        "rounds": [
            {**row, "prompts": len(asked), "prompt_tokens": sum(len(p.token_ids) for p in asked)}
            for row, asked in zip(found.rounds, prompts, strict=True)
        ],
        "folders": folders,
    }


def _evaluation(directory: Path) -> float:
    """Seconds of the starting policy's evaluation."""
    first = directory / "initial" / "evaluation.json"
    return float(json.loads(first.read_text()).get("seconds", 0.0)) if first.is_file() else 0.0


# -- both --------------------------------------------------------------------------------------------------


def our_phases(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds by phase; where phases overlap they come to more than the round."""
    phases = {name: [row.get(key, 0.0) for row in rounds] for name, key in OURS.items()}
    phases["saving"] = [row["seconds_checkpoint"] - row["seconds_training"] for row in rounds]
    return {name: round(statistics.median(values), 2) for name, values in phases.items()}


def peer_phases(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds by phase."""
    return {n: round(statistics.median(r["phases"][n] for r in rounds), 2) for n in rounds[0]["phases"]}


def same_work(
    ours: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], allowed: Mapping[str, float]
) -> dict[str, Any]:
    """What both sides did over these rounds, and whether it differs by no more than the share of ours that is allowed."""
    work = {
        key: {"ours": sum(int(row[key]) for row in ours), "peer": sum(int(row[key]) for row in peer)}
        for key in allowed
    }
    gaps = {key: abs(both["peer"] - both["ours"]) / both["ours"] for key, both in work.items()}
    return {
        **work,
        "gaps": {key: round(gap, 4) for key, gap in gaps.items()},
        "same_work": all(gap <= allowed[key] for key, gap in gaps.items()),
    }


def report(ours: Mapping[str, Any], peer: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The JSON line."""
    kind, rows, rounds = PEERS[options.baseline], ours["rounds"][1:], peer["rounds"]
    seconds = {"ours": ours["seconds"][1:], "peer": [r["seconds"] for r in rounds]}
    tokens = {"ours": sum(r["tokens"] for r in rows), "peer": sum(r["tokens"] for r in rounds)}
    speeds = {side: round(tokens[side] / sum(seconds[side]), 1) for side in tokens}
    done = same_work(rows, rounds, kind.allowed)
    sides = compare_sides({"ours": seconds["ours"], kind.name: seconds["peer"]}, options.spread, seconds=True)
    return {
        "benchmark": "round",
        **sides,
        "unit": "s a round",
        "size": options.size,
        "precision": options.precision,
        "ours_first": round(ours["seconds"][0], 2),
        "ours_startup": round(ours["startup"], 2),
        "ours_rounds": [round(s, 2) for s in ours["seconds"]],
        "peer_rounds": [round(s, 2) for s in seconds["peer"]],
        "ours_phases": our_phases(rows),
        "peer_phases": peer_phases(rounds),
        "tokens_per_second": speeds,
        "peer_pass": options.peer_pass,
        **peer["beside"],
        **done,
        "faults": sides["faults"] + ["the sides' work is not the same"] * (not done["same_work"]),
        "work": f"{options.precision}, {rows[0]['prompts']} prompts a round; by tokens a second {speeds['ours'] / speeds['peer']:.2f}",
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--baseline", choices=list(PEERS), default="staged")
    arguments.add_argument("--config", default="configs/quickstart.yaml")
    arguments.add_argument("--size", type=int, default=1, help="times the config's prompts a round")
    arguments.add_argument("--repeats", type=int, default=2, help="measured rounds of each side")
    add_spread(arguments, 1.5)  # rounds differ in what they do
    arguments.add_argument("--prompts", type=int, default=None, help="instead of the config's, before --size")
    arguments.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    arguments.add_argument("--tokens", type=int, default=None, help="longest answer, instead of the config's")
    arguments.add_argument(
        "--peer-pass", type=int, default=8, help="pairs of a pass of TRL's; divides the batch"
    )
    arguments.add_argument(
        "--precompute", action="store_true", help="staged: TRL computes reference logprobs before"
    )
    arguments.add_argument("--unseeded", action="store_true", help="staged: no seed a prompt")
    arguments.add_argument("--folder", type=Path, default=None, help="kept; else a temporary one")
    arguments.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="more changes to the config"
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        config = round_config(options, folder)
        if problem := why_unequal(config, options):
            arguments.error(problem)
        maker = multiprocessing.get_context("spawn").Process(
            target=make_reward_model, args=(folder / "reward", "float32")
        )
        maker.start()
        maker.join()
        ours = run_ours(config)
        peer = PEERS[options.baseline].run(config, ours, options)
        line = report(ours, peer, options)
    print_line(line)


if __name__ == "__main__":
    main()
