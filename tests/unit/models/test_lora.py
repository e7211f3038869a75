"""Adapters: a fresh one changes nothing, off is the base, merged is the adapted policy, saved comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import make_model, make_policy, make_tokenizer
from ultramed_rl.config.models import LoRA
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.attention import SEGMENTS
from ultramed_rl.models.load import ADAPTER_FOLDER, PolicyModel, load_policy, model_shape, save_model
from ultramed_rl.models.lora import (
    adapter_parameters,
    adapter_state,
    adapters_off,
    has_adapters,
    merged_shapes,
    merged_weights,
    save_adapter,
)

RANK4 = LoRA(rank=4, alpha=8)
NF4 = LoRA(rank=4, alpha=8, quantize="nf4")
GROUPS = [
    AnswerGroup([5, 6, 7, 8], [[9, 10, 11], [12, 3]]),
    AnswerGroup([13, 14], [[15, 16, 17, 18]]),
]
# Two layers of seven matrices, each with an A and a B.
ADAPTERS = 2 * 7 * 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama whose attention and MLP have biases, so that these must find their plain names too."""
    folder = tmp_path_factory.mktemp("base")
    return str(make_policy(folder, attention_bias=True, initializer_range=0.1, tie_word_embeddings=False))


def load(path: str, lora: LoRA | None = None, adapter: Path | None = None) -> PolicyModel:
    """As ranks hold it, ready to train: of a model that is not, bitsandbytes computes in bfloat16 where a CPU can."""
    torch.manual_seed(0)
    return load_policy(path, "float32", lora=lora, adapter=str(adapter) if adapter else None).train()


def randomise_adapters(policy: PolicyModel, seed: int = 1) -> PolicyModel:
    """Adapters that have been somewhere: also the up-projections, which start at zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(policy.lm):
            nn.init.normal_(parameter, std=0.1)
    return policy


@torch.no_grad()
def logprobs(policy: PolicyModel) -> torch.Tensor:
    return policy(pack_groups(GROUPS))


def trained(policy: PolicyModel) -> set[str]:
    return {name for name, p in policy.named_parameters() if p.requires_grad}


def save(policy: PolicyModel, folder: Path) -> Path:
    save_adapter(policy.lm, adapter_state(policy.lm), folder / ADAPTER_FOLDER)
    return folder


def plain_with(base: str, weights: dict[str, torch.Tensor]) -> PolicyModel:
    policy = load(base)
    policy.lm.load_state_dict(weights, strict=True)
    return policy


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=0.0, rtol=0.0)


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(base: str) -> None:
    policy, plain = load(base, RANK4), load(base)
    assert policy.lm.config._attn_implementation == SEGMENTS
    assert_equal(logprobs(policy), logprobs(plain))
    names = trained(policy)
    assert len(names) == ADAPTERS and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert {id(p) for p in adapter_parameters(policy.lm)} == {
        id(p) for p in policy.parameters() if p.requires_grad
    }
    assert has_adapters(policy.lm) and not has_adapters(plain.lm)
    assert adapter_parameters(plain.lm) == []


def test_gradients_reach_every_adapter_and_nothing_else(base: str) -> None:
    policy = randomise_adapters(load(base, RANK4))
    policy(pack_groups(GROUPS)).sum().backward()
    assert all(p.grad is not None and float(p.grad.norm()) > 0 for p in adapter_parameters(policy.lm))
    assert sum(p.grad is not None for p in policy.parameters()) == ADAPTERS


def test_target_modules_can_be_named(base: str) -> None:
    policy = load(base, LoRA(rank=2, target_modules=["q_proj", "v_proj"]))
    owners = {name.split(".lora_")[0].rpartition(".")[2] for name in trained(policy)}
    assert owners == {"q_proj", "v_proj"}


def test_adapters_off_is_the_base_exactly_and_on_leaving_they_are_back(base: str) -> None:
    expected = logprobs(load(base))
    policy = randomise_adapters(load(base, RANK4))
    adapted, names = logprobs(policy), trained(policy)
    assert float((adapted - expected).abs().max()) > 0.1
    with adapters_off(policy.lm):
        assert_equal(logprobs(policy), expected)
    assert_equal(logprobs(policy), adapted)
    assert trained(policy) == names
    with pytest.raises(ZeroDivisionError), adapters_off(policy.lm):
        raise ZeroDivisionError
    assert_equal(logprobs(policy), adapted)
    assert trained(policy) == names


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_a_plain_model_with_the_adapted_logprobs(
    base: str, tmp_path: Path, tied: bool
) -> None:
    path = str(make_policy(tmp_path, initializer_range=0.1)) if tied else base
    policy = randomise_adapters(load(path, RANK4))
    adapted = logprobs(policy)
    before = {name: p.clone() for name, p in policy.named_parameters()}

    plain = load(path)
    weights = dict(merged_weights(policy.lm, lambda _: nullcontext()))
    shapes = {name: p.shape for name, p in plain.lm.named_parameters()}
    assert {name: w.shape for name, w in weights.items()} == shapes
    assert all(w.dtype == torch.float32 and not w.requires_grad for w in weights.values())

    for name, parameter in plain.lm.named_parameters():
        parameter.data.copy_(weights[name])
    torch.testing.assert_close(logprobs(plain), adapted, atol=1e-5, rtol=0.0)
    # Merging computes beside the policy: it and its base are as they were.
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    assert_equal(logprobs(policy), adapted)


def test_merged_weights_by_hand(base: str) -> None:
    policy = randomise_adapters(load(base, RANK4))
    parts = dict(policy.lm.named_parameters())
    layer = "model.layers.1.mlp.down_proj"
    down, up = parts[f"{layer}.lora_A.default.weight"], parts[f"{layer}.lora_B.default.weight"]
    expected = parts[f"{layer}.base_layer.weight"] + 8 / 4 * up @ down
    found = dict(merged_weights(policy.lm, lambda _: nullcontext()))
    torch.testing.assert_close(found[f"{layer}.weight"], expected.detach(), atol=1e-6, rtol=0.0)
    bias = "model.layers.0.self_attn.q_proj"
    assert_equal(found[f"{bias}.bias"], parts[f"{bias}.base_layer.bias"].detach())


@pytest.mark.parametrize("kind", ["base", "qwen3_moe", "gpt2"])
def test_a_layer_is_made_whole_at_once_while_it_is_read(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its adapters and experts too; what has no layer before and after them. Over `_AT_ONCE` bytes one by one."""
    path = base if kind == "base" else str(make_model(tmp_path, kind))
    adapters = LoRA(rank=4, target_modules=["c_attn"]) if kind == "gpt2" else RANK4
    policy = load(path, adapters)
    names = {id(p): name for name, p in policy.lm.named_parameters()}
    gathered: list[set[int]] = []
    open_now: set[int] = set()

    @contextmanager
    def whole(parameters: list[nn.Parameter]) -> Iterator[None]:
        gathered.append({id(p) for p in parameters})
        open_now.update(gathered[-1])
        yield
        open_now.clear()

    def layer(parameter: int) -> str:
        found = re.search(r"\.\d+\.", names[parameter])
        return found[0] if found else ""

    base_of = {name.replace(".base_layer", ""): p for p, name in names.items()}
    for name, _ in merged_weights(policy.lm, whole):
        assert base_of[name] in open_now
    assert sum(map(len, gathered)) == len(names) and set().union(*gathered) == names.keys()
    assert all(len({layer(p) for p in each}) == 1 for each in gathered)
    assert len(gathered) == policy.lm.config.num_hidden_layers + 2
    expected = {n: w.clone() for n, w in merged_weights(policy.lm, lambda _: nullcontext())}
    monkeypatch.setattr("ultramed_rl.models.lora._AT_ONCE", 1)
    gathered.clear()
    for name, weight in merged_weights(policy.lm, whole):
        assert torch.equal(weight, expected[name])
    assert len(gathered) == len(expected)


def test_a_saved_adapter_gives_the_same_logprobs_again_and_again(base: str, tmp_path: Path) -> None:
    policy = randomise_adapters(load(base, RANK4))
    checkpoint = save(policy, tmp_path / "checkpoint")
    again = load(base, adapter=checkpoint, lora=RANK4)
    assert_equal(logprobs(again), logprobs(policy))
    assert trained(again) == trained(policy)
    second = save(again, tmp_path / "second")
    assert_equal(logprobs(load(base, RANK4, second)), logprobs(policy))


def test_saved_adapters_are_pefts_own_format(base: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = randomise_adapters(load(base, RANK4))
    checkpoint = save(policy, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, checkpoint / ADAPTER_FOLDER).eval()
    with torch.no_grad():
        logits = theirs(torch.tensor([[5, 6, 7, 8, 12, 3]])).logits[0]
    expected = torch.log_softmax(logits, -1)[[3, 4], [12, 3]]
    torch.testing.assert_close(logprobs(policy)[3:5], expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(
    "other",
    [LoRA(rank=8, alpha=8), LoRA(rank=4, alpha=8, target_modules=["q_proj"])],
    ids=["rank", "modules"],
)
def test_adapters_of_another_shape_are_refused_in_one_line(base: str, tmp_path: Path, other: LoRA) -> None:
    checkpoint = save(randomise_adapters(load(base, RANK4)), tmp_path)
    with pytest.raises(
        ValueError, match=r"rank=4, alpha=8, .*\['down_proj', .*'q_proj'.*policy\.lora "
    ) as caught:
        load(base, adapter=checkpoint, lora=other)
    assert "\n" not in str(caught.value) and str(checkpoint) in str(caught.value)


def test_adapters_of_another_alpha_are_refused(base: str, tmp_path: Path) -> None:
    """The same weights times another alpha / rank are another policy."""
    checkpoint = save(randomise_adapters(load(base, RANK4)), tmp_path)
    with pytest.raises(ValueError, match=r"alpha=8, .*policy\.lora "):
        load(base, adapter=checkpoint, lora=LoRA(rank=4, alpha=16))


def dequantized(weight: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).float()


def test_a_4_bit_policy_packs_and_trains_its_adapters_only(base: str) -> None:
    policy = load(base, NF4)
    assert policy.lm.config._attn_implementation == SEGMENTS
    frozen = {n: p for n, p in policy.lm.named_parameters() if getattr(p, "quant_state", None) is not None}
    assert len(frozen) == ADAPTERS // 2
    assert all(p.dtype == torch.uint8 and p.quant_state.quant_type == "nf4" for p in frozen.values())
    assert len(trained(policy)) == ADAPTERS
    assert all(p.dtype == torch.float32 for p in adapter_parameters(policy.lm))

    randomise_adapters(policy)
    policy(pack_groups(GROUPS)).sum().backward()
    assert all(p.grad is not None and float(p.grad.norm()) > 0 for p in adapter_parameters(policy.lm))
    assert sum(p.grad is not None for p in policy.parameters()) == ADAPTERS


def test_a_4_bit_policy_packed_equals_its_separate_sequences(base: str) -> None:
    policy = randomise_adapters(load(base, NF4))
    apart = [AnswerGroup(g.prompt, [a]) for g in GROUPS for a in g.answers]
    with torch.no_grad():
        expected = torch.cat([policy(pack_groups([group])) for group in apart])
    torch.testing.assert_close(logprobs(policy), expected, atol=1e-5, rtol=0.0)


def test_4_bit_weights_are_near_the_base_and_off_is_the_4_bit_base(base: str) -> None:
    policy, plain = load(base, NF4), load(base)
    weight = policy.lm.model.layers[0].mlp.up_proj.base_layer.weight
    exact = plain.lm.model.layers[0].mlp.up_proj.weight.detach()
    assert 0.01 < float((dequantized(weight) - exact).norm() / exact.norm()) < 0.15
    fresh = logprobs(policy)
    adapted = logprobs(randomise_adapters(policy))
    assert float((adapted - fresh).abs().max()) > 0.1
    with adapters_off(policy.lm):
        assert_equal(logprobs(policy), fresh)


def test_merged_weights_of_a_4_bit_policy_are_the_dequantized_base_plus_the_change(base: str) -> None:
    policy = randomise_adapters(load(base, NF4))
    parts = dict(policy.lm.named_parameters())
    weights = dict(merged_weights(policy.lm, lambda _: nullcontext()))
    plain = load(base)
    assert {n: w.shape for n, w in weights.items()} == {n: p.shape for n, p in plain.lm.named_parameters()}
    for layer in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        down, up = parts[f"{layer}.lora_A.default.weight"], parts[f"{layer}.lora_B.default.weight"]
        expected = dequantized(parts[f"{layer}.base_layer.weight"]) + 2.0 * (up @ down).detach()
        torch.testing.assert_close(weights[f"{layer}.weight"], expected, atol=1e-6, rtol=0.0)
    merged = plain_with(base, weights)
    torch.testing.assert_close(logprobs(merged), logprobs(policy), atol=1e-4, rtol=0.0)


def test_a_saved_4_bit_adapter_comes_back(base: str, tmp_path: Path) -> None:
    policy = randomise_adapters(load(base, NF4))
    again = load(base, NF4, save(policy, tmp_path))
    assert_equal(logprobs(again), logprobs(policy))


def test_flops_count_the_weights_that_4_bits_hold(base: str) -> None:
    adapters = sum(p.numel() for p in adapter_parameters(load(base, RANK4).lm))
    assert adapters > 0
    assert model_shape(load(base, NF4).lm) == model_shape(load(base, RANK4).lm)
    assert model_shape(load(base, RANK4).lm).body == model_shape(load(base).lm).body + adapters


@pytest.mark.parametrize("names", [["q_proj"], "all-linear"], ids=["one", "all"])
def test_what_leaves_a_4_bit_policy_is_a_plain_model(base: str, tmp_path: Path, names: Any) -> None:
    """transformers would write the packed bytes of a quantized model, and its quantization into the config."""
    from transformers import AutoModelForCausalLM

    policy = randomise_adapters(load(base, LoRA(rank=4, alpha=8, quantize="nf4", target_modules=names)))
    state = {name: w.clone() for name, w in merged_weights(policy.lm, lambda _: nullcontext())}
    assert [(n, w.dtype, tuple(w.shape)) for n, w in state.items()] == list(merged_shapes(policy.lm))
    save_model(policy, make_tokenizer(), str(tmp_path), state)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not hasattr(plain.config, "quantization_config")
    found = dict(plain.named_parameters())
    assert found.keys() == state.keys()
    for name, weight in state.items():
        torch.testing.assert_close(found[name], weight)
