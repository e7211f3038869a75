"""An online run read back: its rounds and policies, and what a report shows of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.learning.length import PAYS
from ultramed_rl.report.answers import (
    RESAMPLES,
    Change,
    CountedAnswers,
    Pair,
    ScoredAnswer,
    by_prompt,
    compare_prompts,
    read_answers,
    read_pairs,
    within_correlation,
)
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking import verdict
from ultramed_rl.tracking.tables import spoken

REASONS = {  # why a prompt gave no pair
    "tied": "tied: nothing scores lower",
    "identical": "identical: all texts are alike",
    "small_margin": "margin below pairs.min_margin",
    "length_ratio": "beyond pairs.max_length_ratio",
    "non_finite": "rewards not finite",
    "too_few": "fewer than two answers",
}
_NONE = Interval(0.0, 0.0, 0.0)
_PHASES = {
    "completions": "generate",
    "scored": "score",
    "pairs": "pair",
    "reference": "reference logprobs",
    "checkpoint": "train and save",
    "reference_model": "average the reference",
    "evaluation": "evaluate",
    "judges": "judge",
    "length": "what length pays",
    "reward_model": "train the reward model",
    "prompts": "choose prompts",
}


@dataclass(frozen=True)
class Round(CountedAnswers):
    """A committed round; its answers are the samples. Of a large one those of some prompts are read."""

    index: int
    metrics: Metrics  # those it was committed with
    ranked: Sequence[ScoredAnswer]  # the samples and the data's own answers
    pairs: Sequence[Pair]  # theirs

    @property
    def dropped(self) -> dict[str, float]:
        """Prompts that gave no pair, by the reason."""
        return {reason: self.metrics.get(f"pairs_{reason}", 0.0) for reason in REASONS}


@dataclass(frozen=True)
class Policy(CountedAnswers):
    """A version of the policy (the rounds it was trained for); its answers are those to the held-out prompts."""

    version: int

    @cached_property
    def benchmarks(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What its benchmarks came to, where it has any, by task and protocol."""
        path = self.path / "benchmarks" / "results.json"
        results = read_json(path)["results"] if path.is_file() else []
        return {(result["task"], result["protocol"]): result for result in results}


@dataclass(frozen=True)
class LengthCheck:
    """Tokens of the first and the last policy's held-out answers. `growth` is the change as a share; NaN where either is
    not known. `correlation` of reward and length within prompts, -1 to 1; NaN where one of them never varies."""

    GROWTH: ClassVar = 0.2  # from which on lengths have moved
    CORRELATION: ClassVar = PAYS

    first: float
    last: float
    growth: float
    correlation: float

    @property
    def pays(self) -> bool:
        """Whether the reward pays for length, either way."""
        return abs(self.correlation) >= self.CORRELATION

    @property
    def flagged(self) -> bool:
        """Whether lengths moved far in the direction that the reward pays for."""
        paid = self.correlation * math.copysign(1.0, self.growth)
        return abs(self.growth) >= self.GROWTH and paid >= self.CORRELATION


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
        return math.fsum(one.metrics.get(name, 0.0) for one in self.rounds)

    def numbers(self, metric: str) -> tuple[list[str], list[float]]:
        """The rounds, and a metric of each; NaN where it has none."""
        return [one.label for one in self.rounds], [one.metrics.get(metric, math.nan) for one in self.rounds]

    def values(self, groups: Sequence[CountedAnswers], name: str) -> dict[str, list[float]]:
        """The rewards or the tokens of the answers of the policies, or of the rounds."""
        return {one.label: values for one in groups if (values := one.values(name))}

    @property
    def margins(self) -> dict[str, list[float]]:
        return {one.label: [pair.margin for pair in one.pairs] for one in self.rounds if one.pairs}

    @property
    def prompts(self) -> int:
        return sum(round(one.metrics.get("pairs", 0.0) + sum(one.dropped.values())) for one in self.rounds)

    @property
    def outcomes(self) -> dict[str, dict[str, float]]:
        """By round, what became of its prompts."""
        return {
            one.label: {"pairs": one.metrics.get("pairs", 0.0)}
            | {words: one.dropped[reason] for reason, words in REASONS.items()}
            for one in self.rounds
        }

    @cached_property
    def phases(self) -> dict[str, dict[str, float]]:
        """Seconds of each round's phases, and of those before."""
        phases = {"before round 0": phase_times(self.files, "initial")}
        for one in self.rounds:
            phases[one.label] = phase_times(self.files, one.path)
            if math.isfinite(sync := one.metrics.get("sync_seconds", math.nan)):
                phases[one.label]["send weights"] = sync
        return {label: seconds for label, seconds in phases.items() if seconds}

    @property
    def phase_totals(self) -> list[tuple[str, float, float]]:
        """Each phase's seconds in all and its share, the longest first; without those of a moment."""
        totals: Counter[str] = Counter()
        for seconds in self.phases.values():
            totals.update(seconds)
        return [(name, s, s / totals.total()) for name, s in totals.most_common() if s >= 0.05]

    @cached_property
    def changes(self) -> dict[str, Change]:
        """Every later policy, by its label, against the first, where they share a prompt with a finite reward."""
        resamples = int(self.files.setting("evaluation.bootstrap", RESAMPLES))
        seed, first = int(self.files.setting("run.seed", 0)), self.policies[0].rewards
        changes = {p.label: compare_prompts(first, p.rewards, resamples, seed) for p in self.policies[1:]}
        return {label: change for label, change in changes.items() if change is not None}

    @property
    def gains(self) -> list[tuple[str, Interval]]:
        """The reward's change of every policy from the first."""
        return [("start", _NONE), *((name, c.reward) for name, c in self.changes.items())]

    @property
    def wins(self) -> dict[str, Interval]:
        return {label: change.wins for label, change in self.changes.items()}

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [{"policy": policy, "change": self.changes.get(policy.label)} for policy in self.policies]

    @property
    def divergence(self) -> dict[int, float]:
        """KL from the reference of the policy that sampled in a round, by the round, where there is a reference."""
        kl = {one.index: one.metrics.get("kl_to_reference", math.nan) for one in self.rounds}
        return {index: max(0.0, value) for index, value in kl.items() if math.isfinite(value)}

    @property
    def frontier(self) -> dict[str, list[tuple[float, Interval]]]:
        """The mean reward by the KL of the policy that wrote the answers."""
        groups = {"held-out prompts": self.policies, "the round's own samples": self.rounds}
        return {
            name: [(kl, mean) for i, kl in self.divergence.items() if (mean := of[i].mean_reward) is not None]
            for name, of in groups.items()
        }

    @property
    def frontier_labels(self) -> dict[float, str]:
        return {kl: self.policies[index].label for index, kl in self.divergence.items()}

    @property
    def benchmarks(self) -> dict[str, list[tuple[dict[str, Any], float | None]]]:
        """Each policy's results with the p-values of their difference from the first, where there is one."""
        results: dict[str, list[tuple[dict[str, Any], float | None]]] = {}
        for policy in self.policies:
            metrics = self.rounds[policy.version - 1].metrics if policy.version else {}
            for (task, protocol), result in policy.benchmarks.items():
                p_value = metrics.get(f"bench_{task}_{protocol}_p")
                results.setdefault(policy.label, []).append((result, p_value))
        return results

    @property
    def benchmarked(self) -> Policy | None:
        """The newest policy that sat the benchmarks."""
        return next((policy for policy in reversed(self.policies) if policy.benchmarks), None)

    @cached_property
    def verdict(self) -> verdict.RunVerdict | None:
        """As verdict.json has it."""
        return verdict.run_verdict(self.files)

    @property
    def policy(self) -> Policy:
        """The run's own: the last one, or the one that run.keep=best keeps."""
        return self.policies[verdict.kept_round(self.files) + 1]

    @property
    def change(self) -> Change | None:
        return self.changes.get(self.policy.label)

    @property
    def judges(self) -> list[str]:
        """The judges that have said something, by their names."""
        return [
            name
            for name in verdict.judges_of(self.files)
            if any(verdict.MeasuredChange.of(one.metrics, name) for one in self.rounds)
        ]

    @property
    def biases(self) -> list[tuple[str, str]]:
        """Headings and formats of what rounds have counted of judges that compare."""
        names = [name for name in self.rounds[-1].metrics if name.startswith("bias_")]
        return [(name.removeprefix("bias_").replace("_", " "), f"{{metrics.{name}:.0%}}") for name in names]

    @property
    def judged(self) -> dict[str, list[tuple[str | float, Interval]]]:
        """The change of the reward and of each judge from the start, by policy."""
        judged: dict[str, list[tuple[str | float, Interval]]] = {}
        for name in (verdict.REWARD, *self.judges):
            judged[name] = [("start", _NONE)]
            for policy, one in zip(self.policies[1:], self.rounds, strict=True):
                if (change := verdict.MeasuredChange.of(one.metrics, name)) is not None:
                    judged[name].append((policy.label, Interval(change.change, change.low, change.high)))
        return judged

    @property
    def judged_by_kl(self) -> dict[str, list[tuple[str | float, Interval]]]:
        """The same over the KL of those policies that have sampled, by which it is estimated."""
        kl = {
            self.policies[int(self.rounds[i].metrics.get("policy_version", i))].label: value
            for i, value in self.divergence.items()
        }
        return {
            name: sorted(
                ((kl[str(label)], change) for label, change in points if label in kl), key=itemgetter(0)
            )
            for name, points in self.judged.items()
        }

    @cached_property
    def length(self) -> LengthCheck:
        """The length rule applied to the run; with fewer than two evaluated policies there is no growth."""
        first, last = (self.policies[at].shares["tokens"] for at in (0, -1))
        growth = last / first - 1 if len(self.policies) > 1 and first > 0 else math.nan
        groups = (group for one in self.rounds for group in by_prompt(one.answers))
        return LengthCheck(first, last, growth, within_correlation(groups))


def read_online_run(files: RunReader) -> OnlineRun:
    """Read the committed rounds of an online run; one that is under way is left out."""
    start = files.path / "initial"
    rounds: list[Round] = []
    policies = [Policy("start", start, read_answers(start / "evaluation.parquet"), 0)]
    for index, metrics in enumerate(files.rounds):
        folder = files.round_path(index)
        ranked = read_answers(folder / "scored.parquet")
        sampled = [answer for answer in ranked if answer.sampled]
        pairs = read_pairs(folder / "pairs.parquet", {answer.prompt_id for answer in ranked})
        rounds.append(Round(f"round {index}", folder, sampled, index, metrics, ranked, pairs))
        held_out = read_answers(folder / "evaluation.parquet")
        policies.append(Policy(f"policy {index + 1}", folder, held_out, index + 1))
    return OnlineRun(files, rounds, policies)


def reward_difference(first: OnlineRun, other: OnlineRun) -> str:
    """Why two runs' rewards are not on one scale; empty where they are."""
    one, two = _reward_identity(first), _reward_identity(other)
    differing = [key for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
    return f"they differ in {', '.join(differing)}" if differing else ""


def _reward_identity(run: OnlineRun) -> dict[str, Any]:
    """What makes the reward: the digest of a model that the run trained, else what its config names; and a fitted slope."""
    made = run.files.manifests("initial")
    slope = {"the slope of length": made["length"]["metrics"]["slope"]} if "length" in made else {}
    if (trained := made.get("reward_model")) is not None:
        return {"the trained reward model's digest": trained["digest"]} | slope
    section, costs = run.files.setting("reward", {}), ("micro_batch_tokens", "precision")
    return {f"reward.{key}": value for key, value in section.items() if key not in costs} | slope


def phase_times(files: RunReader, folder: str | Path) -> dict[str, float]:
    """Seconds of each finished phase in a run's folder, by the phase's words."""
    return {phase_words(name): seconds for name, seconds in files.seconds(folder).items()}


def phase_words(name: str) -> str:
    """A phase's name as people say it."""
    return _PHASES.get(name, spoken(name).replace("-", " "))
