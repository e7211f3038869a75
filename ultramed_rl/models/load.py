"""Loading and saving of checkpoints, and the two modules that roles compute with."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from ultramed_rl.learning.logprobs import token_logprobs
from ultramed_rl.models.offline import resolve_model


class PolicyModel(nn.Module):
    """A causal language model that answers with the logprobs of marked tokens instead of logits."""

    def __init__(self, causal_lm: nn.Module) -> None:
        super().__init__()
        self.lm: Any = causal_lm

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor
    ) -> torch.Tensor:
        """[B, L] ids and masks -> [N] fp32 logprobs of the N marked tokens, in row-major order."""
        decoder = self.lm.get_decoder()
        hidden = decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        wanted = completion_mask[:, 1:]
        return token_logprobs(
            hidden[:, :-1][wanted], input_ids[:, 1:][wanted], self.lm.get_output_embeddings()
        )


class RewardModel(nn.Module):
    """A one-label classifier read at each row's last real token, as transformers pools it."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.lm: Any = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, L] ids and mask, right-padded -> [B] fp32 rewards."""
        decoder = self.lm.base_model
        hidden = decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last = attention_mask.sum(-1) - 1
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self.lm.score(hidden[rows, last]).squeeze(-1).float()


def load_policy(path: str, precision: str, device: str, *, trust_remote_code: bool = False) -> PolicyModel:
    """Load a causal LM for training or for reference logprobs."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(
        resolve_model(path), **_load_arguments(precision, device, trust_remote_code)
    )
    return PolicyModel(lm)


def load_reward(path: str, precision: str, device: str, *, trust_remote_code: bool = False) -> RewardModel:
    """Load a `num_labels=1` classifier; a plain causal LM gets a fresh head
    (transformers' own initialisation; seed torch before).

    Raises:
        ValueError: the checkpoint has a head with more than one label.
    """
    from transformers import AutoModelForSequenceClassification

    source = resolve_model(path)
    check_reward_model(path, trust_remote_code=trust_remote_code)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, **_load_arguments(precision, device, trust_remote_code)
    )
    return RewardModel(classifier)


def check_reward_model(path: str, *, trust_remote_code: bool = False) -> None:
    """Raise ValueError for a model that isn't there, or a classifier with more than one label."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_model(path), trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"reward model {path!r}: cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from None
    trained = any("SequenceClassification" in name for name in config.architectures or [])
    if trained and config.num_labels != 1:
        raise ValueError(
            f"reward model {path!r}: has {config.num_labels} labels; a reward model has num_labels=1"
        )


def save_model(
    module: PolicyModel | RewardModel, tokenizer: Any, directory: str, state: dict[str, Any]
) -> None:
    """Write a Hugging Face checkpoint (safetensors) from a full state dict of the wrapped model."""
    module.lm.config.pad_token_id = module.lm.config.pad_token_id or tokenizer.pad_token_id
    module.lm.save_pretrained(directory, state_dict=state, safe_serialization=True)
    tokenizer.save_pretrained(directory)


def torch_dtype(precision: str) -> torch.dtype:
    """bfloat16 or float32 by name."""
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


def _load_arguments(precision: str, device: str, trust_remote_code: bool) -> dict[str, Any]:
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return {
        "dtype": torch_dtype(precision),
        "attn_implementation": "flash_attention_2" if flash else "sdpa",
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
    }
