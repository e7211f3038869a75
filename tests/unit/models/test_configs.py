"""What config.json says of a decoder, as its family names it; how far positions reach; bytes counted from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, make_model, tiny_run
from ultramed_rl.cluster.memory import count_parameters, resolve_architecture
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import parse_config
from ultramed_rl.config.models import Architecture, ModelSettings
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.checks import check_sampled_model
from ultramed_rl.models.files import decoder_config, longest_sequence, read_config_file
from ultramed_rl.models.load import load_policy, load_reward, model_shape

# Gemma 3 4B says no more than this; the rest is its class's.
GEMMA3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def write_config(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_sparse_config_within_another_is_read_with_its_familys_defaults(tmp_path: Path) -> None:
    found = resolve_architecture(str(write_config(tmp_path, GEMMA3_4B)), None, "policy")
    assert found == Architecture(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=262208,
        head_dim=256,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
    )


def test_gpt2s_names_are_read(tmp_path: Path) -> None:
    content = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
    found = resolve_architecture(
        str(write_config(tmp_path, {**content, "vocab_size": 50257})), None, "policy"
    )
    assert found == Architecture(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=50257,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )


def test_a_family_that_transformers_does_not_know_is_read_as_it_stands(tmp_path: Path) -> None:
    content = {
        "model_type": "of_ones_own",
        "auto_map": {"AutoConfig": "code.Config"},
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    found = resolve_architecture(str(write_config(tmp_path, content)), None, "policy")
    assert (found.num_hidden_layers, found.num_key_value_heads, found.head_dim) == (3, 4, 16)


@pytest.mark.parametrize(
    "content", [{"model_type": "mamba"}, {"model_type": "of_ones_own", "hidden_size": 8}, {}]
)
def test_what_is_no_decoder_with_attention_names_the_key_that_helps(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    with pytest.raises(ValueError) as refusal:
        resolve_architecture(str(write_config(tmp_path, content)), None, "reward")
    assert "num_attention_heads" in str(refusal.value) and "reward.architecture" in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_no_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError) as refusal:
        resolve_architecture(str(tmp_path), None, "policy")
    assert str(tmp_path / "config.json") in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "deepseek_v3", "gpt2", "gemma3"])
def test_parameters_are_those_of_the_files(tmp_path: Path, kind: str) -> None:
    path = str(make_model(tmp_path, kind))
    whole = sum(parameter.numel() for parameter in load_policy(path, "float32").lm.parameters())
    if kind == "deepseek_v3":
        whole += 4  # the router's stored bias, one an expert
    assert count_parameters(resolve_architecture(path, None, "policy")) == whole


def test_a_local_checkpoint_that_is_cut_is_refused_in_the_plan(tmp_path: Path) -> None:
    file = make_model(tmp_path / "policy", "llama") / "model.safetensors"
    make_model(tmp_path / "reward", "llama", classifier=True)
    config = parse_config(tiny_run(tmp_path, policy__max_length=64, prompts__max_prompt_tokens=32))
    make_plan(config)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError) as refusal:
        make_plan(config)
    assert str(file) in str(refusal.value)


# -- lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model_type": "llama", "max_position_embeddings": 2048}, 2048),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
        ({"model_type": "mpt", "max_seq_len": 4096}, 4096),
        ({"model_type": "bloom"}, None),
        ({"model_type": "mamba"}, None),
        ({"model_type": "falcon", "alibi": True}, None),
        ({"model_type": "falcon", "alibi": False}, 2048),
        (GEMMA3_4B, 131072),  # scaled already
        (
            {  # Llama 3.1: scaled already
                "model_type": "llama",
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        (
            {  # Qwen 2.5 as its card says for long texts
                "model_type": "qwen2",
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        (
            {  # DeepSeek-V3: 40 x 4096
                "model_type": "deepseek_v3",
                "max_position_embeddings": 163840,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 40,
                    "original_max_position_embeddings": 4096,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                },
            },
            163840,
        ),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 4096,
                "rope_scaling": {"rope_type": "yarn", "factor": 2.5},
            },
            10240,
        ),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 4096,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
            16384,
        ),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
            },
            8192,
        ),
    ],
    ids=lambda value: value if isinstance(value, int) else "",
)
def test_how_far_positions_reach(tmp_path: Path, content: dict[str, Any], expected: int | None) -> None:
    config = read_config_file(write_config(tmp_path, content) / "config.json")
    assert longest_sequence(decoder_config(config)) == expected


@pytest.mark.parametrize(("role", "kind"), [("policy", "gpt2"), ("policy", "llama"), ("reward", "gpt2")])
def test_a_length_that_positions_do_not_reach_is_refused_in_the_plan(
    tmp_path: Path, role: str, kind: str
) -> None:
    for other in ("policy", "reward"):
        family, changes = (kind, {}) if other == role else ("llama", {"max_position_embeddings": 4096})
        make_model(tmp_path / other, family, classifier=other == "reward", **changes)
    changes = {"prompts__max_prompt_tokens": 32, "sampling__max_new_tokens": 16}
    make_plan(parse_config(tiny_run(tmp_path, policy__max_length=64, **changes)))
    with pytest.raises(ValueError) as refusal:
        make_plan(parse_config(tiny_run(tmp_path, policy__max_length=65, **changes)))
    for part in ("policy.max_length=65", str(tmp_path / role), "64 tokens"):
        assert part in str(refusal.value)


def test_a_hub_models_length_is_told_where_its_config_is_at_hand(tmp_path: Path) -> None:
    path = str(make_model(tmp_path, "gpt2"))
    check_sampled_model(path, ModelSettings(max_length=64))
    with pytest.raises(ValueError) as refusal:
        check_sampled_model(path, ModelSettings(max_length=65))
    assert "policy.max_length=65" in str(refusal.value)


def test_what_a_user_says_of_a_hub_model_counts(tmp_path: Path) -> None:
    names = Architecture.model_fields.keys() - {"max_position_embeddings"}
    shape = {name: value for name, value in FAMILIES["llama"].items() if name in names}
    changes = {"prompts__max_prompt_tokens": 32, "policy__max_length": 128}
    own = {"policy__path": "who/knows", "reward__path": "who/knows", "reward__architecture": shape}
    for longest, fits in ((128, True), (127, False)):
        shape = {**shape, "max_position_embeddings": longest}
        config = parse_config(tiny_run(tmp_path, **changes, **own, policy__architecture=shape))
        if fits:
            make_plan(config)
            continue
        with pytest.raises(ValueError, match=r"policy.max_length=128"):
            make_plan(config)


# -- models that also see ----------------------------------------------------------------------------------


def test_the_language_model_of_one_that_sees_is_trained_alone(tmp_path: Path) -> None:
    """Its text part alone gives the same logprobs, and is all that moves."""
    from transformers import AutoModelForCausalLM

    path = str(make_model(tmp_path / "sees", "gemma3"))
    policy = load_policy(path, "float32")
    whole = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompt, answer = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [15, 3, 4]
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = whole(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits[0]
    expected = torch.log_softmax(logits, -1)[range(9, 12), answer]
    found = policy.train()(pack_groups([AnswerGroup(prompt, [answer])]))
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=0.0)

    found.sum().backward()
    names = {name for name, parameter in policy.lm.named_parameters() if parameter.requires_grad}
    assert all("language_model" in name for name in names)
    assert names == {name for name, parameter in policy.lm.named_parameters() if parameter.grad is not None}
    # Two layers: attention 4 x 8 x 32 twice, 2 x 8 x 32 twice, MLP 3 x 32 x 48, four norms of 32, two of 8.
    layer = 2 * 4 * 8 * 32 + 2 * 2 * 8 * 32 + 3 * 32 * 48 + 4 * 32 + 2 * 8
    shape = model_shape(policy.lm)
    assert (shape.body, shape.hidden, shape.vocab) == (2 * layer + 32, 32, 259)
    assert (shape.attention_width, shape.layers) == (32, 2)


def test_a_reward_model_made_of_one_that_sees_reads_text(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    path = str(make_model(tmp_path, "gemma3", classifier=True))
    plain = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager").eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13]])
    with torch.no_grad():
        expected = plain(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits[0]
        found = load_reward(path, "float32")(pack_groups([AnswerGroup([5, 6, 7, 8], [[9, 10, 11, 12, 13]])]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3_moe"])
def test_flops_count_what_a_token_passes_through(tmp_path: Path, kind: str) -> None:
    lm = load_policy(str(make_model(tmp_path, kind)), "float32").lm
    shape = model_shape(lm)
    sizes = {name: parameter.numel() for name, parameter in lm.named_parameters()}
    if kind == "gpt2":  # its table of positions is counted with the rest: it is small
        assert (shape.hidden, shape.attention_width, shape.layers) == (32, 32, 2)
        assert shape.body == sum(sizes.values()) - sizes["transformer.wte.weight"]
        return
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    rest = sum(sizes.values()) - experts - 2 * 259 * 32
    assert experts == 2 * 4 * 3 * 32 * 16  # two layers of four experts, of which a token is sent to two
    assert shape.body == rest + experts // 2
