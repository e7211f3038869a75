"""An online run read back: its rounds, and its policies' answers to the held-out prompts.

Answers are numbers here, read from parquet batch by batch, so that texts and tokens are never all in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultramed_rl.config.factory_steps import Answer as AnswerStep
from ultramed_rl.evaluation.statistics import Interval, paired_bootstrap, wilson_interval
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.store.shards import shard_files
from ultramed_rl.store.tables import told_of

RESAMPLES = 2000
_ROWS, _FILES = 512, 12
_REFUSALS = [re.compile(p, re.IGNORECASE) for p in AnswerStep.model_fields["refusals"].default]
# Why a prompt gave no pair: a column's heading, and the words of a figure.
REASONS = {
    "tied": ("tied", "tied: nothing scores lower"),
    "identical": ("identical", "identical: all texts are alike"),
    "small_margin": ("margin", "margin below pairs.min_margin"),
    "length_ratio": ("length ratio", "beyond pairs.max_length_ratio"),
    "non_finite": ("not finite", "rewards not finite"),
    "too_few": ("too few", "fewer than two answers"),
}
GROWTH = 0.2
CORRELATION = 0.3
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

    @property
    def key(self) -> Key:
        return self.prompt_id, self.sample

    @property
    def scored(self) -> bool:
        """Whether the reward is a number."""
        return math.isfinite(self.reward)


@dataclass(frozen=True)
class Pair:
    """The best and the worst answer of a preference group, and the reward margin."""

    chosen: Key
    rejected: Key
    margin: float


@dataclass(frozen=True)
class Round:
    """A committed round."""

    index: int
    path: Path
    metrics: Metrics  # those it was committed with
    seconds: Metrics
    answers: Sequence[ScoredAnswer]  # those sampled in it, scored; of a large one those of some prompts
    pairs: Sequence[Pair]  # theirs

    @property
    def label(self) -> str:
        return f"round {self.index}"

    def number(self, name: str) -> float:
        """One of the metrics; NaN where it has none."""
        return self.metrics.get(name, math.nan)

    @cached_property
    def sampled(self) -> list[ScoredAnswer]:
        return [answer for answer in self.answers if answer.sampled]

    @property
    def dropped(self) -> dict[str, float]:
        """Prompts that gave no pair, by the reason."""
        return {reason: self.metrics.get(f"pairs_{reason}", 0.0) for reason in REASONS}


@dataclass(frozen=True)
class Policy:
    """A version of the policy (the rounds it was trained for) and its answers to the held-out prompts."""

    version: int
    path: Path
    answers: Sequence[ScoredAnswer]

    @property
    def label(self) -> str:
        return f"policy {self.version}" if self.version else "start"

    @cached_property
    def rewards(self) -> dict[str, float]:
        """The mean reward of each prompt that has a finite one."""
        return prompt_rewards(self.answers)

    @property
    def length(self) -> float:
        """Tokens an answer."""
        return mean([answer.tokens for answer in self.answers])

    @cached_property
    def benchmarks(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What its benchmarks came to, where it sat any, by task and protocol."""
        path = self.path / "benchmarks" / "results.json"
        results = read_json(path)["results"] if path.is_file() else []
        return {(result["task"], result["protocol"]): result for result in results}


@dataclass(frozen=True)
class Change:
    """A policy against another on the same prompts, paired."""

    prompts: int
    reward: Interval  # of the mean reward's change, by the bootstrap
    wins: Interval  # the share of prompts with the higher reward, ties by halves, with Wilson's


@dataclass(frozen=True)
class LengthCheck:
    """Tokens of the first and the last policy's held-out answers. `growth` is the change as a share; NaN where either is
    not known. `correlation` of reward and length within prompts, -1 to 1; NaN where one of them never varies."""

    first: float
    last: float
    growth: float
    correlation: float

    @property
    def flagged(self) -> bool:
        """Whether lengths moved far in the direction that the reward pays for."""
        paid = self.correlation * math.copysign(1.0, self.growth)
        return abs(self.growth) >= GROWTH and paid >= CORRELATION

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        if math.isnan(self.growth):
            return "Lengths could not be compared: the held-out answers of the first or the last policy are missing."
        moved = f"went from {self.first:.1f} to {self.last:.1f} tokens ({self.growth:+.0%})"
        if math.isnan(self.correlation):
            return f"Held-out answers {moved}; reward or length never varied within a prompt."
        paid = f"reward and length correlate by {self.correlation:+.2f} within prompts"
        if self.flagged:
            way = "longer" if self.growth > 0 else "shorter"
            return f"Held-out answers {moved}, and {paid}: part of the gain may be pay for {way} answers."
        return f"Held-out answers {moved}; {paid}: not flagged."


@dataclass(frozen=True)
class OnlineRun:
    """What a report of an online run is made of. `policies` begins with the starting one."""

    files: RunReader
    rounds: Sequence[Round]
    policies: Sequence[Policy]

    @property
    def name(self) -> str:
        return self.files.name

    def total(self, name: str) -> float:
        """A metric's sum over the rounds."""
        return math.fsum(one.metrics.get(name, 0.0) for one in self.rounds)

    @cached_property
    def changes(self) -> dict[str, Change]:
        """Every later policy, by its label, against the first, where they share a prompt with a finite reward."""
        resamples = int(self.files.setting("evaluation.bootstrap", RESAMPLES))
        seed, first = int(self.files.setting("run.seed", 0)), self.policies[0].rewards
        changes = {p.label: compare_prompts(first, p.rewards, resamples, seed) for p in self.policies[1:]}
        return {label: change for label, change in changes.items() if change is not None}

    @property
    def benchmarked(self) -> Policy | None:
        """The newest policy that sat the benchmarks."""
        return next((policy for policy in reversed(self.policies) if policy.benchmarks), None)

    @property
    def change(self) -> Change | None:
        """The last policy against the first."""
        return self.changes.get(self.policies[-1].label)

    @cached_property
    def length(self) -> LengthCheck:
        """The length rule applied to the run; with fewer than two evaluated policies there is no growth."""
        first, last = (self.policies[at].length if len(self.policies) > 1 else math.nan for at in (0, -1))
        growth = last / first - 1 if first > 0 else math.nan
        groups = (group for one in self.rounds for group in by_prompt(one.sampled))
        return LengthCheck(first, last, growth, within_correlation(groups))


def read_online_run(files: RunReader) -> OnlineRun:
    """Read the committed rounds of an online run; one that is under way is left out."""
    start = files.path / "initial"
    rounds: list[Round] = []
    policies = [Policy(0, start, read_answers(start / "evaluation.parquet"))]
    for index, metrics in enumerate(files.rounds):
        folder = files.round_path(index)
        answers = read_answers(folder / "scored.parquet")
        pairs = read_pairs(folder / "pairs.parquet", {answer.prompt_id for answer in answers})
        rounds.append(Round(index, folder, metrics, files.seconds(folder), answers, pairs))
        policies.append(Policy(index + 1, folder, read_answers(folder / "evaluation.parquet")))
    return OnlineRun(files, rounds, policies)


def read_answers(path: Path) -> list[ScoredAnswer]:
    """The scored answers of a file; none where it isn't there. Of a round of millions those of some prompts: every k-th of
    its files, so that about 50,000 are read."""
    answers = []
    columns = ["prompt_id", "sample", "text", "finish_reason", "reward"]
    for batch in _batches(path, [*columns, "token_ids"], some=True):
        tokens = pc.list_value_length(batch.column("token_ids")).to_pylist()
        rows = zip(tokens, *(batch.column(name).to_pylist() for name in columns), strict=True)
        for count, prompt_id, sample, text, finish, reward in rows:
            text, reward = text.strip(), math.nan if reward is None else reward
            refusal = any(pattern.search(text[:200]) for pattern in _REFUSALS)
            ends = finish == "length", finish != "reference"
            answers.append(ScoredAnswer(prompt_id, sample, count, reward, *ends, not text, refusal))
    return answers


def read_pairs(path: Path, wanted: set[str]) -> list[Pair]:
    """The preference groups of these prompts; none where the file isn't there."""
    pairs = []
    columns = ["group_id", "prompt_id", "margin", "chosen_sample", "rejected_sample"]
    for row in rows_of(path, columns, wanted):
        prompt = row["prompt_id"]
        if "group_id" in row:  # the prompt's id, a colon, and its samples in their order
            samples = [int(sample) for sample in row["group_id"][len(prompt) + 1 :].split(">")]
        else:  # the first version wrote two columns
            samples = [row["chosen_sample"], row["rejected_sample"]]
        pairs.append(Pair((prompt, samples[0]), (prompt, samples[-1]), row["margin"]))
    return pairs


def rows_of(
    path: Path, columns: list[str], prompts: Iterable[str], some: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of these prompts in a file, or in those of its shards that `read_answers` reads."""
    ids = pa.array(sorted(prompts), type=pa.string())
    for batch in _batches(path, columns, some):
        yield from batch.filter(pc.is_in(batch.column("prompt_id"), value_set=ids)).to_pylist()


def _batches(path: Path, columns: list[str], some: bool) -> Iterator[Any]:
    shards = shard_files(path)
    for shard in shards[:: -(-len(shards) // _FILES) or 1] if some else shards:
        with told_of(shard), pq.ParquetFile(shard) as file:
            known = [name for name in columns if name in file.schema_arrow.names]
            yield from file.iter_batches(batch_size=_ROWS, columns=known)


def by_prompt(answers: Iterable[ScoredAnswer]) -> list[list[ScoredAnswer]]:
    """The answers of each prompt."""
    prompts: dict[str, list[ScoredAnswer]] = {}
    for answer in answers:
        prompts.setdefault(answer.prompt_id, []).append(answer)
    return list(prompts.values())


def prompt_rewards(answers: Iterable[ScoredAnswer]) -> dict[str, float]:
    """The mean of each prompt's finite rewards; a prompt without any is left out."""
    rewards = {group[0].prompt_id: mean([a.reward for a in group]) for group in by_prompt(answers)}
    return {prompt: reward for prompt, reward in rewards.items() if math.isfinite(reward)}


def mean_over_prompts(answers: Iterable[ScoredAnswer]) -> Interval | None:
    """The mean reward over prompts with its bootstrap interval; None without a finite reward."""
    means = list(prompt_rewards(answers).values())
    return paired_bootstrap([0.0] * len(means), means, 1000, 0) if means else None


def within_correlation(groups: Iterable[Sequence[ScoredAnswer]]) -> float:
    """Pearson's correlation of tokens and reward after each group's means are taken off; NaN without variance."""
    products = squares_of_tokens = squares_of_rewards = 0.0
    for group in groups:
        scored = [answer for answer in group if answer.scored]
        tokens, reward = mean(a.tokens for a in scored), mean(a.reward for a in scored)
        for answer in scored:
            products += (answer.tokens - tokens) * (answer.reward - reward)
            squares_of_tokens += (answer.tokens - tokens) ** 2
            squares_of_rewards += (answer.reward - reward) ** 2
    if squares_of_tokens <= 1e-12 or squares_of_rewards <= 1e-12:
        return math.nan
    return products / math.sqrt(squares_of_tokens * squares_of_rewards)


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


def share(answers: Iterable[ScoredAnswer], which: str) -> float:
    """The share of answers that are `cut`, `empty` or a `refusal`; NaN of none."""
    return mean(getattr(answer, which) for answer in answers)


def mean(values: Iterable[float]) -> float:
    """The mean of finite values; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
