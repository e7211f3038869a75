"""Loading and saving of checkpoints, and the two modules that roles compute with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultramed_rl.config.models import LoRA
from ultramed_rl.learning.flops import ModelShape
from ultramed_rl.learning.logprobs import token_logprobs
from ultramed_rl.learning.packing import PackedBatch, unpack_rows
from ultramed_rl.models.attention import SEGMENTS, SegmentLayout, register_segment_attention, why_not_packed
from ultramed_rl.models.lora import attach_lora, forget_quantizer, load_adapter, quantization
from ultramed_rl.models.offline import resolve_model
from ultramed_rl.models.reading import READ_AT

logger = logging.getLogger(__name__)
ADAPTER_FOLDER = "adapter"  # of a LoRA policy's checkpoint, beside the merged weights


class PolicyModel(nn.Module):
    """A causal language model that answers with the logprobs of packed answers instead of logits."""

    def __init__(self, causal_lm: nn.Module) -> None:
        super().__init__()
        self.lm: Any = causal_lm

    def forward(self, batch: PackedBatch, chunks: int | None = None) -> torch.Tensor:
        """-> [N] fp32 logprobs of the batch's answer tokens, answer after answer.

        `chunks`: in how many parts the head is applied; ranks that share its weights agree on one number.
        """
        vocab_size = self.lm.config.vocab_size
        if is_packed(self.lm):
            hidden, predictors, _ = _decode(self.lm.get_decoder(), batch)
            return token_logprobs(
                hidden[predictors], batch.targets, self.lm.get_output_embeddings(), vocab_size, chunks
            )
        # Another model's head may scale or cap its logits: its own forward knows, at the price of all logits.
        rows = unpack_rows(batch)
        output = self.lm(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        logits = output.logits.flatten(0, 1)[rows.predictors]
        return token_logprobs(logits, batch.targets, lambda chosen: chosen, vocab_size)


class RewardModel(nn.Module):
    """A one-label classifier read at each answer's last token, as transformers pools it."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.lm: Any = classifier

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """-> [A] fp32 rewards of the batch's answers."""
        hidden, _, last = _decode(self.lm.base_model, batch)
        return self.lm.score(hidden[last]).squeeze(-1).float()


def _decode(decoder: Any, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat hidden states [M, D], and where in them the answers' predictors and last tokens are."""
    if is_packed(decoder):
        output = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            segments=SegmentLayout(batch.segments),
        )
        return output.last_hidden_state[0], batch.predictors, batch.last
    rows = unpack_rows(batch)
    output = decoder(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
    return output.last_hidden_state.flatten(0, 1), rows.predictors, rows.last


def is_packed(model: Any) -> bool:
    """Whether a loaded model computes prefix-shared rows, or padded ones."""
    return bool(model.config._attn_implementation == SEGMENTS)


def load_policy(
    path: str,
    precision: str,
    *,
    lora: LoRA | None = None,
    adapter: str | None = None,
    trust_remote_code: bool = False,
) -> PolicyModel:
    """Load a causal LM for training or for reference logprobs.

    With `lora` the model of `path` is a frozen base with adapters: those of the checkpoint `adapter`, or
    fresh ones.
    """
    from transformers import AutoModelForCausalLM

    extra = quantization(lora, torch_dtype(precision))
    arguments = {} if extra is None else {"quantization_config": extra}
    lm = _load(AutoModelForCausalLM, path, precision, trust_remote_code, **arguments)
    if lora is not None:
        attach_lora(lm, lora, path)
        forget_quantizer(lm)
        if adapter is not None:
            load_adapter(lm, Path(adapter) / ADAPTER_FOLDER)
    return PolicyModel(lm)


def load_reward(path: str, precision: str, *, trust_remote_code: bool = False) -> RewardModel:
    """Load a `num_labels=1` classifier; a plain causal LM gets a fresh head
    (transformers' own initialisation; seed torch before).

    Raises:
        ValueError: the checkpoint has a head with more than one label.
    """
    from transformers import AutoModelForSequenceClassification

    check_reward_model(path, trained=False, trust_remote_code=trust_remote_code)
    classifier = _load(AutoModelForSequenceClassification, path, precision, trust_remote_code, num_labels=1)
    return RewardModel(classifier)


def model_shape(lm: Any) -> ModelShape:
    """What FLOPs are counted from; whole sizes, also of weights that ZeRO-3 has partitioned."""
    config = lm.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embeddings = {id(m.weight) for m in (lm.get_input_embeddings(), lm.get_output_embeddings()) if m}
    return ModelShape(
        body=sum(_whole_size(p) for p in lm.parameters() if id(p) not in embeddings),
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        attention_width=config.num_attention_heads * head_dim,
        layers=config.num_hidden_layers,
    )


def _whole_size(parameter: nn.Parameter) -> int:
    """Elements, also of a weight that is partitioned (ZeRO-3) or packed in 4 bits."""
    packed = getattr(parameter, "quant_state", None)
    return int(packed.shape.numel() if packed else getattr(parameter, "ds_numel", parameter.numel()))


def check_reward_model(path: str, *, trained: bool, trust_remote_code: bool = False) -> None:
    """Raise ValueError for a model that isn't there, a classifier with more than one label, or, where a
    `trained` one is wanted, a language model whose head would be random."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_model(path), trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"reward model {path!r}: cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from None
    classifies = any("SequenceClassification" in name for name in config.architectures or [])
    if trained and not classifies:
        raise ValueError(
            f"reward model {path!r}: is a {', '.join(config.architectures or ['model'])} without a trained head; "
            "name a num_labels=1 sequence classifier, or train one: ultramed-rl reward"
        )
    if classifies and config.num_labels != 1:
        raise ValueError(
            f"reward model {path!r}: has {config.num_labels} labels; a reward model has num_labels=1"
        )


def save_model(
    module: PolicyModel | RewardModel, tokenizer: Any, directory: str, state: dict[str, Any]
) -> None:
    """Write a Hugging Face checkpoint (safetensors) from a full state dict of the wrapped model."""
    if isinstance(module, RewardModel):
        module.lm.config.update(READ_AT)
    module.lm.config.pad_token_id = module.lm.config.pad_token_id or tokenizer.pad_token_id
    generation = getattr(module.lm, "generation_config", None)
    if generation is not None:
        ends = generation.eos_token_id
        known = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if tokenizer.eos_token_id not in known:
            generation.eos_token_id = [tokenizer.eos_token_id, *known]
    module.lm.save_pretrained(directory, state_dict=state, safe_serialization=True)
    tokenizer.save_pretrained(directory)


def torch_dtype(precision: str) -> torch.dtype:
    """bfloat16 or float32 by name."""
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


def _load(factory: Any, path: str, precision: str, trust_remote_code: bool, **arguments: Any) -> Any:
    """`factory.from_pretrained` with packed attention, or with plain rows where the model isn't known to pack.

    Dropout is switched off: preference objectives compare two models' numbers, not two random masks.
    """
    from transformers import AutoConfig

    source = resolve_model(path)
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    own_code = trust_remote_code and hasattr(config, "auto_map")
    reason = "its code is its own" if own_code else why_not_packed(config)
    if reason is None:
        register_segment_attention()
        arguments["attn_implementation"] = SEGMENTS
    else:
        logger.warning("%s: answers are computed as padded rows, since %s", path, reason)
        if getattr(config, "attn_logit_softcapping", None):
            arguments["attn_implementation"] = "eager"  # transformers' SDPA leaves the cap out
    model = factory.from_pretrained(
        source,
        dtype=torch_dtype(precision),
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        **arguments,
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model
