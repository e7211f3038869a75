"""What a round left in its folder, for those who show it: some samples, and what was made out of what."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from ultramed_rl.store.run_reader import read_whole
from ultramed_rl.tracking.backends import Made, Sample


def round_samples(folder: Path, index: int, seed: int, prompts: int) -> list[Sample]:
    """All completions of a few seeded prompts of a round, each prompt's best first; none before they are scored."""
    import pyarrow.parquet as parquet

    files = [folder / f"{name}.parquet" for name in ("prompts", "scored", "pairs")]
    if prompts == 0 or not all(file.exists() for file in files):
        return []
    ids = parquet.read_table(files[0], columns=["prompt_id"])["prompt_id"].to_pylist()
    shown = random.Random(f"{seed} shown samples {index}").sample(sorted(ids), min(prompts, len(ids)))
    asked, scored, pairs = (_rows_of(file, shown) for file in files)
    texts = {row["prompt_id"]: _text(row["messages"]) for row in asked}
    sides = {key: side for row in pairs for key, side in _sides(row).items()}
    # A reward that is no number comes last.
    rank = lambda reward: -reward if math.isfinite(reward) else math.inf
    scored.sort(key=lambda row: (shown.index(row["prompt_id"]), rank(row["reward"]), row["sample"]))
    return [
        Sample(
            round=index,
            prompt_id=row["prompt_id"],
            prompt=texts[row["prompt_id"]],
            sample=row["sample"],
            completion=row["text"],
            reward=row["reward"],
            chosen=sides.get((row["prompt_id"], row["sample"]), ""),
            tokens=len(row["token_ids"]),
            finish_reason=row["finish_reason"],
            policy_version=row["policy_version"],
        )
        for row in scored
    ]


def made_in_round(folder: Path, index: int, start: str) -> list[Made]:
    """A round's completions, pairs and policy with their lineage, as far as the round has come.

    Args:
        start: the path of policy 0, which stands for its digest.
    """
    earlier = (read_whole(folder.with_name(f"{i:03d}") / "checkpoint.json") for i in reversed(range(index)))
    before = next((manifest for manifest in earlier if manifest is not None), None)
    policy = start if before is None else str(before["digest"])
    parents = {f"policy-{index}": policy}
    made = []
    for name, shown, file, version, kind in (
        ("scored", "completions", "scored.parquet", index, "dataset"),
        ("pairs", "pairs", "pairs.parquet", index, "dataset"),
        ("checkpoint", "policy", "checkpoint", index + 1, "model"),
    ):
        manifest = read_whole(folder / f"{name}.json")
        if manifest is None:
            break
        if kind == "model":
            parents |= {f"policy-{index}": policy}
        numbers = manifest.get("metrics") or {"rows": manifest["rows"]}
        made.append(Made(shown, kind, folder / file, manifest["digest"], version, parents, numbers))
        parents = {f"{shown}-{index}": manifest["digest"]}
    return made


def made_by_stage(directory: Path, start: str) -> list[Made]:
    """The model of a finished offline stage, or the records of a data stage.

    Args:
        start: the path of the model that the stage began with; nothing for a data stage.
    """
    made = []
    data = read_whole(directory / "data.json")
    for name, kind in (("model", "model"), ("records", "dataset")):
        manifest = read_whole(directory / f"{name}.json")
        if manifest is not None:
            parents = {"data": str(data["digest"])} if data else {}
            parents |= {"model": start} if start else {}
            numbers = manifest.get("metrics") or {}
            made.append(Made(name, kind, directory / name, manifest["digest"], 0, parents, numbers))
    return made


def _rows_of(path: Path, prompts: list[str]) -> list[dict[str, Any]]:
    """All rows of these prompts. A round may have millions of others: only the parts that hold one are read whole."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    wanted = pc.field("prompt_id").isin(prompts)
    parts = (
        part
        for file in ds.dataset(path, format="parquet").get_fragments()
        for part in file.split_by_row_group()
    )
    return [
        row
        for part in parts
        if part.count_rows(filter=wanted)
        for row in part.to_table(filter=wanted).to_pylist()
    ]


def _text(messages: list[dict[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _sides(row: dict[str, Any]) -> dict[tuple[str, int], str]:
    """Which samples a group prefers; its id ends with them in their order, as in `prompt:3>0`."""
    order = [int(sample) for sample in row["group_id"].rpartition(":")[2].split(">")]
    wanted = row["desirable"]
    return {
        (row["prompt_id"], sample): "chosen" if place < wanted else "rejected"
        for place, sample in enumerate(order)
    }
