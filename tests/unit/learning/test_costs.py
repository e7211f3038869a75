"""FLOPs by hand: visible pairs counted on the fingers, parameters from the shapes."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_config
from ultramed_rl.learning.costs import ModelShape, forward_flops, published_peak, training_flops, zero3_limits
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.load import model_shape

SHAPE = ModelShape(body=10, hidden=4, vocab=7, attention_width=8, layers=3)


def test_forward_flops_of_one_prompt_and_two_answers_by_hand() -> None:
    batch = pack_groups([AnswerGroup([1, 2, 3], [[4, 5], [6]])])
    # Prompt 1 + 2 + 3 = 6; the first answer 4 + 5 = 9; the second 4 (the first answer is hidden from it).
    visible = 6 + 9 + 4
    matrices = 2 * 10 * 6  # a multiply and an add, per parameter and token
    head = 2 * 4 * 7 * 3  # three tokens are predicted
    attention = 2 * 2 * 8 * visible * 3  # scores and values
    found = forward_flops(SHAPE, batch, len(batch.targets))
    assert found == matrices + head + attention == 2112


def test_groups_in_a_row_cost_what_they_cost_apart() -> None:
    groups = [AnswerGroup([1, 2, 3], [[4, 5], [6]]), AnswerGroup([1], [[2], [3, 4, 5]])]

    def cost(chosen: list[AnswerGroup]) -> float:
        batch = pack_groups(chosen)
        return forward_flops(SHAPE, batch, len(batch.targets))

    assert cost(groups) == cost(groups[:1]) + cost(groups[1:])


def test_training_is_three_forwards_and_two_of_a_frozen_base() -> None:
    assert training_flops(7.0) == 21.0
    assert training_flops(7.0, frozen_base=True) == 14.0


@pytest.mark.parametrize("tied", [True, False])
def test_the_body_counts_neither_embedding_nor_head(tied: bool) -> None:
    from transformers import LlamaForCausalLM

    config = tiny_config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=80,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        tie_word_embeddings=tied,
    )
    lm = LlamaForCausalLM(config)
    attention = 64 * 4 * 24 + 2 * 64 * 2 * 24 + 4 * 24 * 64
    layer = attention + 3 * 64 * 80 + 2 * 64
    assert model_shape(lm) == ModelShape(
        body=2 * layer + 64, hidden=64, vocab=97, attention_width=4 * 24, layers=2
    )
    whole = sum(p.numel() for p in lm.parameters())
    assert whole == 2 * layer + 64 + 97 * 64 * (1 if tied else 2)


def test_partitioned_weights_count_whole() -> None:
    from transformers import LlamaForCausalLM

    lm = LlamaForCausalLM(tiny_config())
    whole = model_shape(lm)
    for parameter in lm.parameters():  # as ZeRO-3 leaves them
        parameter.ds_numel = parameter.numel()
        parameter.data = torch.empty(0)
    assert model_shape(lm) == whole


def test_an_8b_models_layers_are_fetched_whole_and_kept_until_they_are_used_again() -> None:
    """Llama-3-8B's: 218,112,000 parameters a layer, 525,336,576 in its head."""
    limits = zero3_limits(218_112_000, 525_336_576, 4096)
    assert list(limits.values()) == [218_112_000, 436_224_000, 961_560_576, 40_960]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpus_published_rate_is_of_dense_products(name: str, tflops: float | None) -> None:
    assert published_peak(name) == (tflops and tflops * 1e12)
