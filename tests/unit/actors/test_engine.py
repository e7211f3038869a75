"""What the training engine does to its optimizer between rounds, and what of a model it saves and sends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import make_model
from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.engine import Engine, checkpoint_layers
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.load import PolicyModel, load_policy


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_rounds_optimizer_is_a_fresh_one(wrapped: bool) -> None:
    """torch's AdamW counts its steps in a tensor, DeepSpeed's on the host in a number."""
    parameter = torch.nn.Parameter(torch.ones(3))
    states = [
        {"step": torch.tensor(7.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)},
        {"step": 7, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)},
    ]
    for state in states:
        optimizer = SimpleNamespace(state={parameter: state})
        engine = Engine.__new__(Engine)
        engine.spec = EngineSpec(
            "cpu",
            "float32",
            TrainerGroup(zero_stage=0),
            Optimization(gradient_checkpointing=False, max_skipped_steps=0),
        )
        engine.backend = SimpleNamespace(
            optimizer=SimpleNamespace(optimizer=optimizer) if wrapped else optimizer
        )
        engine.start_round(fresh=True)
        assert {name: float(torch.as_tensor(value).sum()) for name, value in state.items()} == dict.fromkeys(
            state, 0.0
        )
        assert engine.skipped_steps == 0


@pytest.mark.parametrize(("count", "computed"), [(0, [1, 1]), (1, [2, 1]), (2, [2, 2]), (None, [2, 2])])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_the_first_layers_are_computed_again_and_no_gradient_changes(
    tmp_path: Path, kind: str, count: int | None, computed: list[int]
) -> None:
    policy = load_policy(str(make_model(tmp_path, kind)), "float32").train()
    batch = pack_groups([AnswerGroup([5, 6, 7], [[8, 9], [10, 11, 12]])])

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(policy(batch).sum(), list(policy.parameters())))

    expected = gradients()
    calls: list[int] = []
    stack = next(m for m in policy.modules() if isinstance(m, torch.nn.ModuleList))
    for place, layer in enumerate(stack):
        layer.mlp.register_forward_pre_hook(lambda *_, place=place: calls.append(place))
    checkpoint_layers(policy.lm, count)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    assert [calls.count(place) for place in range(2)] == computed


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_all_that_a_model_keeps_is_saved_and_sent(tmp_path: Path, kind: str) -> None:
    """The bias by which DeepSeek-V3 chooses experts is no parameter, and belongs to its checkpoint."""
    lm = load_policy(str(make_model(tmp_path, kind)), "float32").lm
    engine = Engine.__new__(Engine)
    engine.spec = EngineSpec(
        "cpu",
        "float32",
        TrainerGroup(zero_stage=0),
        Optimization(gradient_checkpointing=False, max_skipped_steps=0),
    )
    engine.module = PolicyModel(lm)
    weights = dict(engine.weights())
    assert weights.keys() == lm.state_dict().keys()
    assert engine.weight_shapes() == [(n, w.dtype, tuple(w.shape)) for n, w in weights.items()]
