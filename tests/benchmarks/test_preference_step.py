"""The peers of the preference benchmark compute what they are said to: the logprobs and gradients of plain transformers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import make_policy

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("prefix_grouper")

from preference_step import grouped_logprobs, register_grouped_attention


def test_a_prompt_computed_once_gives_what_each_sequence_alone_does(tmp_path: Path) -> None:
    path = str(make_policy(tmp_path / "policy"))
    grouped, plain = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for _ in range(2))
    grouped.set_attn_implementation(register_grouped_attention())
    torch.manual_seed(0)
    pairs = [
        (*(torch.randint(3, 40, (length,)).tolist() for length in (7, 5, 5)), (0.0, 0.0)) for _ in range(3)
    ]
    found = grouped_logprobs(grouped, pairs)
    expected = torch.stack([torch.stack([alone(plain, p, a) for a in (c, r)]) for p, c, r, _ in pairs])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for value in (found, expected):
        value.diff(dim=1).sum().backward()
    for ours, theirs in zip(grouped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def alone(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Summed logprobs of an answer, by one sequence without any packing."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer).unsqueeze(-1)).sum()
