"""Does the framework slow vLLM down? Rollout tokens/s through the workers over bare `LLM.generate`.

Both sides answer the same requests (SmolLM2-135M-Instruct, MedicationQA, n=4), each in a Ray actor or a process of its
own, in turn, `--repeats` times; medians of tokens/s are compared. For `ratio` both give every request a seed of its
own; on CPU ours draws its tokens by `actors/seeded_sampling.py`, which is faster, so answers are others than bare
vLLM's. `ratio_unseeded` is against bare vLLM without seeds, which cannot be repeated: there the framework's own cost,
and that of seeds, show.

    python benchmarks/rollout.py --prompts 32
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from typing import Any

from ultramed_rl.config import RunConfig, load_config


def requests_of(config: RunConfig, count: int, tokenizer: Any) -> list[Any]:
    from ultramed_rl.data.prompts import load_prompts, split_pool
    from ultramed_rl.records import SamplingRequest

    loaded = load_prompts(config.prompts, tokenizer.encode_chat)
    prompts = split_pool(loaded, 48, 0).training[:count]
    sampling = config.sampling
    return [
        SamplingRequest(p, sampling.n, sampling.temperature, sampling.top_p, sampling.max_new_tokens, seed)
        for seed, p in enumerate(prompts)
    ]


def bare_engine(arguments: Any, end_token: int, requests: list[Any], pipe: Any) -> None:
    """A process with nothing but vLLM in it: one `LLM.generate` for each message, answered with tokens and seconds."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model=arguments.model,
        dtype=arguments.precision,
        max_model_len=arguments.max_length,
        max_num_seqs=arguments.group.max_num_seqs,
        enforce_eager=arguments.group.enforce_eager,
        block_size=32,
        kv_cache_memory_bytes=int((arguments.group.kv_cache_gib or 1) * 2**30),
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        generation_config="vllm",
    )
    prompts = [TokensPrompt(prompt_token_ids=list(r.prompt.token_ids)) for r in requests]
    params = {
        side: [
            SamplingParams(
                n=r.n,
                temperature=r.temperature,
                max_tokens=r.max_new_tokens,
                seed=r.seed if side == "seeded" else None,
                stop_token_ids=[end_token],
                logprobs=0,
            )
            for r in requests
        ]
        for side in ("seeded", "unseeded")
    }
    pipe.send("ready")
    while (side := pipe.recv()) != "stop":
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate(prompts, params[side], use_tqdm=False)
        seconds = time.perf_counter() - started
        pipe.send((sum(len(c.token_ids) for o in outputs for c in o.outputs), seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    from ultramed_rl.models.tokenizer import ChatTokenizer
    from ultramed_rl.workers.sampling import SamplingWorkers

    config = load_config(options.config)
    tokenizer = ChatTokenizer(config.policy.path)
    requests = requests_of(config, options.prompts, tokenizer)
    workers = SamplingWorkers(config, tokenizer)
    workers.start_rollout(config.policy.path, 0)
    context = multiprocessing.get_context("spawn")
    pipe, child = context.Pipe()
    arguments = workers.engine_arguments(config.policy.path)
    peer = context.Process(
        target=bare_engine,
        args=(arguments, tokenizer.end_id, requests, child),
        daemon=True,
    )
    peer.start()
    assert pipe.recv() == "ready"

    def answer(side: str) -> tuple[int, float]:
        if side != "ours":
            pipe.send(side)
            tokens, seconds = pipe.recv()
            return tokens, seconds
        started = time.perf_counter()
        completions = workers.generate(requests, 0, lambda _: None)
        return sum(len(c.token_ids) for c in completions), time.perf_counter() - started

    sides = ("seeded", "ours", "unseeded")
    found: dict[str, list[tuple[int, float]]] = {side: [] for side in sides}
    for repeat in range(options.repeats + 1):
        for side in sides if repeat % 2 else reversed(sides):
            found[side].append(answer(side))
        rates = {side: round(tokens / seconds, 1) for side, (*_, (tokens, seconds)) in found.items()}
        print(f"repeat {repeat}: {rates} tokens/s", flush=True)
    pipe.send("stop")
    workers.stop()
    medians = {  # the first is the warm-up of all
        side: statistics.median(tokens / seconds for tokens, seconds in each[1:])
        for side, each in found.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "rollout",
                "ours": round(medians["ours"], 1),
                "peer": round(medians["seeded"], 1),
                "ratio": round(medians["ours"] / medians["seeded"], 3),
                "unit": "tokens/s",
                "peer_unseeded": round(medians["unseeded"], 1),
                "ratio_unseeded": round(medians["ours"] / medians["unseeded"], 3),
                "requests": len(requests) * config.sampling.n,
                "tokens": {side: [tokens for tokens, _ in each[1:]] for side, each in found.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
