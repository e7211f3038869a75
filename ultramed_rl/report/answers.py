"""The answers of an online run, read back: numbers and no texts, from parquet batch by batch, so that texts and tokens are never
all in memory; and what is counted and compared of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultramed_rl.config.factory_steps import Answer as AnswerStep
from ultramed_rl.evaluation.statistics import Interval, mean_interval, paired_bootstrap, wilson_interval
from ultramed_rl.learning.length import LengthFit
from ultramed_rl.store.shards import rows_of, shard_files
from ultramed_rl.store.tables import told_of

RESAMPLES = 2000
_ROWS, _FILES = 512, 12
_REFUSALS = [re.compile(p, re.IGNORECASE) for p in AnswerStep.model_fields["refusals"].default]
Key = tuple[str, int]  # prompt id and sample


@dataclass(frozen=True)
class ScoredAnswer:
    """What is known of one scored answer but its text."""

    prompt_id: str
    sample: int
    tokens: int  # with the end-of-turn token
    reward: float
    cut: bool  # it met the limit of new tokens
    sampled: bool  # the policy wrote it; not so of the data's own answer
    empty: bool
    refusal: bool  # it begins as a refusal does, by the data factory's default patterns
    all_thought: bool = False  # it is reasoning that never ends, or after which nothing is said

    @property
    def key(self) -> Key:
        return self.prompt_id, self.sample

    @property
    def scored(self) -> bool:
        return math.isfinite(self.reward)


@dataclass(frozen=True)
class Pair:
    """The best and the worst answer of a preference group, and the reward margin."""

    chosen: Key
    rejected: Key
    margin: float


@dataclass(frozen=True)
class CountedAnswers:
    """Answers of one policy, and what is counted of them."""

    label: str
    path: Path  # the folder of their files
    answers: Sequence[ScoredAnswer]

    def values(self, name: str) -> list[float]:
        """The finite rewards of the answers, or their tokens."""
        return [value for answer in self.answers if math.isfinite(value := getattr(answer, name))]

    @cached_property
    def shares(self) -> dict[str, float]:
        """`answers`: how many; their mean `tokens` and `reward`; and which share is a `refusal`, `empty`, `cut`, `all_thought`,
        or `unscored`: without a finite reward. NaN of none."""
        names = ("tokens", "reward", "refusal", "empty", "cut", "all_thought")
        means = {name: mean(getattr(answer, name) for answer in self.answers) for name in names}
        unscored = mean(not answer.scored for answer in self.answers)
        return {"answers": len(self.answers), **means, "unscored": unscored}

    @cached_property
    def rewards(self) -> dict[str, float]:
        """The mean reward of each prompt that has a finite one."""
        rewards = {group[0].prompt_id: mean([a.reward for a in group]) for group in by_prompt(self.answers)}
        return {prompt: reward for prompt, reward in rewards.items() if math.isfinite(reward)}

    @cached_property
    def mean_reward(self) -> Interval | None:
        """The mean reward over prompts with its bootstrap interval; None without a finite reward."""
        means = list(self.rewards.values())
        return mean_interval(means, 1000, 0) if means else None

    @property
    def correlation(self) -> float:
        return within_correlation(by_prompt(self.answers))


@dataclass(frozen=True)
class Change:
    """A policy against another on the same prompts, paired."""

    prompts: int
    reward: Interval  # of the mean reward's change, by the bootstrap
    wins: Interval  # the share of prompts with the higher reward, ties by halves, with Wilson's


def read_answers(path: Path) -> list[ScoredAnswer]:
    """The scored answers of a file, see `some_files`; none where it isn't there."""
    answers = []
    columns = ["prompt_id", "sample", "text", "finish_reason", "reward", "answer_start"]
    for shard in some_files(path):
        with told_of(shard), pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=[*columns, "token_ids"]):
                tokens = pc.list_value_length(batch.column("token_ids")).to_pylist()
                rows = zip(tokens, *(batch.column(name).to_pylist() for name in columns), strict=True)
                answers += [_scored(*row) for row in rows]
    return answers


def _scored(
    tokens: int, prompt_id: str, sample: int, text: str, finish: str, reward: float | None, start: int
) -> ScoredAnswer:
    text, known = text[start:].strip(), math.nan if reward is None else reward
    refusal = any(pattern.search(text[:200]) for pattern in _REFUSALS)
    ends = finish == "length", finish != "reference"
    return ScoredAnswer(prompt_id, sample, tokens, known, *ends, not text, refusal, start > 0 and not text)


def read_pairs(path: Path, wanted: set[str]) -> list[Pair]:
    """The preference groups of these prompts; none where the file isn't there."""
    pairs = []
    for row in rows_of(shard_files(path), wanted, ["group_id", "prompt_id", "margin"]):
        prompt = row["prompt_id"]  # with which the id begins, then a colon and the samples in their order
        samples = [int(sample) for sample in row["group_id"][len(prompt) + 1 :].split(">")]
        pairs.append(Pair((prompt, samples[0]), (prompt, samples[-1]), row["margin"]))
    return pairs


def some_files(path: Path) -> list[Path]:
    """An artifact's files; of a round of millions every k-th, so that about 50,000 answers are in them."""
    shards = shard_files(path)
    return shards[:: -(-len(shards) // _FILES) or 1]


def by_prompt(answers: Iterable[ScoredAnswer]) -> list[list[ScoredAnswer]]:
    prompts: dict[str, list[ScoredAnswer]] = {}
    for answer in answers:
        prompts.setdefault(answer.prompt_id, []).append(answer)
    return list(prompts.values())


def within_correlation(groups: Iterable[Sequence[ScoredAnswer]]) -> float:
    """Pearson's correlation of tokens and reward after each group's means are taken off; NaN without variance."""
    fit = LengthFit()
    for group in groups:
        fit.add((answer.tokens, answer.reward) for answer in group)
    return fit.correlation


def compare_prompts(
    before: dict[str, float], after: dict[str, float], resamples: int = RESAMPLES, seed: int = 0
) -> Change | None:
    """A paired comparison over the prompts that both have a reward of; None where there is none."""
    prompts = sorted(before.keys() & after.keys())
    if not prompts:
        return None
    old, new = [before[p] for p in prompts], [after[p] for p in prompts]
    wins = wilson_interval(sum(won_prompts(before, after).values()), len(prompts))
    return Change(len(prompts), paired_bootstrap(old, new, resamples, seed), wins)


def won_prompts(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Of each prompt that both have a reward of: 1 where `after` is higher, a half for a tie, else 0."""
    prompts = sorted(before.keys() & after.keys())
    return {p: 0.5 if after[p] == before[p] else float(after[p] > before[p]) for p in prompts}


def mean(values: Iterable[float]) -> float:
    """The mean of finite values; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
