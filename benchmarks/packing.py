"""How much of a micro-batch is padding? Our packed rows against TRL's padded ones, on the same pairs.

    python benchmarks/packing.py --pairs runs/quickstart/rounds/000/pairs.parquet

The pairs are those of a quickstart run (launch/quickstart.sh). `padding` is the share of computed tokens that
are none of the data's; `computed` counts all tokens that go through the model. The last line is JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from line import print_line

from ultramed_rl.learning.batching import epoch_batches, shard_batch
from ultramed_rl.learning.packing import AnswerGroup, pack_groups

QUICKSTART = Path("runs/quickstart/rounds/000/pairs.parquet")


def pairs_of_run(path: Path) -> list[AnswerGroup]:
    from ultramed_rl.records import PreferenceGroup
    from ultramed_rl.store.tables import read_records

    groups = read_records(PreferenceGroup, path)
    return [AnswerGroup.of(group) for group in groups]


def ours(pairs: list[AnswerGroup], batch: int, budget: int) -> dict[str, Any]:
    """Tokens of the data, tokens computed, and how full micro-batches are, over one epoch on one rank."""
    lengths = [p.packed_tokens for p in pairs]
    rows = [
        pack_groups([pairs[i] for i in micro.indices])
        for members in epoch_batches(len(pairs), batch, 1, 0)
        for micro in shard_batch(members, lengths, budget, 1)[0]
    ]
    computed = sum(row.tokens for row in rows)
    return {"real": sum(lengths), "computed": computed, "fill": computed / (budget * len(rows))}


def trl(pairs: list[AnswerGroup], batch: int) -> dict[str, Any]:
    """The same through TRL's own collator."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=0)
    real = computed = 0
    for members in epoch_batches(len(pairs), batch, 1, 0):
        rows = [
            {
                "prompt_ids": list(pairs[i].prompt),
                "chosen_ids": list(pairs[i].answers[0]),
                "rejected_ids": list(pairs[i].answers[-1]),
            }
            for i in members
        ]
        mask = collate(rows)["attention_mask"]
        real, computed = real + int(mask.sum()), computed + mask.numel()
    return {"real": real, "computed": computed}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--pairs", type=Path, default=QUICKSTART)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--budget", type=int, default=2048)
    options = arguments.parse_args()
    pairs = pairs_of_run(options.pairs)
    mine, theirs = ours(pairs, options.batch, options.budget), trl(pairs, options.batch)
    padding = {"ours": 1 - mine["real"] / mine["computed"], "peer": 1 - theirs["real"] / theirs["computed"]}
    print_line(
        {
            "benchmark": "packing",
            "ours": round(padding["ours"], 4),
            "peer": round(padding["peer"], 4),
            "ratio": round((1 - padding["ours"]) / (1 - padding["peer"]), 3),
            "unit": "padding",
            "peer_name": "TRL's batches",
            "pairs": len(pairs),
            "budget_filled": round(mine["fill"], 3),
            "computed_tokens": {"ours": mine["computed"], "peer": theirs["computed"]},
            "tokens_ratio": round(theirs["computed"] / mine["computed"], 3),
            "work": f"a quickstart's pairs: {mine['computed']:,} tokens computed for {theirs['computed']:,}",
        }
    )


if __name__ == "__main__":
    main()
