"""Does the framework slow vLLM down? Rollout tokens/s through the workers over bare `LLM.generate`.

    python benchmarks/rollout.py --prompts 32

All sides answer the same requests (SmolLM2-135M-Instruct, MedicationQA, n=4) with the same settings, each in an actor
or a process of its own, in turn. Ours gives every request a seed of its own, so that a round can be repeated; on CPU it
draws its tokens by `actors/seeded_sampling.py`, which is faster than vLLM's seeded way, so answers are others than
vLLM's. vLLM goes without seeds, its fast way, and with them. The last line is JSON; where the sides' tokens differ by
more than chance does or turns spread the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from line import add_turns, compare_sides, print_line
from turns import answer_turns, take_turns

from ultramed_rl.config import RunConfig, load_config

MOST_TOKEN_GAP = 0.1  # of ours: a hundred answers of other draws


@dataclass(frozen=True)
class Work:
    """What all sides do."""

    config: RunConfig
    prompts: int

    def requests(self) -> tuple[Any, list[Any]]:
        """The tokenizer, and the requests."""
        from ultramed_rl.data.prompts import load_prompts, split_pool
        from ultramed_rl.models.tokenizer import ChatTokenizer
        from ultramed_rl.records import SamplingRequest

        config, tokenizer = self.config, ChatTokenizer(self.config.policy.path)
        prompts = split_pool(load_prompts(config.prompts, tokenizer.encode_chat), 48, 0).training
        drawn = config.sampling
        return tokenizer, [
            SamplingRequest(p, drawn.n, drawn.temperature, drawn.top_p, drawn.max_new_tokens, seed)
            for seed, p in enumerate(prompts[: self.prompts])
        ]


def ours(work: Work, turn: Connection) -> None:
    """The product's engines, each a Ray actor."""
    from ultramed_rl.cluster.connection import disconnect
    from ultramed_rl.workers.sampling import SamplingWorkers

    tokenizer, requests = work.requests()
    workers = SamplingWorkers(work.config, tokenizer)
    workers.start_rollout(work.config.policy.path, 0)

    def generate() -> int:
        completions = workers.generate(requests, 0, lambda _: None)
        return sum(len(c.token_ids) for c in completions)

    answer_turns(generate, turn)
    workers.stop()
    disconnect()


def bare(work: Work, turn: Connection, seeded: bool) -> None:
    """A process with nothing but vLLM in it."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams, TokensPrompt

    from ultramed_rl.models.files import resolve_model

    tokenizer, requests = work.requests()
    policy, group = work.config.policy, work.config.cluster.rollout
    llm = LLM(
        model=resolve_model(policy.path),
        dtype=policy.precision,
        max_model_len=policy.max_length,
        max_num_seqs=group.max_num_seqs,
        enforce_eager=group.enforce_eager,
        block_size=32,
        kv_cache_memory_bytes=int((group.kv_cache_gib or 1) * 2**30),
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        generation_config="vllm",
    )
    prompts = [TokensPrompt(prompt_token_ids=list(r.prompt.token_ids)) for r in requests]
    drawn = [
        SamplingParams(
            n=r.n,
            temperature=r.temperature,
            top_p=r.top_p,
            max_tokens=r.max_new_tokens,
            seed=r.seed if seeded else None,
            stop_token_ids=[tokenizer.end_id],
            logprobs=0,
        )
        for r in requests
    ]

    def generate() -> int:
        llm.reset_prefix_cache()
        outputs = llm.generate(prompts, drawn, use_tqdm=False)
        return sum(len(c.token_ids) for o in outputs for c in o.outputs)

    answer_turns(generate, turn)


SIDES = {
    "ours": ours,
    "vLLM without seeds": partial(bare, seeded=False),
    "vLLM with seeds": partial(bare, seeded=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto")
    add_turns(parser)
    options = parser.parse_args()

    from ultramed_rl.config.models import resolve_precision

    precision = resolve_precision(options.precision, "cpu")
    config = load_config(options.config, [f"policy.precision={precision}", "cluster.rollout.precision=null"])
    results, _ = take_turns(SIDES, Work(config, options.prompts), options.turns)
    rates = {name: [tokens / seconds for seconds, tokens in turns[1:]] for name, turns in results.items()}
    counts = {name: [tokens for _, tokens in turns[1:]] for name, turns in results.items()}
    mine = sum(counts["ours"])
    gaps = {name: abs(sum(each) - mine) / mine for name, each in counts.items()}
    requests = options.prompts * config.sampling.n
    print_line(
        {
            "benchmark": "rollout",
            **compare_sides(rates, options.spread),
            "unit": "tokens/s",
            "requests": requests,
            "precision": precision,
            "tokens": counts,
            "work": f"{precision}, {requests} answers of at most {config.sampling.max_new_tokens} tokens; ours with a seed each",
        },
        *(f"{name}: its tokens are not ours" for name, gap in gaps.items() if gap > MOST_TOKEN_GAP),
    )


if __name__ == "__main__":
    main()
