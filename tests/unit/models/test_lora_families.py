"""Adapters on other families than Llama: what is merged computes what base and adapters do, or is refused before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_model
from ultramed_rl.config.models import LoRA, Model
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.checks import check_policy_model
from ultramed_rl.models.load import ADAPTER_FOLDER, PolicyModel, load_policy, save_model
from ultramed_rl.models.lora import (
    adapter_parameters,
    adapter_state,
    merged_shapes,
    merged_weights,
    save_adapter,
)

GROUPS = [AnswerGroup([5, 6, 7, 8], [[9, 10, 11], [12, 3]]), AnswerGroup([13, 14], [[15, 16, 17, 18]])]
KINDS = ["qwen3_moe", "mixtral", "deepseek_v3", "phimoe", "gpt2", "gemma3_text", "gemma3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str, **changes: Any) -> Path:
        path = root / "-".join([kind, *map(str, changes.values())])
        return path if path.is_dir() else make_model(path, kind, **changes)

    return folder


def adapted(path: Path, lora: LoRA) -> PolicyModel:
    """A policy whose adapters have been somewhere."""
    policy = load_policy(str(path), "float32", lora=lora)
    torch.manual_seed(1)
    for parameter in adapter_parameters(policy.lm):
        torch.nn.init.normal_(parameter, std=0.1)
    return policy


@torch.no_grad()
def logprobs(policy: PolicyModel) -> torch.Tensor:
    return policy(pack_groups(GROUPS))


def assert_merges(path: Path, tmp_path: Path, lora: LoRA) -> PolicyModel:
    """Saved as a checkpoint, and as adapters, it comes back with the same logprobs, which are not the base's."""
    policy = adapted(path, lora)
    expected = logprobs(policy)
    state = dict(merged_weights(policy.lm, lambda _: nullcontext()))
    plain = dict(load_policy(str(path), "float32").lm.state_dict())
    assert state.keys() <= plain.keys() and {n: w.shape for n, w in state.items()} == {
        n: plain[n].shape for n in state
    }
    assert [(n, w.dtype, tuple(w.shape)) for n, w in state.items()] == list(merged_shapes(policy.lm))
    adapters = adapter_state(policy.lm)
    from tests.tiny import make_tokenizer

    save_model(policy, make_tokenizer(), str(tmp_path), state)
    save_adapter(policy.lm, adapters, tmp_path / ADAPTER_FOLDER)
    merged = logprobs(load_policy(str(tmp_path), "float32"))
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0.0)
    again = load_policy(str(path), "float32", lora=lora, adapter=str(tmp_path))
    torch.testing.assert_close(logprobs(again), expected, atol=0.0, rtol=0.0)
    base = logprobs(load_policy(str(path), "float32"))
    assert float((base - expected).abs().max()) > 0.02
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_merges(models: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    lora = LoRA(rank=4, alpha=8)
    check_policy_model(Model(path=str(models(kind)), max_length=64, lora=lora), "policy")
    policy = assert_merges(models(kind), tmp_path, lora)
    names = {name.split(".lora_")[0] for name, p in policy.lm.named_parameters() if ".lora_" in name}
    if kind in ("qwen3_moe", "mixtral", "deepseek_v3"):  # both of the experts' weights and the router's
        parts = {name.partition("layers.1.mlp.")[2] for name in names}
        assert {"experts", "experts.base_layer", "gate"} <= parts
    if kind == "phimoe":  # its router answers with more than a product
        assert not any(name.endswith(".router") for name in names)
    if kind == "gemma3":
        assert all("language_model" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "names", "changes"),
    [
        ("llama", ["lm_head", "q_proj"], {}),
        ("llama", ["embed_tokens"], {}),
        ("gemma3_text", ["embed_tokens"], {"tie_word_embeddings": False}),  # its embedding is scaled
        ("gpt2", ["wpe", "c_attn"], {}),
        ("qwen3_moe", ["gate"], {}),
        ("qwen3_moe", ["gate_proj", "up_proj"], {}),
        ("mixtral", ["w2"], {}),
    ],
    ids=str,
)
def test_named_layers_merge(
    models: Callable[..., Path], tmp_path: Path, kind: str, names: list[str], changes: dict[str, Any]
) -> None:
    lora = LoRA(rank=4, alpha=8, target_modules=names)
    path = models(kind, **changes)
    check_policy_model(Model(path=str(path), max_length=64, lora=lora), "policy")
    assert_merges(path, tmp_path, lora)


@pytest.mark.parametrize(
    ("kind", "names", "said"),
    [
        ("tied", ["lm_head"], "tie_word_embeddings"),
        ("tied", ["q_proj", "embed_tokens"], "tie_word_embeddings"),
        ("llama", ["q_proj", "query"], "query"),
        ("llama", ["query"], "query"),
        ("llama", ["q_proj|v_proj"], "q_proj|v_proj"),
        ("llama", ["norm"], "RMSNorm"),
        ("qwen3_moe", ["gate_proj"], "up_proj"),
        ("phimoe", ["router"], "Router"),
    ],
    ids=str,
)
def test_what_cannot_be_merged_is_refused_before_anything_starts(
    models: Callable[..., Path], kind: str, names: list[str], said: str
) -> None:
    path = models("llama", tie_word_embeddings=True) if kind == "tied" else models(kind)
    lora = LoRA(rank=4, alpha=8, target_modules=names)
    for attempt in (
        lambda: check_policy_model(Model(path=str(path), max_length=64, lora=lora), "policy"),
        lambda: load_policy(str(path), "float32", lora=lora),
    ):
        with pytest.raises(ValueError) as refusal:
            attempt()
        assert "lora.target_modules=" in str(refusal.value) and said in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ["q_proj"]),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        (["q_proj"], ["q_proj"]),
    ],
)
def test_text_is_a_layers_name_and_no_pattern(given: Any, found: Any) -> None:
    assert LoRA(target_modules=given).target_modules == found


def test_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="target_modules"):
        LoRA(target_modules=[])


def test_adapters_that_are_cut_or_not_finite_are_refused(models: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lora = LoRA(rank=4, alpha=8)
    policy = adapted(models("llama"), lora)
    save_adapter(policy.lm, adapter_state(policy.lm), tmp_path / ADAPTER_FOLDER)
    file = tmp_path / ADAPTER_FOLDER / "adapter_model.safetensors"
    state = load_file(file)
    name = next(n for n in state if n.endswith("layers.1.mlp.up_proj.lora_B.weight"))
    state[name][0, 0] = float("nan")
    save_file(state, file)
    with pytest.raises(ValueError) as refusal:
        load_policy(str(models("llama")), "float32", lora=lora, adapter=str(tmp_path))
    assert name in str(refusal.value)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError) as refusal:
        load_policy(str(models("llama")), "float32", lora=lora, adapter=str(tmp_path))
    assert str(file) in str(refusal.value)
