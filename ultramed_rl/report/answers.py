"""Answers of a run as numbers: read from parquet batch by batch, so that texts and tokens are never all in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultramed_rl.config.factory_steps import Answer as AnswerStep
from ultramed_rl.store.shards import shard_files
from ultramed_rl.store.tables import told_of

_ROWS, _FILES = 512, 12
Key = tuple[str, int]  # prompt id and sample


@dataclass(frozen=True)
class Answer:
    """What is known of one scored answer but its text. `tokens` counts the end-of-turn token too."""

    prompt_id: str
    sample: int
    tokens: int
    finish: str
    reward: float
    empty: bool
    refusal: bool

    @property
    def key(self) -> Key:
        return self.prompt_id, self.sample

    @property
    def scored(self) -> bool:
        """Whether the reward is a number."""
        return math.isfinite(self.reward)

    @property
    def cut(self) -> bool:
        """Whether it met the limit of new tokens."""
        return self.finish == "length"

    @property
    def sampled(self) -> bool:
        """Whether the policy wrote it; not so of the data's own answer."""
        return self.finish != "reference"


@dataclass(frozen=True)
class PairAnswers:
    """The answers of one preference group, best first: their samples, and the reward margin."""

    prompt_id: str
    samples: tuple[int, ...]
    margin: float

    @property
    def chosen(self) -> Key:
        return self.prompt_id, self.samples[0]

    @property
    def rejected(self) -> Key:
        return self.prompt_id, self.samples[-1]


def read_answers(path: Path) -> list[Answer]:
    """The scored answers of a file; none where it isn't there. Of a round of millions those of some prompts: every k-th of
    its files, so that about 50,000 are read."""
    answers = []
    columns = ["prompt_id", "sample", "text", "finish_reason", "reward"]
    for batch in _batches(_some(shard_files(path)), [*columns, "token_ids"]):
        tokens = pc.list_value_length(batch.column("token_ids")).to_pylist()
        rows = zip(tokens, *(batch.column(name).to_pylist() for name in columns), strict=True)
        for count, prompt_id, sample, text, finish, reward in rows:
            reward = math.nan if reward is None else reward
            empty, refusal = not text.strip(), is_refusal(text)
            answers.append(Answer(prompt_id, sample, count, finish, reward, empty, refusal))
    return answers


def read_pairs(path: Path, wanted: set[str]) -> list[PairAnswers]:
    """The preference groups of these prompts; none where the file isn't there."""
    columns = ["group_id", "prompt_id", "margin", "chosen_sample", "rejected_sample"]
    return [
        PairAnswers(row["prompt_id"], _samples(row), row["margin"])
        for batch in _batches(shard_files(path), columns)
        for row in _of_prompts(batch, wanted)
    ]


def read_texts(path: Path, wanted: set[str]) -> dict[Key, str]:
    """The texts of these prompts' answers that `read_answers` gave."""
    return {
        (row["prompt_id"], row["sample"]): row["text"]
        for batch in _batches(_some(shard_files(path)), ["prompt_id", "sample", "text"])
        for row in _of_prompts(batch, wanted)
    }


def read_prompts(path: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """`messages`, `answer` and `kind` of these prompts."""
    return {
        row["prompt_id"]: row
        for batch in _batches(shard_files(path), ["prompt_id", "messages", "answer", "kind"])
        for row in _of_prompts(batch, wanted)
    }


def by_prompt(answers: Iterable[Answer]) -> list[list[Answer]]:
    """The answers of each prompt."""
    prompts: dict[str, list[Answer]] = {}
    for answer in answers:
        prompts.setdefault(answer.prompt_id, []).append(answer)
    return list(prompts.values())


def share(answers: Iterable[Answer], which: Callable[[Answer], bool]) -> float:
    """The share of answers of which something holds; NaN of none."""
    return mean([float(which(answer)) for answer in answers])


def is_refusal(text: str) -> bool:
    """Whether an answer begins as a refusal does, by the data factory's default patterns."""
    start = text.strip()[:200]
    return any(pattern.search(start) for pattern in _refusals())


def mean(values: Sequence[float]) -> float:
    """The mean of finite values; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _samples(row: dict[str, Any]) -> tuple[int, ...]:
    """A group's samples, out of its id (the prompt's, a colon, and these); the first version wrote two columns."""
    if "group_id" not in row:
        return row["chosen_sample"], row["rejected_sample"]
    return tuple(map(int, row["group_id"][len(row["prompt_id"]) + 1 :].split(">")))


@cache
def _refusals() -> list[re.Pattern[str]]:
    return [re.compile(pattern, re.IGNORECASE) for pattern in AnswerStep.model_fields["refusals"].default]


def _some(files: Sequence[Path]) -> Sequence[Path]:
    return files[:: -(-len(files) // _FILES) or 1]


def _of_prompts(batch: Any, wanted: set[str]) -> list[dict[str, Any]]:
    ids = pa.array(sorted(wanted), type=pa.string())
    rows: list[dict[str, Any]] = batch.filter(pc.is_in(batch.column("prompt_id"), value_set=ids)).to_pylist()
    return rows


def _batches(files: Sequence[Path], columns: list[str]) -> Iterator[Any]:
    for shard in files:
        with told_of(shard), pq.ParquetFile(shard) as file:
            known = [name for name in columns if name in file.schema_arrow.names]
            yield from file.iter_batches(batch_size=_ROWS, columns=known)
