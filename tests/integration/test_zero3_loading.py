"""A policy that is split while it loads is the one that loads whole: the same numbers, the same refusals."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_model
from ultramed_rl.actors.deepspeed_setup import EngineSpec, deepspeed_config, join_ranks, loading_context
from ultramed_rl.actors.engine import Engine
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.load import PolicyModel, load_policy, load_reward

BFLOAT16 = EngineSpec(
    "cpu",
    "bfloat16",
    TrainerGroup(zero_stage=3),
    Optimization(gradient_checkpointing=False, max_skipped_steps=0),
)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A process group of this process alone; afterwards torch as it was before DeepSpeed, and no address in the environment
    for other tests' processes to meet at."""
    linear = torch.nn.functional.linear
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mock.patch.dict(os.environ):
        join_ranks(0, 1, "127.0.0.1", port, "cpu")
        yield
    torch.distributed.destroy_process_group()
    torch.nn.functional.linear = linear


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3", "gemma3"])
def test_a_split_policy_computes_what_a_whole_one_does(one_rank: None, tmp_path: Path, kind: str) -> None:
    """Rotary frequencies that bfloat16 had rounded turned keys elsewhere, the farther the longer the text."""
    longer = {"max_position_embeddings": 4096}
    changes = {} if kind == "gemma3" else longer
    path = str(make_model(tmp_path, kind, **changes))
    tokens = [i % 250 + 3 for i in range(600)]
    batch = pack_groups([AnswerGroup(tokens[:560], [tokens[560:]])])

    @torch.no_grad()
    def logprobs(policy: PolicyModel) -> torch.Tensor:
        return policy(batch)

    whole = load_policy(path, "bfloat16")
    expected, buffers = logprobs(whole), dict(whole.lm.named_buffers())
    held = loading_context(deepspeed_config(BFLOAT16))
    split = load_policy(path, "bfloat16")
    for name, buffer in split.lm.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name
    engine = Engine(split.train(), BFLOAT16)
    torch.testing.assert_close(logprobs(engine.backend), expected, atol=0.0, rtol=0.0)
    weights = whole.lm.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in engine.weights())
    del held


@pytest.mark.parametrize("fault", ["missing", "unknown", "of another size", "not finite"])
@pytest.mark.parametrize("classifier", [False, True])
def test_what_is_refused_whole_is_refused_split(
    one_rank: None, tmp_path: Path, fault: str, classifier: bool
) -> None:
    file = make_model(tmp_path, "llama", classifier=classifier) / "model.safetensors"
    weights = load_file(file)
    name = "score.weight" if classifier and fault == "missing" else "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del weights[name]
    elif fault == "unknown":
        name = "model.layers.2.mlp.up_proj.weight"
        weights[name] = torch.ones(48, 32)
    elif fault == "of another size":
        weights[name] = torch.ones(32, 48)
    else:
        weights[name][-1, -1] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    held = loading_context(deepspeed_config(BFLOAT16))
    with pytest.raises(ValueError) as refusal:
        (load_reward if classifier else load_policy)(str(tmp_path), "bfloat16")
    assert fault in str(refusal.value) and name in str(refusal.value)
    del held
