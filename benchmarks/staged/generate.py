"""Stage 1 of a round of scripts: vLLM answers all prompts, n times each, and exits."""

from __future__ import annotations

import os

from stage import Stage, read_jsonl, write_jsonl


def main() -> None:
    stage = Stage()
    job = stage.job
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""}
    from vllm import LLM, SamplingParams, TokensPrompt

    stage.end("import")
    engine = job["engine"]
    llm = LLM(
        model=job["policy"],
        dtype=job["precision"],
        max_model_len=engine["max_length"],
        max_num_seqs=engine["max_num_seqs"],
        kv_cache_memory_bytes=engine["kv_cache_bytes"],
        enforce_eager=engine["enforce_eager"],
        block_size=32,  # n answers share their prompt's blocks, and most prompts are shorter than 128
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        generation_config="vllm",
    )
    stage.end("load")
    prompts = read_jsonl(job["prompts"])
    sampling = [
        SamplingParams(
            n=job["n"],
            temperature=job["temperature"],
            max_tokens=job["max_new_tokens"],
            seed=prompt["seed"] if job["seeded"] else None,
            stop_token_ids=[job["end_token"]],
        )
        for prompt in prompts
    ]
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=p["ids"]) for p in prompts], sampling, use_tqdm=False
    )
    rows = [
        {
            "prompt": prompt["ids"],
            "answers": [{"ids": list(a.token_ids), "text": a.text} for a in output.outputs],
        }
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    write_jsonl(job["answers"], rows)
    stage.end("work")
    stage.finish(tokens=sum(len(answer["ids"]) for row in rows for answer in row["answers"]))


if __name__ == "__main__":
    main()
