"""General checks: benchmarks outside medicine, by lm-evaluation-harness."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Count,
    FewOrZero,
    NodeDevices,
    SmallSeed,
    Tokens,
)

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
