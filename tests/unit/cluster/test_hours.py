"""Hours of a round by arithmetic, and the page of what fits where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from docs.make_memory import RENEW, render_sizes
from ultramed_rl.cluster.hours import round_hours
from ultramed_rl.cluster.memory import KNOWN, count_parameters
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import RunConfig, parse_config

PAGE = Path(__file__).parents[3] / "docs" / "memory.md"
# A billion parameters; a token's keys and values take 2 x 10 layers x 8 heads x 128 x 2 bytes = 40,960.
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "parameters": 1_000_000_000,
}


def one_gpu(**changes: Any) -> RunConfig:
    """1,000 prompts of 500 tokens, four answers of 1,000 each."""
    group = {
        "layout": "colocated",
        "policy": {"ranks": 1, "zero_stage": 0},
        "rollout": {"memory_fraction": 0.8},
    }
    data = {
        "run": {"name": "hours"},
        "policy": {"path": "a", "precision": "bfloat16", "max_length": 3000, "architecture": SHAPE},
        "reward": {"path": "b", "precision": "bfloat16", "architecture": SHAPE},
        "prompts": {
            "sources": [{"uri": "a.jsonl"}],
            "max_prompt_tokens": 1000,
            "per_round": 1000,
            "held_out": 100,
        },
        "sampling": {"n": 4, "max_new_tokens": 2000},
        "objective": {"type": "dpo"},
        "training": {"micro_batch_tokens": 4096, "gradient_checkpointing": False},
        "cluster": {"device": "cuda", "devices_per_node": 1, "device_memory_gib": 79.0, **group},
    }
    return parse_config({**data, **changes})


def seconds(config: RunConfig) -> dict[str, float]:
    found = round_hours(config, make_plan(config), "H100")
    assert found.hours == pytest.approx(sum(found.phases.values()))
    return {name: hours * 3600 for name, hours in found.phases.items()}


def test_a_rounds_hours_are_its_operations_and_bytes_by_the_gpus_rates() -> None:
    """Products: 0.4 x 989e12 a second. Sampling: 256 at a time, each step reads 2e9 bytes of weights and 256 x 1,000 tokens of
    cache at 0.5 x 3.35e12 bytes a second, 15,625 steps; before it the prompts once. Held-out answers, 100 at once, take 5 ms
    a step, 1,000 steps."""
    rate = 0.4 * 989e12
    step = (2e9 + 256 * 40960 * 1000) / (0.5 * 3.35e12)
    expected = {
        "sampling": 15625 * step + 2e9 * 500_000 / rate,
        "scoring": 2e9 * 1000 * 4500 / rate,
        "reference": 2e9 * 1000 * 2500 / rate,
        "training": 6e9 * 1000 * 2500 / rate,
        "evaluation": 1000 * 0.005 + 2e9 * 100 * (500 + 1500) / rate,
    }
    assert seconds(one_gpu()) == pytest.approx(expected, rel=1e-6)
    assert step == pytest.approx(7.45e-3, rel=1e-3)


def test_frozen_weights_layers_computed_again_and_epochs_count() -> None:
    training = {"micro_batch_tokens": 4096, "checkpointed_layers": 5, "epochs": 2}
    found = seconds(one_gpu(training=training))
    assert found["training"] == pytest.approx(2 * 7e9 * 1000 * 2500 / (0.4 * 989e12))
    lora = {
        "path": "a",
        "precision": "bfloat16",
        "max_length": 3000,
        "architecture": SHAPE,
        "lora": {"rank": 8},
    }
    found = seconds(one_gpu(policy=lora, training={**training, "epochs": 1}))
    assert found["training"] == pytest.approx(5e9 * 1000 * 2500 / (0.4 * 989e12))


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.49),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
        ("Qwen/Qwen2.5-3B-Instruct", 3.09),
        ("Qwen/Qwen2.5-7B-Instruct", 7.61),
        ("Qwen/Qwen2.5-14B-Instruct", 14.7),
        ("Qwen/Qwen2.5-32B-Instruct", 32.5),
        ("Qwen/Qwen3-0.6B", 0.6),
        ("Qwen/Qwen3-4B", 4.0),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.23),
    ],
)
def test_known_shapes_have_the_parameters_that_their_cards_say(model: str, billions: float) -> None:
    assert count_parameters(KNOWN[model]) / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_page_of_sizes_is_that_of_the_plans() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_sizes(), f"docs/memory.md is out of date: {RENEW}"
