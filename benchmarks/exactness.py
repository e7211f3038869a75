"""Are packed rows the separate sequences' own on this device? Both are held against eager attention in float32.

A rounded result can't equal another rounded one. So packed rows in bfloat16 may be as far from the truth, which is
transformers' eager attention in float32 over one sequence at a time, as eager attention in bfloat16 is itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.attention import SEGMENTS, register_segment_attention
from ultramed_rl.models.kernels import fuse_layers
from ultramed_rl.models.load import PolicyModel

WIDTHS: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
# name: (transformers' model type, changes to WIDTHS). What kernels tell apart: grouped heads, windows, widths of a head.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "all heads": ("llama", {"num_key_value_heads": 8}),
    "window": ("mistral", {"sliding_window": 100}),
    "head of 256": ("gemma", {"head_dim": 256, "num_attention_heads": 4, "num_key_value_heads": 1}),
    "head of 32": ("qwen3", {"head_dim": 32}),
}
# Prompts and answers of lengths that no block size divides.
GROUPS = [
    AnswerGroup(range(5, 412), [range(7, 270), range(100, 229)]),
    AnswerGroup(range(300, 333), [range(50, 561)]),
    AnswerGroup(range(20, 84), [range(400, 401), range(10, 75), range(600, 919)]),
]


@dataclass(frozen=True)
class Distance:
    """From the truth, as a share of its norm: of packed rows, and of eager attention in the same precision."""

    packed: float
    eager: float

    @property
    def is_rounding(self) -> bool:
        """Whether packed rows are as near as eager attention, or as float32 sums in another order."""
        return self.packed <= 1.5 * self.eager + 2e-5


def compare(
    kind: str,
    changes: dict[str, Any],
    device: str,
    precision: torch.dtype,
    groups: Sequence[AnswerGroup] = GROUPS,
) -> dict[str, Distance]:
    """How far logprobs of all answers and gradients of all weights are from the truth."""
    from transformers import AutoConfig, AutoModelForCausalLM

    register_segment_attention()

    def made(attention: str, dtype: torch.dtype) -> Any:
        config = AutoConfig.for_model(kind, **{**WIDTHS, **changes})
        # Not `.to(dtype)`: that would round rotary frequencies.
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).to(device)

    torch.manual_seed(0)
    truth = made("eager", torch.float32)
    with torch.no_grad():
        for weight in truth.parameters():  # far from uniform attention
            weight.add_(torch.randn_like(weight) * (0.2 if weight.dim() == 1 else weight.shape[-1] ** -0.5))
            weight.copy_(weight.to(precision))  # all sides have the same weights
    eager, packed = made("eager", precision), made(SEGMENTS, precision)
    for model in (eager, packed):
        model.load_state_dict(truth.state_dict())
    fuse_layers(packed)
    expected = _learn(truth, torch.cat(list(_separate(truth, groups))))
    plain = _learn(eager, torch.cat(list(_separate(eager, groups))))
    found = _learn(packed, PolicyModel(packed)(pack_groups(groups, device)))
    return {
        name: Distance(share_apart(ours, known), share_apart(theirs, known))
        for name, known, theirs, ours in zip(("logprobs", "gradients"), expected, plain, found, strict=True)
    }


def _separate(model: Any, groups: Sequence[AnswerGroup]) -> Iterator[torch.Tensor]:
    """Logprobs of each answer's tokens, one unpadded sequence at a time."""
    device = next(model.parameters()).device
    for group in groups:
        for answer in group.answers:
            ids = torch.tensor([[*group.prompt, *answer]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].float()
            yield logits.log_softmax(-1).gather(-1, ids[0, len(group.prompt) :, None]).squeeze(-1)


def _learn(model: Any, logprobs: torch.Tensor) -> Iterator[torch.Tensor]:
    """The logprobs; and the gradient of a weighted mean of them, in which no two tokens weigh the same."""
    yield logprobs.detach()
    weights = torch.linspace(-1.0, 2.0, len(logprobs), device=logprobs.device)
    (logprobs * weights).mean().backward()
    yield torch.cat([p.grad.float().flatten() for _, p in sorted(model.named_parameters())])


def share_apart(found: torch.Tensor, truth: torch.Tensor) -> float:
    """How far a result is from the truth, of the truth's norm."""
    norm = torch.linalg.vector_norm
    return float(norm(found.double() - truth.double()) / norm(truth.double()))
