"""All rounds by TRL's OnlineDPOTrainer as it ships: generation, scoring and a step, batch after batch, in one process.

Its settings are chosen for speed on CPU:

* transformers generates. With `use_vllm` and vLLM 0.29 no first step is reached: `colocate` loads the policy's weights into
  vLLM by name, but on CPU vLLM has packed and removed those of its matrices ("'Parameter' object has no attribute
  'weight_loader'"); `server` sends weights by NCCL alone and asks for a CUDA device. Of transformers' caches the dynamic
  one: a static one is compiled on accelerators alone.
* A pass is a whole batch, so that all of its answers are generated side by side; several passes a batch generate fewer
  at a time, with less padding (`--peer-pass` tries that). Gradient checkpointing is off, which would also take the cache
  from generation, and so is autocast: the weights have the precision of the job.
* It keeps each round's policy, as ours does, without its optimizer's state, and reports to no tracker. Its schedule
  spans all rounds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from stage import Stage, read_jsonl, trl_settings
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer


class Rounds(TrainerCallback):
    """What was done and how long it took, round by round; a round ends when its policy is saved."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []
        self.now = Counter[str]()
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first round begins."""
        self._began = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        """A round is over, and the next begins."""
        ended = time.perf_counter()
        self.rounds.append({**self.now, "seconds": ended - self._began})
        self.now, self._began = Counter(), ended

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Seconds of a part of the round."""
        started = time.perf_counter()
        yield
        self.now[part] += time.perf_counter() - started


class Watched(OnlineDPOTrainer):
    """Its work untouched; what passes is counted."""

    watch: Rounds

    def _generate(self, *arguments: Any, **options: Any) -> Any:
        with self.watch.timed("generation"):
            found = super()._generate(*arguments, **options)
        _, prompt_mask, completion_ids, completion_mask, _ = found
        self.watch.now["completions"] += len(completion_ids)
        self.watch.now["tokens"] += int(completion_mask.sum())
        self.watch.now["prompt_tokens"] += int(prompt_mask.sum()) // self.num_generations
        return found

    def _calculate_rewards_from_functions(self, *arguments: Any, **options: Any) -> Any:
        with self.watch.timed("scoring"):
            rewards = super()._calculate_rewards_from_functions(*arguments, **options)
        first, second = rewards.chunk(2)
        self.watch.now["prompts"] += len(first)
        self.watch.now["pairs"] += len(first)  # one of each prompt, whatever the rewards
        self.watch.now["ties"] += int((first == second).sum())
        return rewards

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        with self.watch.timed("saving"):
            super()._save_checkpoint(*arguments, **options)


def settings_of(job: Mapping[str, Any], steps_a_round: int) -> OnlineDPOConfig:
    """The job in TRL's words, and the fastest that it can do on CPU."""
    return OnlineDPOConfig(
        **trl_settings(job),
        train_sampling_strategy="sequential",  # the prompts of a round together
        max_new_tokens=job["max_new_tokens"],
        max_length=job["engine"]["max_length"],
        temperature=job["temperature"],
        use_vllm=False,
        save_strategy="steps",
        save_steps=steps_a_round,
        save_only_model=True,  # ours starts each round with a fresh optimizer
    )


def train(job: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """All rounds -> what each did."""
    dtype = getattr(torch, job["precision"])
    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(job["policy"], dtype=dtype),
        reward_funcs=AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=dtype),
        args=settings_of(job, job["prompts_a_round"] // job["training"]["batch_size"]),
        train_dataset=datasets.Dataset.from_list([{"prompt": p["messages"]} for p in prompts]),
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
    )
    trainer.watch = Rounds()
    trainer.add_callback(trainer.watch)
    trainer.train()
    return trainer.watch.rounds


def main() -> None:
    stage = Stage()
    stage.finish(rounds=train(stage.job, read_jsonl(stage.job["prompts"])))


if __name__ == "__main__":
    main()
