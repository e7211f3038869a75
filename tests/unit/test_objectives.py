"""Objectives against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.learning.objectives import bradley_terry_loss, dpo_loss, kl_estimate, kto_pair_loss

ratios = st.floats(-30, 30, allow_nan=False)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_at_equal_ratios_is_log_two() -> None:
    assert dpo_loss(t(3.0), t(3.0), beta=0.1).item() == pytest.approx(math.log(2))


def test_dpo_by_hand() -> None:
    # beta (2 - (-3)) = 0.5; -log sigmoid(0.5) = log(1 + e^-0.5)
    assert dpo_loss(t(2.0), t(-3.0), beta=0.1).item() == pytest.approx(math.log1p(math.exp(-0.5)))


def test_dpo_label_smoothing_mixes_both_directions() -> None:
    forward, backward = math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.5))
    loss = dpo_loss(t(2.0), t(-3.0), beta=0.1, label_smoothing=0.2).item()
    assert loss == pytest.approx(0.8 * forward + 0.2 * backward)


@given(ratios, ratios, st.floats(0.01, 1.0))
def test_dpo_gradient_has_the_closed_form(chosen: float, rejected: float, beta: float) -> None:
    # d/d(chosen) = -beta sigmoid(-beta (chosen - rejected)), and the opposite for rejected.
    c, r = t(chosen).requires_grad_(), t(rejected).requires_grad_()
    dpo_loss(c, r, beta=beta).sum().backward()
    expected = -beta / (1 + math.exp(min(beta * (chosen - rejected), 700)))
    assert c.grad is not None and r.grad is not None
    assert c.grad.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert r.grad.item() == pytest.approx(-expected, rel=1e-6, abs=1e-12)


def test_kto_pair_by_hand() -> None:
    # desirable: 1 - sigmoid(0.1 (4 - 0)); undesirable: 1 - sigmoid(0.1 (1 - (-2)))
    loss = kto_pair_loss(t(4.0), t(-2.0), t(1.0), t(0.0), beta=0.1).item()
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    assert loss == pytest.approx(((1 - sigmoid(0.4)) + (1 - sigmoid(0.3))) / 2)


def test_kl_estimate_is_never_negative_and_carries_no_gradient() -> None:
    ratio = t(-5.0, 1.0).requires_grad_()
    assert kl_estimate(ratio).item() == 0.0
    estimate = kl_estimate(t(3.0, 1.0).requires_grad_())
    assert estimate.item() == 2.0 and not estimate.requires_grad


def test_bradley_terry_by_hand() -> None:
    loss = bradley_terry_loss(t(1.0, 0.0), t(0.0, 1.0))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(1))])
