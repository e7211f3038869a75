"""One uniform number a row draws from the distribution that vLLM's noise draws from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.actors.seeded_sampling import sample_rows, sample_with_few_numbers


def seeded(*seeds: int) -> dict[int, torch.Generator]:
    return {row: torch.Generator().manual_seed(seed) for row, seed in enumerate(seeds)}


def test_frequencies_are_the_probabilities() -> None:
    """Chi-square of 20,000 draws over four tokens: below 16.27 in 999 of 1,000 cases (three degrees of freedom)."""
    probs = torch.tensor([0.5, 0.0, 0.2, 0.05, 0.25])
    count = 20_000
    generators = seeded(5)
    drawn = torch.cat([sample_rows(probs[None], generators) for _ in range(count)])
    found = torch.bincount(drawn, minlength=5)
    assert found[1] == 0, "a token without probability was drawn"
    expected = count * probs
    there = expected > 0
    assert ((found - expected)[there] ** 2 / expected[there]).sum() < 16.27


def test_a_row_depends_on_itself_alone() -> None:
    probs = torch.rand(4, 1000, generator=torch.Generator().manual_seed(1))
    together = sample_rows(probs, seeded(1, 2, 3, 4))
    alone = [sample_rows(probs[row : row + 1], seeded(row + 1)) for row in range(4)]
    assert together.tolist() == torch.cat(alone).tolist() and len(set(together.tolist())) > 1
    generators = seeded(9)
    again = [sample_rows(probs[:1], generators).item() for _ in range(8)]
    assert len(set(again)) > 1, "the generator goes on from draw to draw"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=40).filter(lambda p: sum(p) > 0),
    st.integers(0, 10**6),
)
def test_what_is_drawn_has_probability(weights: list[float], seed: int) -> None:
    probs = torch.tensor([weights])
    (token,) = sample_rows(probs, seeded(seed)).tolist()
    assert probs[0, token] > 0


def test_the_end_of_the_row_is_never_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1 - 2**-24))  # the highest that there is
    rows = torch.linspace(0.1, 1, 3000).repeat(64, 1)
    rows[:, -5:] = 0.0
    assert sample_rows(rows, seeded(*range(64))).tolist() == [2994] * 64
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(0.0))
    rows[:, :3] = 0.0
    assert sample_rows(rows, seeded(*range(64))).tolist() == [3] * 64


def test_vllms_sampler_takes_it_where_all_rows_have_seeds() -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    sample_with_few_numbers()
    once = TopKTopPSampler.forward_cpu
    sample_with_few_numbers()
    assert TopKTopPSampler.forward_cpu is once
    sampler = TopKTopPSampler()
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    found, _ = sampler.forward(logits.clone(), seeded(1, 2, 3), None, None)
    assert found.tolist() == sample_rows(logits.softmax(-1), seeded(1, 2, 3)).tolist()
    narrow, _ = sampler.forward(logits.clone(), seeded(1, 2, 3), torch.tensor([1, 1, 1]), None)
    assert narrow.tolist() == logits.argmax(-1).tolist()
    mixed, _ = sampler.forward(logits.clone(), {1: torch.Generator().manual_seed(2)}, None, None)
    assert mixed.shape == (3,)
