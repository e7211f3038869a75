"""An engine that gets adapters alone answers as one whose weights they are merged into."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.tiny import make_policy, make_tokenizer

PROMPTS = [tuple(range(40, 52 + 3 * k)) for k in range(4)]


def make_merged(base: str, folder: Path) -> tuple[str, Any]:
    """A checkpoint of a policy with adapters that matter, and what its ranks send of them."""
    import torch
    from transformers import AutoModelForCausalLM

    from ultramed_rl.actors.engine import Engine
    from ultramed_rl.actors.weight_sync import AdapterSender
    from ultramed_rl.config.models import LoRA
    from ultramed_rl.models.load import load_policy
    from ultramed_rl.models.lora import adapter_parameters, adapter_state, merged_weights

    lm = load_policy(base, "float32", lora=LoRA(rank=4, alpha=8)).lm
    torch.manual_seed(1)
    for parameter in adapter_parameters(lm):
        parameter.data.normal_(std=0.3)

    class Whole(Engine):
        def __init__(self) -> None:
            self.module = cast(Any, SimpleNamespace(lm=lm))

        def adapters(self) -> dict[str, torch.Tensor]:
            return adapter_state(lm)

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = {name: weight.clone() for name, weight in merged_weights(lm, lambda _: nullcontext())}
    plain.load_state_dict(weights, strict=False)
    plain.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (bucket,) = AdapterSender(Whole(), 1, 1).buckets()
    return str(folder), bucket


def answer(model: str, bucket: Any, pipe: Any) -> None:
    """Sampled tokens with their logprobs, and an option's logprob, of an engine that was sent this, where there is something."""
    from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker
    from ultramed_rl.actors.work import WorkBatch
    from ultramed_rl.config.cluster import RolloutGroup
    from ultramed_rl.records import OptionRequest, Prompt, SamplingRequest

    group = RolloutGroup(max_num_seqs=4, enforce_eager=True, kv_cache_gib=0.02)
    backend = "shared_memory" if bucket is None else "adapter"
    engine = RolloutWorker(0)
    engine.start(EngineArguments(model, "cpu", "float32", 64, group, backend, lora_rank=4), 2, 0)
    versions = [engine.version()]
    for version in (1, 2) if bucket is not None else ():
        engine.pull_weights(bucket, version)
        versions.append(engine.version())
    asked = []
    for k, ids in enumerate(PROMPTS):
        n, temperature = (1, 0.0) if k % 2 else (2, 1.0)  # vLLM takes one greedy answer
        asked.append((f"p{k}", SamplingRequest(Prompt(f"p{k}", (), ids), n, temperature, 1.0, 12, 7)))
    found = dict(engine.work(WorkBatch(asked, seconds=60.0)).done)
    options = OptionRequest("q", PROMPTS[0], ((60,), (61, 62)))
    ((_, scored),) = engine.work(WorkBatch([("q", options)], seconds=60.0)).done
    tokens = {key: [tuple(c.token_ids) for c in found[key]] for key in found}
    pipe.send((versions, tokens, [c.logprob for key in sorted(found) for c in found[key]], scored.logprobs))


def in_own_process(model: str, bucket: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=answer, args=(model, bucket, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        return pipe.recv()
    finally:
        process.join()


def test_adapters_alone_are_the_merged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    base = str(make_policy(tmp_path / "base", initializer_range=0.1))
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    merged, bucket = make_merged(base, tmp_path / "merged")
    _, tokens, logprobs, scored = in_own_process(merged, None)
    versions, theirs, their_logprobs, their_scored = in_own_process(base, bucket)
    assert versions == [0, 1, 2] and bucket.bytes < 2**17
    assert theirs == tokens
    assert their_logprobs == pytest.approx(logprobs, abs=1e-3)
    assert their_scored == pytest.approx(scored, abs=1e-3)
    _, before, _, _ = in_own_process(base, None)
    assert before != tokens, "the adapters change nothing"
