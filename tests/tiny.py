"""Tiny random models with a byte tokenizer, made in a second: real architectures, nothing mocked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer() -> Any:
    """Bytes as tokens, plus the three ChatML specials."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def tiny_config(**changes: Any) -> Any:
    """Two layers of width 128 with grouped-query attention."""
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        **changes,
    }
    return LlamaConfig(**settings)


# Other families at the same scale: their config class's names, two layers, four experts.
_WIDTHS: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GEMMA3: dict[str, Any] = {
    **_WIDTHS,
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}
_SEES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _WIDTHS,
    "qwen2": _WIDTHS,
    "qwen3": {**_WIDTHS, "head_dim": 8},
    "qwen3_moe": {
        **_WIDTHS,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mixtral": {**_WIDTHS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **_WIDTHS,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {
        **_WIDTHS,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "granite": {**_WIDTHS, "logits_scaling": 4.0},  # is computed as padded rows
    "phimoe": {**_WIDTHS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {
        "vocab_size": 259,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gemma3": {"text_config": _GEMMA3, "vision_config": _SEES, "mm_tokens_per_image": 4},
    "gemma3_text": _GEMMA3,
    "bert": _WIDTHS,
    "deberta-v2": _WIDTHS,
}


def make_model(directory: Path, kind: str, *, classifier: bool = False, **changes: Any) -> Path:
    """A random model of a family on disk, far from uniform: every weight is moved, biases and norms too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    factory = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    labels = {"num_labels": 1} if classifier else {}
    model = factory.from_config(AutoConfig.for_model(kind, **{**FAMILIES[kind], **labels, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_policy(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """A random causal LM on disk."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(tiny_config(**changes)).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_reward(directory: Path, seed: int = 1, *, ours: bool = True) -> Path:
    """A random one-label classifier on disk; `ours` as this project saves those that it trains."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(tiny_config(num_labels=1))
    torch.nn.init.normal_(model.score.weight, std=1.0)
    if ours:
        model.config.reward_read_at = "end_of_turn"
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_questions(path: Path, count: int = 24) -> Path:
    """A JSONL file of short medical questions."""
    drugs = ["aspirin", "valium", "insulin", "codeine", "warfarin", "statins"]
    rows = [{"question": f"What is {drugs[i % len(drugs)]} number {i}?"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_run(root: Path, **changes: Any) -> dict[str, Any]:
    """A complete two-round run of the tiny models, as a config mapping; `changes` are dotted keys."""
    config: dict[str, Any] = {
        "run": {"name": "tiny", "directory": str(root / "runs"), "rounds": 2, "seed": 7},
        "policy": {"path": str(root / "policy"), "precision": "float32", "max_length": 128},
        "reference": {"micro_batch_tokens": 512},
        "reward": {"path": str(root / "reward"), "precision": "float32", "micro_batch_tokens": 512},
        "prompts": {
            "sources": [{"type": "question", "uri": str(root / "questions.jsonl")}],
            "max_prompt_tokens": 96,
            "held_out": 4,
            "per_round": 8,
        },
        "sampling": {"n": 4, "temperature": 1.0, "max_new_tokens": 16},
        "objective": {"type": "dpo", "beta": 0.1},
        "training": {
            "learning_rate": 1.0e-3,
            "batch_size": 4,
            "micro_batch_tokens": 256,
            "gradient_checkpointing": False,
        },
        "evaluation": {"bootstrap": 200},
        "cluster": {
            "device": "cpu",
            "devices_per_node": 2,
            "device_memory_gib": 20.0,
            "policy": {"ranks": 2, "zero_stage": 2},
            "rollout": {"engines": 1, "max_num_seqs": 32, "kv_cache_gib": 0.1, "enforce_eager": True},
        },
        "tracking": {"wandb": "disabled"},
    }
    for key, value in changes.items():
        node = config
        *sections, last = key.split("__")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return config
