"""What loads is what was saved: weights that are missing, foreign, of another size or not finite are refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_model
from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker
from ultramed_rl.actors.scorer import ReferenceWorker
from ultramed_rl.config.cluster import RolloutGroup
from ultramed_rl.config.models import Model, ModelSettings
from ultramed_rl.models.checkpoint import restore_buffers
from ultramed_rl.models.checks import check_policy_model, check_reward_model, check_sampled_model
from ultramed_rl.models.embedding import DEFAULT_MODEL, Embedder, resolve_package
from ultramed_rl.models.load import load_policy, load_reward

Weights = dict[str, torch.Tensor]
KINDS = ["llama", "qwen3_moe", "mixtral", "deepseek_v3", "gpt2", "gemma3"]
QUERY = {
    "gpt2": "transformer.h.1.attn.c_attn.weight",
    "deepseek_v3": "model.layers.1.self_attn.q_a_proj.weight",
}
QUERY["gemma3"] = "language_model.model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str, classifier: bool = False) -> Path:
        path = root / f"{kind}-{classifier}"
        return path if path.is_dir() else make_model(path, kind, classifier=classifier)

    return folder


def changed(folder: Path, copy: Path, change: Callable[[Weights], object]) -> str:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


def refusals(path: str, *, classifier: bool = False) -> Iterator[str]:
    """What is said before anything starts, and by who loads it."""
    if classifier:
        attempts = [
            lambda: check_reward_model(path, trained=False),
            lambda: load_reward(path, "float32"),
        ]
    else:
        attempts = [
            lambda: check_policy_model(Model(path=path, max_length=64), "policy"),
            lambda: check_sampled_model(path, ModelSettings(max_length=64)),
            lambda: load_policy(path, "float32"),
        ]
    for attempt in attempts:
        with pytest.raises(ValueError) as refusal:
            attempt()
        assert "\n" not in str(refusal.value) and path in str(refusal.value)
        yield str(refusal.value)


def query(kind: str) -> str:
    """The stored name of a matrix of the second layer."""
    return QUERY.get(kind, "model.layers.1.self_attn.q_proj.weight")


@pytest.mark.parametrize("kind", KINDS)
def test_whole_checkpoints_load(models: Callable[..., Path], kind: str) -> None:
    path = str(models(kind))
    check_policy_model(Model(path=path, max_length=64), "policy")
    load_policy(path, "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_weight_is_refused(models: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    path = changed(models(kind), tmp_path / "m", lambda weights: weights.pop(query(kind)))
    for message in refusals(path):
        assert "1 missing" in message and query(kind).partition("layers.1")[2] in message


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_weights_and_other_sizes_are_refused(
    models: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    def change(weights: Weights) -> None:
        weights[query(kind)] = torch.zeros(5, 7)
        weights |= {f"model.layers.{layer}.mlp.weight": torch.zeros(3) for layer in (2, 3)}

    for message in refusals(changed(models(kind), tmp_path / "m", change)):
        assert "2 unknown" in message and "model.layers.2.mlp.weight, model.layers.3.mlp.weight" in message
        assert "1 of another size" in message and "5x7 for " in message


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
    ],
)
def test_buffers_that_older_checkpoints_hold_are_no_fault(
    models: Callable[..., Path], tmp_path: Path, kind: str, names: list[str]
) -> None:
    added = {name: torch.ones(4) for name in names}
    path = changed(models(kind), tmp_path / "m", lambda weights: weights.update(added))
    check_policy_model(Model(path=path, max_length=64), "policy")
    load_policy(path, "float32")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("qwen3_moe", "model.layers.0.mlp.experts.2.up_proj.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.2.w3.weight"),
        ("deepseek_v3", "model.layers.1.mlp.experts.2.down_proj.weight"),
    ],
)
def test_a_missing_expert_is_refused(
    models: Callable[..., Path], tmp_path: Path, kind: str, name: str
) -> None:
    def lose_one(weights: Weights) -> None:
        del weights[name]

    def lose_all(weights: Weights) -> None:
        for stored in [n for n in weights if f".{name.split('.experts.')[0]}.experts.2." in f".{n}"]:
            del weights[stored]

    for number, change in enumerate((lose_one, lose_all)):
        assert list(refusals(changed(models(kind), tmp_path / str(number), change)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_number_that_is_not_finite_is_refused(
    models: Callable[..., Path], tmp_path: Path, kind: str, value: float
) -> None:
    def change(weights: Weights) -> None:
        weights[query(kind)][3, 4] = value
        weights["model.norm.weight"][7] = value

    path = changed(models(kind), tmp_path / "m", change)
    with pytest.raises(ValueError) as refusal:
        load_policy(path, "bfloat16")
    assert "2 weights" in str(refusal.value) and query(kind) in str(refusal.value)


def test_the_routers_stored_bias_must_be_finite_too(models: Callable[..., Path], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    path = changed(models("deepseek_v3"), tmp_path / "m", lambda w: w[name].fill_(float("nan")))
    with pytest.raises(ValueError) as refusal:
        load_policy(path, "float32")
    assert name in str(refusal.value)


def test_files_that_are_cut_or_pointers_are_named_by_whoever_looks(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    path = changed(models("llama"), tmp_path / "m", lambda _: None)
    file = Path(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    for message in refusals(path):
        assert str(file) in message
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for message in refusals(path):
        assert str(file) in message and "git lfs pull" in message
    file.unlink()
    with pytest.raises(ValueError) as refusal:
        check_policy_model(Model(path=path, max_length=64), "policy")
    assert "safetensors" in str(refusal.value)


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    path = changed(models("llama"), tmp_path / "m", lambda _: None)
    config = Path(path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    for message in refusals(path):
        assert "tie_word_embeddings" in message and "lm_head.weight" in message
    alike = changed(
        Path(path),
        tmp_path / "alike",
        lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}),
    )
    load_policy(alike, "float32")


def test_an_average_is_of_whole_checkpoints_and_is_one(models: Callable[..., Path], tmp_path: Path) -> None:
    older, name = models("deepseek_v3"), "model.layers.1.mlp.experts.2.up_proj.weight"
    newer = changed(older, tmp_path / "newer", lambda weights: weights[name].add_(1.0))
    worker = ReferenceWorker(0, "cpu", "float32", 100)
    worker.average(str(older), newer, 0.75, str(tmp_path / "average"))
    found, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "average", older))
    assert found.keys() == before.keys()
    torch.testing.assert_close(found[name], before[name] + 0.25, atol=1e-6, rtol=0)
    load_policy(str(tmp_path / "average"), "float32")

    cut = changed(older, tmp_path / "cut", lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ValueError) as refusal:
        worker.average(str(older), cut, 0.75, str(tmp_path / "none"))
    assert "model.norm.weight" in str(refusal.value) and not (tmp_path / "none").exists()


# -- reward models -----------------------------------------------------------------------------------------


def test_a_new_reward_model_gets_a_head_and_a_trained_one_must_have_it(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    for kind in ("llama", "gpt2", "gemma3", "qwen3_moe"):
        check_reward_model(str(models(kind)), trained=False)  # its lm_head has no use there
        load_reward(str(models(kind)), "float32")
    check_reward_model(str(models("llama", True)), trained=True)
    path = changed(models("llama", True), tmp_path / "m", lambda weights: weights.pop("score.weight"))
    for message in refusals(path, classifier=True):
        assert "1 missing" in message and "score.weight" in message


def test_a_reward_models_layers_are_its_configs(models: Callable[..., Path], tmp_path: Path) -> None:
    """What lies beside the decoder may be another task's head, what lies in it may not be left over."""
    added = {"model.layers.2.input_layernorm.weight": torch.ones(32)}
    path = changed(models("llama"), tmp_path / "m", lambda weights: weights.update(added))
    for message in refusals(path, classifier=True):
        assert "1 unknown" in message and "model.layers.2.input_layernorm.weight" in message


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_a_classifier_over_an_encoder_is_refused(models: Callable[..., Path], kind: str) -> None:
    for message in refusals(str(models(kind, True)), classifier=True):
        assert "ForSequenceClassification" in message and "score" in message


def test_an_encoder_is_no_policy(models: Callable[..., Path]) -> None:
    for message in refusals(str(models("bert"))):
        assert "bert" in message


# -- engines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("logprob", "starts"), [(float("nan"), False), (-3.5, True), (None, True)])
def test_an_engine_whose_logits_are_no_numbers_does_not_start(
    monkeypatch: pytest.MonkeyPatch, logprob: float | None, starts: bool
) -> None:
    """vLLM itself samples on; what is seen is the logprob of its first token."""
    asked = []

    def generate(prompts: list[Any], parameters: Any, use_tqdm: bool) -> list[Any]:
        asked.append((prompts, parameters))
        return [SimpleNamespace(outputs=[SimpleNamespace(cumulative_logprob=logprob)])]

    def load(**_: Any) -> Any:
        return SimpleNamespace(generate=generate)

    parts = {"LLM": load, "SamplingParams": dict, "TokensPrompt": dict}
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(**parts))
    monkeypatch.setitem(sys.modules, "vllm.config", SimpleNamespace(WeightTransferConfig=dict))
    worker = RolloutWorker(0)
    arguments = EngineArguments("the/model", "cuda", "bfloat16", 64, RolloutGroup(), "nccl", False)
    if starts:
        worker.start(arguments, 0, 3)
        assert worker.version() == 3
    else:
        with pytest.raises(ValueError, match="'the/model'"):
            worker.start(arguments, 0, 3)
    (([prompt], parameters),) = asked
    assert prompt == {"prompt_token_ids": [0]} and (parameters["max_tokens"], parameters["logprobs"]) == (
        1,
        0,
    )


# -- embeddings --------------------------------------------------------------------------------------------


def embedder_of(tmp_path: Path, change: Callable[[Weights], object]) -> Embedder:
    return Embedder(changed(Path(resolve_package(DEFAULT_MODEL)), tmp_path / "m", change))


def test_an_encoder_without_the_pooler_that_it_does_not_use_is_the_same(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for name in [n for n in weights if n.startswith("pooler.")]:
            del weights[name]
        weights["cls.predictions.bias"] = torch.zeros(3)

    found = embedder_of(tmp_path, change)(["fever"])
    assert abs(found - Embedder(DEFAULT_MODEL)(["fever"])).max() == 0.0


def test_an_encoder_without_a_layers_weight_or_with_nan_is_refused(tmp_path: Path) -> None:
    name = "encoder.layer.3.output.dense.weight"
    with pytest.raises(ValueError) as refusal:
        embedder_of(tmp_path / "a", lambda weights: weights.pop(name))
    assert "1 missing" in str(refusal.value) and name in str(refusal.value)
    with pytest.raises(ValueError) as refusal:
        embedder_of(tmp_path / "b", lambda weights: weights[name].fill_(float("nan")))
    assert "1 weights" in str(refusal.value) and name in str(refusal.value)


# -- ZeRO-3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3", "gemma3"])
def test_buffers_that_were_rounded_come_back_to_the_bit(models: Callable[..., Path], kind: str) -> None:
    path = str(models(kind))
    plain, rounded = load_policy(path, "bfloat16").lm, load_policy(path, "bfloat16").lm
    for parameter in rounded.parameters():
        parameter._is_hf_initialized = True  # as the loader marks them
    for module in rounded.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.bfloat16()
    before = {name: parameter.clone() for name, parameter in rounded.named_parameters()}
    restore_buffers(rounded, plain, [Path(path) / "model.safetensors"])
    found, expected = dict(rounded.named_buffers()), dict(plain.named_buffers())
    assert found.keys() == expected.keys()
    for name, buffer in expected.items():
        assert found[name].dtype == buffer.dtype and torch.equal(found[name], buffer), name
    assert all(torch.equal(parameter, before[name]) for name, parameter in rounded.named_parameters())
    if kind == "llama":  # 10000^(-2i/8) of heads of width 8
        frequencies = found["model.rotary_emb.inv_freq"]
        torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]), atol=1e-9, rtol=0)
