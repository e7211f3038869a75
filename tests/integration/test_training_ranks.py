"""The same batch gives the same loss and weights at any rank count, ZeRO stage and micro-batch size."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_tokenizer
from ultramed_rl.config.rounds import DPO, KTOPair, Training
from ultramed_rl.records import Completion, PreferencePair, Prompt, ReferenceLogprobs

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make_pairs(count: int = 6) -> tuple[list[PreferencePair], list[ReferenceLogprobs]]:
    tokenizer = make_tokenizer()
    pairs = []
    for i in range(count):
        messages = ({"role": "user", "content": "Why? " * (1 + i)},)
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        prompt = Prompt(f"p{i}", messages, ids)
        chosen = Completion(prompt.prompt_id, 0, "a", (*tuple(range(10, 16 + i)), 2), "stop", 0.0, 0)
        rejected = Completion(prompt.prompt_id, 1, "b", (*tuple(range(40, 50)), 2), "stop", 0.0, 0)
        pairs.append(PreferencePair(prompt, chosen, rejected, 1.0, 0.0))
    return pairs, [ReferenceLogprobs(p.pair_id, -30.0 - i, -50.0) for i, p in enumerate(pairs)]


def train(
    root: Path, out: Path, objective: Any, ranks: int, stage: int, micro: int
) -> list[dict[str, float]]:
    """Two epochs on the tiny policy in real Ray actors; the checkpoint goes to `out`."""
    import ray

    from ultramed_rl.actors.engine import EngineSpec
    from ultramed_rl.actors.policy import PolicyWorker, RoundPlace
    from ultramed_rl.cluster.group import WorkerGroup

    if not ray.is_initialized():
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    remote = ray.remote(PolicyWorker).options(num_cpus=1, runtime_env={"env_vars": environment})
    group = WorkerGroup("policy", [remote.remote(r, ranks, 0) for r in range(ranks)], takes_turns=False)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    spec = EngineSpec("cpu", "float32", stage, False, 0.0, 1.0, micro, gradient_checkpointing=stage == 3)
    group.call("load", str(root / "policy"), spec, ("127.0.0.1", port))
    training = Training(
        learning_rate=1e-3, batch_size=3 if micro < 6 else 6, micro_batch_size=micro, epochs=2
    )
    pairs, references = make_pairs()
    steps = [
        metrics
        for rank, metrics in group.stream(
            "train", [(pairs, references, objective, training, RoundPlace(0, 1, 5))] * ranks
        )
        if rank == 0
    ]
    group.call("save", str(out))
    group.stop()
    return steps


@pytest.mark.parametrize("objective", [DPO(), KTOPair()], ids=lambda o: o.type)
def test_ranks_stages_and_micro_batches_agree(tiny_root: Path, tmp_path: Path, objective: Any) -> None:
    from safetensors.torch import load_file

    plain = train(tiny_root, tmp_path / "plain", objective, ranks=1, stage=0, micro=3)
    layouts = {"zero2": (2, 2, 1), "zero3": (2, 3, 2)} if objective.type == "dpo" else {"zero2": (2, 2, 2)}
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    start = load_file(tiny_root / "policy" / "model.safetensors")
    assert any(not torch.equal(expected[name], start[name]) for name in expected)

    for name, (ranks, stage, micro) in layouts.items():
        steps = train(tiny_root, tmp_path / name, objective, ranks, stage, micro)
        assert len(steps) == len(plain) == 4
        for ours, theirs in zip(steps, plain, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), name
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == expected.keys()
        for key, weight in expected.items():
            # Adam divides by the gradient's size: where that is near zero, rounding decides a step's sign.
            close = torch.isclose(found[key], weight, atol=2e-4)
            assert close.float().mean() > 0.999, f"{name}: {key}"


def test_a_nan_loss_names_its_pairs_and_moves_nothing(
    tiny_root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import ray

    pairs, references = make_pairs()
    broken = [ReferenceLogprobs(r.pair_id, float("nan"), r.rejected) for r in references]
    monkeypatch.setitem(globals(), "make_pairs", lambda: (pairs, broken))
    with pytest.raises(ray.exceptions.RayTaskError, match="loss is not finite.*p0:0>1"):
        train(tiny_root, tmp_path / "never", DPO(), ranks=1, stage=0, micro=6)
    assert not (tmp_path / "never").exists()
