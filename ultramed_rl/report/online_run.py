"""An online run read back: its rounds, and its policies' answers to the held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ultramed_rl.evaluation.statistics import Interval, paired_bootstrap, wilson_interval
from ultramed_rl.report.answers import Answer, PairAnswers, by_prompt, mean, read_answers, read_pairs
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.run_reader import Metrics, RunReader

_RESAMPLES = 2000
_COUNTS = ("tied", "identical", "small_margin", "length_ratio", "non_finite", "too_few")


@dataclass(frozen=True)
class Round:
    """A committed round: `metrics` are those it was committed with; `answers` are those sampled in it, scored, or of a large
    one some prompts'; `pairs` are theirs."""

    index: int
    path: Path
    metrics: Metrics
    seconds: Metrics
    answers: tuple[Answer, ...]
    pairs: tuple[PairAnswers, ...]

    @property
    def label(self) -> str:
        return f"round {self.index}"

    def number(self, name: str) -> float:
        """One of the metrics; NaN where it has none."""
        return self.metrics.get(name, math.nan)

    @cached_property
    def sampled(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.sampled]

    @cached_property
    def by_prompt(self) -> list[list[Answer]]:
        """The sampled answers of each prompt."""
        return by_prompt(self.sampled)

    @property
    def asked(self) -> int:
        """Prompts with scored answers, shown here or not."""
        return round(self.metrics.get("pairs", 0.0) + sum(self.dropped.values()))

    @property
    def dropped(self) -> dict[str, float]:
        """Prompts that gave no pair, by the reason."""
        return {name: self.metrics.get(f"pairs_{name}", 0.0) for name in _COUNTS}


@dataclass(frozen=True)
class Policy:
    """A version of the policy (the rounds it was trained for) and its answers to the held-out prompts."""

    version: int
    path: Path
    answers: tuple[Answer, ...]

    @cached_property
    def prompt_rewards(self) -> dict[str, float]:
        """The mean of each prompt's finite rewards; a prompt without any is left out."""
        rewards = {group[0].prompt_id: mean([a.reward for a in group]) for group in by_prompt(self.answers)}
        return {prompt: reward for prompt, reward in rewards.items() if math.isfinite(reward)}

    @property
    def label(self) -> str:
        return f"policy {self.version}" if self.version else "start"

    @property
    def length(self) -> float:
        """Tokens an answer."""
        return mean([answer.tokens for answer in self.answers])

    @property
    def benchmarks(self) -> dict[str, Any] | None:
        """What its benchmarks came to, where it sat any."""
        path = self.path / "benchmarks" / "results.json"
        return read_json(path) if path.is_file() else None


@dataclass(frozen=True)
class Change:
    """A policy against another on the same prompts, paired: the mean reward's change with its bootstrap interval,
    and the share of prompts with the higher reward (ties by halves) with Wilson's."""

    prompts: int
    reward: Interval
    wins: Interval

    @property
    def significant(self) -> bool:
        return self.reward.low > 0 or self.reward.high < 0


@dataclass(frozen=True)
class OnlineRun:
    """What a report of an online run is made of. `policies` begins with the starting one, where it was evaluated."""

    files: RunReader
    rounds: tuple[Round, ...]
    policies: tuple[Policy, ...]

    @property
    def name(self) -> str:
        return self.files.name

    def total(self, name: str) -> float:
        """A metric's sum over the rounds."""
        return math.fsum(one.metrics.get(name, 0.0) for one in self.rounds)

    def changes(self) -> Iterator[tuple[Policy, Change]]:
        """Every later policy against the first, where they can be compared."""
        for policy in self.policies[1:]:
            change = self.change(self.policies[0], policy)
            if change is not None:
                yield policy, change

    def change(self, before: Policy, after: Policy) -> Change | None:
        """None where no prompt has a finite reward on both sides."""
        resamples = int(self.files.setting("evaluation.bootstrap", _RESAMPLES))
        seed = int(self.files.setting("run.seed", 0))
        return compare_prompts(before.prompt_rewards, after.prompt_rewards, resamples, seed)


def compare_prompts(
    before: dict[str, float], after: dict[str, float], resamples: int = _RESAMPLES, seed: int = 0
) -> Change | None:
    """A paired comparison over the prompts that both have a reward of; None where there is none."""
    prompts = sorted(before.keys() & after.keys())
    if not prompts:
        return None
    old, new = [before[p] for p in prompts], [after[p] for p in prompts]
    wins = wilson_interval(sum(win_shares(old, new)), len(prompts))
    return Change(len(prompts), paired_bootstrap(old, new, resamples, seed), wins)


def win_shares(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """1 where `after` is higher, a half for a tie, else 0."""
    return [0.5 if new == old else float(new > old) for old, new in zip(before, after, strict=True)]


def read_online_run(files: RunReader) -> OnlineRun:
    """Read the committed rounds of an online run; one that is under way is left out."""
    start = files.path / "initial"
    rounds: list[Round] = []
    policies = [Policy(0, start, tuple(read_answers(start / "evaluation.parquet")))]
    for index, metrics in enumerate(files.rounds):
        folder = files.round_path(index)
        answers = tuple(read_answers(folder / "scored.parquet"))
        pairs = tuple(read_pairs(folder / "pairs.parquet", {answer.prompt_id for answer in answers}))
        rounds.append(Round(index, folder, metrics, files.seconds(folder), answers, pairs))
        policies.append(Policy(index + 1, folder, tuple(read_answers(folder / "evaluation.parquet"))))
    return OnlineRun(files, tuple(rounds), tuple(policies))
