"""What a round left in its folder, for those who show it: some samples, and what was made out of what."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One completion of a shown prompt. `chosen` is "chosen" or "rejected", or nothing where it made no pair."""

    round: int
    prompt_id: str
    prompt: str
    sample: int
    completion: str
    reward: float
    chosen: str
    tokens: int
    finish_reason: str
    policy_version: int


@dataclass(frozen=True)
class Made:
    """Something that a run made: `parents` are the digests of what it was made out of, by name.

    Of an online run: policy 0 -> completions -> pairs -> policy 1 -> ...
    """

    name: str
    kind: str  # model or dataset
    path: Path
    digest: str
    version: int
    parents: Mapping[str, str]
    numbers: Mapping[str, float]


def round_samples(folder: Path, index: int, seed: int, prompts: int) -> list[Sample]:
    """All completions of a few seeded prompts of a round, each prompt's best first; none before they are scored."""
    import pyarrow.parquet as parquet

    files = [folder / f"{name}.parquet" for name in ("prompts", "scored", "pairs")]
    if prompts == 0 or not all(file.exists() for file in files):
        return []
    ids = parquet.read_table(files[0], columns=["prompt_id"])["prompt_id"].to_pylist()
    shown = random.Random(f"{seed} shown samples {index}").sample(sorted(ids), min(prompts, len(ids)))
    asked, rows, pairs = (_rows_of(file, shown) for file in files)
    texts = {row["prompt_id"]: _text(row["messages"]) for row in asked}
    sides = {key: side for row in pairs for key, side in _sides(row).items()}
    rows.sort(key=lambda row: (shown.index(row["prompt_id"]), -_number(row["reward"]), row["sample"]))
    return [_sample(row, index, texts[row["prompt_id"]], sides) for row in rows]


def made_in_round(folder: Path, index: int, start: str) -> list[Made]:
    """A round's completions, pairs and policy with their lineage, as far as the round has come.

    Args:
        start: the path of policy 0, which stands for its digest.
    """
    earlier = (_manifest(folder.with_name(f"{i:03d}"), "checkpoint") for i in reversed(range(index)))
    before = next((manifest for manifest in earlier if manifest is not None), None)
    policy = start if before is None else str(before["digest"])
    parents: dict[str, dict[str, str]] = {"scored": {f"policy-{index}": policy}}
    found = []
    for name, file, version, kind in (
        ("scored", "scored.parquet", index, "dataset"),
        ("pairs", "pairs.parquet", index, "dataset"),
        ("checkpoint", "checkpoint", index + 1, "model"),
    ):
        manifest = _manifest(folder, name)
        if manifest is None:
            break
        shown = {"checkpoint": "policy", "scored": "completions"}.get(name, name)
        numbers = manifest.get("metrics") or {"rows": manifest["rows"]}
        found.append(Made(shown, kind, folder / file, manifest["digest"], version, parents[name], numbers))
        parents["pairs"] = {f"completions-{index}": manifest["digest"]}
        parents["checkpoint"] = {f"pairs-{index}": manifest["digest"], f"policy-{index}": policy}
    return found


def made_by_stage(directory: Path, start: str) -> list[Made]:
    """The model of a finished offline stage, or the records of a data stage.

    Args:
        start: the path of the model that the stage began with; nothing for a data stage.
    """
    found = []
    for name, kind in (("model", "model"), ("records", "dataset")):
        manifest, data = _manifest(directory, name), _manifest(directory, "data")
        if manifest is not None:
            parents = {"data": str(data["digest"])} if data else {}
            parents |= {"model": start} if start else {}
            numbers = manifest.get("metrics") or {}
            found.append(Made(name, kind, directory / name, manifest["digest"], 0, parents, numbers))
    return found


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


def _manifest(folder: Path, name: str) -> dict[str, Any] | None:
    file = folder / f"{name}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


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


def _sample(row: dict[str, Any], index: int, prompt: str, sides: Mapping[tuple[str, int], str]) -> Sample:
    return Sample(
        round=index,
        prompt_id=row["prompt_id"],
        prompt=prompt,
        sample=row["sample"],
        completion=row["text"],
        reward=row["reward"],
        chosen=sides.get((row["prompt_id"], row["sample"]), ""),
        tokens=len(row["token_ids"]),
        finish_reason=row["finish_reason"],
        policy_version=row["policy_version"],
    )


def _number(value: float) -> float:
    """A place for a reward that isn't one: last."""
    return value if math.isfinite(value) else -math.inf
