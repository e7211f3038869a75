"""Loading and saving of checkpoints, and the two modules that roles compute with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ultramed_rl.config.models import LoRA
from ultramed_rl.learning.costs import ModelShape
from ultramed_rl.learning.logprobs import token_logprobs
from ultramed_rl.learning.packing import PackedBatch, unpack_rows
from ultramed_rl.models.attention import (
    SEGMENTS,
    SegmentLayout,
    check_sharing,
    register_segment_attention,
    why_not_packed,
)
from ultramed_rl.models.checkpoint import (
    ModelSource,
    check_finite,
    check_finite_files,
    check_head,
    expected_model,
    policy_source,
    refuse_gaps,
    restore_buffers,
    reward_source,
    weight_files,
)
from ultramed_rl.models.files import decoder_config, head_width, text_model, whole_size
from ultramed_rl.models.kernels import check_kernels, fuse_layers
from ultramed_rl.models.lora import attach_lora, load_adapter, quantization
from ultramed_rl.models.reading import READ_AT
from ultramed_rl.models.ulysses import RowShare

logger = logging.getLogger(__name__)
ADAPTER_FOLDER = "adapter"  # of a LoRA policy's checkpoint, beside the merged weights
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class PackedModel(nn.Module):
    """A transformers model over packed batches.

    `ranks`: those that compute each batch together, the same on all of them; None: one alone does.
    """

    ranks: dist.ProcessGroup | None = None

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm: Any = lm

    def share_rows(self, ranks: dist.ProcessGroup | None) -> None:
        """From now on compute with these ranks, if there are any. Raises ValueError: this model's rows cannot be shared."""
        if ranks is not None:
            packed = is_packed(self.lm)
            check_sharing(
                decoder_config(self.lm.config), ranks.size(), repr(self.lm.name_or_path), packed=packed
            )
        self.ranks = ranks

    def _predict_shared(
        self,
        batch: PackedBatch,
        places: Sequence[int],
        predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """What is predicted at these places of the row: a rank predicts for those in its own part, of their hidden states and
        numbers."""
        assert self.ranks is not None
        share = RowShare.of(batch, self.ranks)
        output = self.lm.get_decoder()(
            input_ids=share.input_ids,
            position_ids=share.position_ids,
            use_cache=False,
            segments=SegmentLayout(share.segments, share.ranks),
        )
        own, where = share.owned(places)
        states = output.last_hidden_state[0].index_select(0, where)
        return share.join(predict(states, own), own, len(places))


class PolicyModel(PackedModel):
    """A causal language model that answers with the logprobs of packed answers instead of logits."""

    def __init__(self, causal_lm: nn.Module) -> None:
        super().__init__(causal_lm)
        self.vocab_size: int = decoder_config(self.lm.config).vocab_size
        if is_packed(causal_lm):
            cap = getattr(decoder_config(self.lm.config), "final_logit_softcapping", None)
            _let_head_take_targets(self.lm.get_output_embeddings(), self.vocab_size, cap)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """-> [N] fp32 logprobs of the batch's answer tokens, answer after answer; [2, N] where it asks for `collisions`."""
        if self.ranks is not None:
            head = self.lm.get_output_embeddings()
            return self._predict_shared(
                batch, batch.places, lambda states, own: head(states, batch.targets[own], batch.collisions)
            )
        if is_packed(self.lm):
            hidden, predictors, _ = _decode(self.lm.get_decoder(), batch)
            head = self.lm.get_output_embeddings()
            logprobs: torch.Tensor = head(hidden[predictors], batch.targets, batch.collisions)
            return logprobs
        # Another model's head may scale or cap its logits: its own forward knows, at the price of all logits.
        rows = unpack_rows(batch)
        output = self.lm(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        logits = output.logits.flatten(0, 1)[rows.predictors]
        same = lambda chosen: chosen
        return token_logprobs(logits, batch.targets, same, self.vocab_size, collisions=batch.collisions)


def _let_head_take_targets(head: Any, vocab_size: int, cap: float | None) -> None:
    """Called with targets besides hidden states, a head gives their logprobs instead of logits; of logits that are capped
    where the model's are.

    All parts of `token_logprobs` are then within one call. ZeRO-3 gathers a module's weights for each of its calls, which
    must be the same on all ranks, and as many as in the pass before, or it forgets what to fetch ahead.
    """
    logits = head.forward

    def capped(hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(logits(hidden) / cap) * cap

    def forward(
        hidden: torch.Tensor, targets: torch.Tensor | None = None, collisions: bool = False
    ) -> torch.Tensor:
        if targets is None:
            plain: torch.Tensor = logits(hidden)
            return plain
        return token_logprobs(hidden, targets, capped if cap else logits, vocab_size, collisions=collisions)

    head.forward = forward


class RewardModel(PackedModel):
    """A one-label classifier read at each answer's last token, as transformers pools it."""

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """-> [A] fp32 rewards of the batch's answers."""
        if self.ranks is not None:
            ends = [segment.stop - 1 for segment in batch.answers]
            return self._predict_shared(batch, ends, lambda states, _: self._score(states))
        hidden, _, last = _decode(self.lm.get_decoder(), batch)
        return self._score(hidden[last])

    def _score(self, states: torch.Tensor) -> torch.Tensor:
        rewards: torch.Tensor = self.lm.score(states).squeeze(-1).float()
        return rewards


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

    With `lora` the model of `path` is a frozen base with adapters: those of the checkpoint `adapter`, or fresh ones.
    Raises ValueError: the checkpoint is not what its config says, or has adapters that cannot be merged.
    """
    source = policy_source(path, trust_remote_code=trust_remote_code)
    dtype = DTYPES[precision]
    lm = _load(source, dtype, quantization(lora, dtype))
    if lora is not None:
        attach_lora(lm, lora, path)
        # What leaves this model is whole weights; transformers would write the 4-bit ones in their place.
        lm.hf_quantizer, lm.is_quantized = None, False
        vars(lm.config).pop("quantization_config", None)
        if adapter is not None:
            load_adapter(lm, Path(adapter) / ADAPTER_FOLDER)
    return PolicyModel(lm)


def load_reward(path: str, precision: str, *, trust_remote_code: bool = False) -> RewardModel:
    """Load a `num_labels=1` classifier; a plain causal LM gets a fresh head (transformers' own initialisation; seed
    torch before). Raises ValueError: the checkpoint has a head with more than one label, another kind of head, or is
    not what its config says."""
    source = reward_source(path, trained=False, trust_remote_code=trust_remote_code)
    classifier = _load(source, DTYPES[precision])
    check_head(classifier, path)
    return RewardModel(classifier)


def model_shape(lm: Any) -> ModelShape:
    """What FLOPs are counted from; whole sizes, also of weights that are partitioned (ZeRO-3) or packed in 4 bits.

    Of a mixture's experts those count that a token passes through.
    """
    config = decoder_config(lm.config)
    embeddings = {id(m.weight) for m in (lm.get_input_embeddings(), lm.get_output_embeddings()) if m}
    chosen_experts = getattr(config, "num_experts_per_tok", None)
    body = 0.0
    for name, parameter in text_model(lm).named_parameters():
        packed = getattr(parameter, "quant_state", None)
        size = packed.shape.numel() if packed else whole_size(parameter)
        shape = getattr(parameter, "ds_shape", parameter.shape)
        stacked = chosen_experts and ".experts." in name and len(shape) == 3
        if id(parameter) not in embeddings:
            body += size * (chosen_experts / shape[0] if stacked else 1)
    return ModelShape(
        body=int(body),
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        attention_width=config.num_attention_heads * head_width(config),
        layers=config.num_hidden_layers,
    )


def save_model(
    module: PolicyModel | RewardModel,
    tokenizer: Any,
    directory: str,
    state: dict[str, Any],
    end_id: int | None = None,
) -> None:
    """Write a Hugging Face checkpoint (safetensors) from a full state dict of the wrapped model. `end_id`: the token
    that ends an answer, where it isn't the tokenizer's eos_token."""
    config = decoder_config(module.lm.config)
    if isinstance(module, RewardModel):
        module.lm.config.update(READ_AT)
        config.pad_token_id = set_padding(tokenizer, config.vocab_size, end_id)
    elif config.pad_token_id is None and (tokenizer.pad_token_id or 0) < config.vocab_size:
        config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(module.lm, "generation_config", None)
    if generation is not None:
        ends = generation.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if tokenizer.eos_token_id not in ends:
            generation.eos_token_id = [tokenizer.eos_token_id, *ends]
    module.lm.save_pretrained(directory, state_dict=state, safe_serialization=True)
    tokenizer.save_pretrained(directory)


def set_padding(tokenizer: Any, vocab_size: int, end_id: int | None = None) -> int:
    """Give a reward model's tokenizer a padding token that transformers can tell from an answer, and return it.

    transformers reads a reward at the last token that isn't padding, and refuses batches where no token is. What ends
    an answer can't be padding, therefore, nor what the model has no embedding of; what only begins a text can.
    """
    ends = {tokenizer.eos_token_id, end_id}
    known = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    known += [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *range(vocab_size)]
    padding: int = next(t for t in known if t is not None and t < vocab_size and t not in ends)
    if padding != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return padding


def _load(source: ModelSource, dtype: torch.dtype, quantizer: Any = None) -> Any:
    """`from_pretrained` with packed attention, or with plain rows where the model isn't known to pack.

    Dropout is switched off: preference objectives compare two models' numbers, not two random masks.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    check_kernels()
    files = weight_files(source)
    plain = expected_model(source, files, dtype)
    arguments = _attention(source)
    if quantizer is not None:
        check_finite_files(files, source.name)
        arguments["quantization_config"] = quantizer
    model, info = source.factory.from_pretrained(
        source.path,
        config=source.config,
        revision=source.revision,
        dtype=dtype,
        trust_remote_code=source.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        **arguments,
    )
    refuse_gaps(source, model, info)
    check_finite(model, source.name)
    if is_deepspeed_zero3_enabled():
        restore_buffers(model, plain, files)
    if text_model(model) is not model:
        # What a model sees with stays as it is: no text reaches it, and weight decay would wear it down.
        parts = (text_model(model), model.get_output_embeddings(), getattr(model, "score", None))
        read = {id(p) for part in parts if part is not None for p in part.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in read)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    fuse_layers(model)
    return model


def _attention(source: ModelSource) -> dict[str, Any]:
    """What `from_pretrained` is to be told of the attention."""
    config = decoder_config(source.config)
    own_code = source.trust_remote_code and hasattr(source.config, "auto_map")
    reason = "its code is its own" if own_code else why_not_packed(config)
    if reason is None:
        register_segment_attention()
        return {"attn_implementation": SEGMENTS}
    logger.warning("%s: answers are computed as padded rows, since %s", source.name, reason)
    if getattr(config, "attn_logit_softcapping", None):
        return {"attn_implementation": "eager"}  # transformers' SDPA leaves the cap out
    return {}
