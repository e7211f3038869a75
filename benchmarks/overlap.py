"""How many more rounds an hour are there when the engines answer while the policy learns (`run.overlap=1`)?

    python benchmarks/overlap.py --rounds 16 --engines 64 --prompts 20000

Both runs are the real `Controller.run` over the simulated workers of `simulate.py`, whose docstring says what is real and
what is not: a round is generated, scored, learnt, saved (8 s), sent to the engines (2 s) and evaluated. The policy's steps are
made as long as the unlapped round's generation, which is where overlap gains most: two things of equal length at once.
`ratio` is the virtual time of all rounds one after the other over that with overlap, the first round's generation and the last
one's training, which have nothing beside them, included; a bound of it is 2 rounds / (rounds + 1). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from line import print_line
from simulate import (
    BATCH,
    CLOCKS,
    HELD_OUT,
    Answers,
    Policy,
    Prompts,
    measure_work,
    run_config,
    run_rounds,
    sizes_for,
)


def hours(rounds: int, overlap: int, engines: int, count: int, n: int, kind: str) -> dict[str, Any]:
    """A run of so many rounds, in virtual hours; `lag` is the most policies that a round's answers were behind."""
    answers, prompts, held_out = Answers(), Prompts(count * rounds, CLOCKS[kind]), list(Prompts(HELD_OUT))
    work = measure_work(Prompts(count), answers, n)
    sizes = sizes_for(engines, work)
    Policy.step_s = work.bound(sizes) / (count / BATCH)
    folder = Path(tempfile.mkdtemp(prefix="overlap-"))
    try:
        config = run_config(sizes, count, n, folder, rounds=rounds, overlap=overlap)
        ray, metrics = run_rounds(config, prompts, held_out, answers)
    finally:
        shutil.rmtree(folder)
    return {
        "hours": ray.time / 3600,
        "generation_s": work.bound(sizes),
        "training_s": Policy.step_s * metrics[0]["policy_steps"],
        "lag": max(row["round"] - row["policy_version"] for row in metrics),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=20_000, help="of a round")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="the controller's own time")
    asked = parser.parse_args()
    runs = {}
    for overlap in (0, 1):
        runs[overlap] = hours(asked.rounds, overlap, asked.engines, asked.prompts, asked.n, asked.clock)
        print(json.dumps(runs[overlap]), flush=True)
    rates = {overlap: asked.rounds / run["hours"] for overlap, run in runs.items()}
    bound = 2 * asked.rounds / (asked.rounds + 1)
    print_line(
        {
            "benchmark": "overlap",
            "ours": round(rates[1], 3),
            "peer": round(rates[0], 3),
            "ratio": round(rates[1] / rates[0], 3),
            "unit": "rounds an hour, virtual",
            "peer_name": "the same without `run.overlap`",
            "bound": round(bound, 3),
            "runs": runs,
            "work": f"{asked.rounds} rounds of {asked.prompts:,} prompts x {asked.n}, simulated workers; no schedule could give more than {bound:.2f}",
        }
    )


if __name__ == "__main__":
    main()
