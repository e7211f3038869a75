"""What a round left in its folder, for those who show it: some samples, and what was made out of what."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class AnswerSample:
    """One completion of a shown prompt."""

    round: int
    prompt_id: str
    prompt: str
    sample: int
    completion: str
    reward: float
    chosen: str  # "chosen" or "rejected", or nothing where it made no pair
    tokens: int
    finish_reason: str
    policy_version: int


@dataclass(frozen=True)
class Made:
    """Something that a run made. Of an online run: policy 0 -> completions -> pairs -> policy 1 -> ..."""

    name: str
    kind: Literal["model", "dataset"]
    path: Path
    digest: str
    version: int
    parents: Mapping[str, str]  # the digests of what it was made out of, by name
    numbers: Mapping[str, float]


def round_samples(folder: Path, index: int, seed: int, prompts: int) -> list[AnswerSample]:
    """All completions of a few seeded prompts of a round, each prompt's best first; none before they are scored."""
    from ultramed_rl.store.shards import read_columns, rows_of, shard_files

    files = [folder / f"{name}.parquet" for name in ("prompts", "scored", "pairs")]
    if prompts == 0 or not all(file.exists() for file in files):
        return []
    ids = read_columns(files[0], "prompt_id")["prompt_id"]
    dice = random.Random(f"{seed} shown samples {index}")
    shown = ids.take(dice.sample(range(len(ids)), min(prompts, len(ids)))).to_pylist()
    asked, scored, pairs = (list(rows_of(shard_files(file), shown)) for file in files)
    texts = {row["prompt_id"]: _text(row["messages"]) for row in asked}
    sides: dict[tuple[str, int], str] = {}
    for pair in pairs:
        # A group's id ends with its samples in their order, as in `prompt:3>0`; the first so many are preferred.
        for place, sample in enumerate(pair["group_id"].rpartition(":")[2].split(">")):
            side = "chosen" if place < pair["desirable"] else "rejected"
            sides[pair["prompt_id"], int(sample)] = side
    # A reward that is no number comes last.
    rank = lambda reward: -reward if math.isfinite(reward) else math.inf
    scored.sort(key=lambda row: (shown.index(row["prompt_id"]), rank(row["reward"]), row["sample"]))
    return [
        AnswerSample(
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
    """A round's completions, pairs and policy with their lineage, as far as the round has come. `start`: the path of policy
    0, which stands for its digest."""
    from ultramed_rl.store.run_reader import read_whole

    earlier = (read_whole(folder.with_name(f"{i:03d}") / "checkpoint.json") for i in reversed(range(index)))
    before = next((manifest for manifest in earlier if manifest is not None), None)
    policy = {f"policy-{index}": start if before is None else str(before["digest"])}
    parents, made = policy, []
    for file, name in (("scored", "completions"), ("pairs", "pairs"), ("checkpoint", "policy")):
        manifest = read_whole(folder / f"{file}.json")
        if manifest is None:
            break
        digest, numbers = manifest["digest"], manifest.get("metrics") or {"rows": manifest["rows"]}
        if name == "policy":
            made.append(Made(name, "model", folder / file, digest, index + 1, parents | policy, numbers))
        else:
            made.append(Made(name, "dataset", folder / f"{file}.parquet", digest, index, parents, numbers))
        parents = {f"{name}-{index}": digest}
    return made


def made_by_stage(directory: Path, start: str) -> list[Made]:
    """The model of a finished offline stage, or the records of a data stage. `start`: the path of the model that the stage
    began with; nothing for a data stage."""
    from ultramed_rl.store.run_reader import read_whole

    data, made = read_whole(directory / "data.json"), []
    parents = ({"data": str(data["digest"])} if data else {}) | ({"model": start} if start else {})
    kinds: dict[str, Literal["model", "dataset"]] = {"model": "model", "records": "dataset"}
    for name, kind in kinds.items():
        manifest = read_whole(directory / f"{name}.json")
        if manifest is not None:
            numbers = manifest.get("metrics") or {}
            made.append(Made(name, kind, directory / name, manifest["digest"], 0, parents, numbers))
    return made


def _text(messages: list[dict[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
