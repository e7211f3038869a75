"""An engine on CPU that reads weights in shared memory is the policy that they are of."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_policy

PROMPT = list(range(40, 64))


def engine_logprobs(llm: Any) -> list[float]:
    """The engine's logprob of each token of PROMPT after the first."""
    from vllm import SamplingParams, TokensPrompt

    llm.reset_prefix_cache()
    parameters = SamplingParams(max_tokens=1, prompt_logprobs=0)
    output = llm.generate([TokensPrompt(prompt_token_ids=PROMPT)], parameters, use_tqdm=False)[0]
    return [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], PROMPT[1:], strict=True)]


def policy_logprobs(model: Any) -> list[float]:
    """transformers' logprobs of the same."""
    import torch

    with torch.no_grad():
        rows = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    return [float(rows[place, token]) for place, token in enumerate(PROMPT[1:])]


def sync_all(policies: list[str], pipe: Any) -> None:
    """An engine of the first policy is sent the others in turn; answers (engine's, transformers') of each."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    from ultramed_rl.actors.weight_sync import SharedTensors

    llm = LLM(
        model=policies[0],
        dtype="float32",
        max_model_len=64,
        max_num_seqs=4,
        enforce_eager=True,
        kv_cache_memory_bytes=2**24,
        enable_chunked_prefill=False,
        weight_transfer_config=WeightTransferConfig(backend="shared_memory"),
    )
    shared = None
    for path in policies[1:]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        shapes = [(n, p.dtype, tuple(p.shape)) for n, p in model.named_parameters()]
        shared = shared or SharedTensors(shapes)
        for name, parameter in model.named_parameters():
            shared.tensor(name).copy_(parameter.data)
        info = {
            "path": shared.path,
            "names": [name for name, _, _ in shapes],
            "dtype_names": ["float32"] * len(shapes),
            "shapes": [shape for _, _, shape in shapes],
        }
        llm.start_weight_update()
        llm.update_weights({"update_info": info})
        llm.finish_weight_update("1")
        for name in shared.shapes:
            shared.tensor(name).fill_(float("nan"))  # as if the policy trained on at once
        pipe.send((engine_logprobs(llm), policy_logprobs(model)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"attention_bias": True}],
    ids=["tied", "untied", "fused weights apart"],
)
def test_a_sync_makes_the_engine_the_policy(tmp_path: Path, changes: dict[str, Any]) -> None:
    policies = [str(make_policy(tmp_path / str(seed), seed=seed, **changes)) for seed in range(3)]
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    engine = context.Process(target=sync_all, args=(policies, theirs), daemon=True)
    engine.start()
    theirs.close()
    try:
        found = [pipe.recv() for _ in policies[1:]]
    finally:
        engine.join()
    for engines, policys in found:
        assert engines == pytest.approx(policys, abs=1e-4)
