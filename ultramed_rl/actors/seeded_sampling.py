"""vLLM's sampler on CPU, where every row has a seed of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def sample_rows(probs: torch.Tensor, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """[B] tokens, one for each row of `probs` [B, V], drawn with the row's own generator.

    A row's token depends on its probabilities and its generator alone, whatever else is in the batch. Rows need not
    sum to one; a token without probability is never drawn.
    """
    drawn = torch.stack([torch.rand((), generator=generators[row]) for row in range(len(probs))])
    # In double precision: u < 1 then keeps u * total below the total, so that the last token drawn has probability.
    reached = probs.cumsum(dim=-1, dtype=torch.float64)
    points = drawn.to(torch.float64).unsqueeze(1) * reached[:, -1:]
    return torch.searchsorted(reached, points, right=True).squeeze(1)


def sample_with_few_numbers() -> None:
    """Let vLLM's CPU sampler of this process draw one random number a row where every row has a seed; twice is once.

    vLLM fills a row of noise as long as the vocabulary for each request that has a seed of its own, after it has filled
    them all without: a third of a step of a small model. The inverse of the cumulative distribution needs one uniform
    number a row, and draws from exactly the same distribution.
    """
    from vllm.v1.sample.ops import topk_topp_sampler as ops

    theirs = ops.TopKTopPSampler.forward_cpu
    if theirs.__module__ == __name__:
        return

    def forward_cpu(
        self: Any,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if len(generators) < len(logits) or self.logprobs_mode in ops.PROCESSED_LOGPROBS_MODES:
            tokens: tuple[torch.Tensor, torch.Tensor | None] = theirs(self, logits, generators, k, p)
            return tokens
        probs = ops.apply_top_k_top_p(logits, k, p).softmax(dim=-1, dtype=torch.float32)
        return sample_rows(probs, generators), None

    ops.TopKTopPSampler.forward_cpu = forward_cpu
