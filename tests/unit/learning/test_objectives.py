"""Objectives against hand-worked numbers, TRL's own code, OpenRLHF's formulas, and rules that must hold."""

from __future__ import annotations

import importlib
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.objectives import DPO, KTO, Mixture, Objective
from ultramed_rl.learning.objectives import (
    OBJECTIVES,
    Answers,
    apo_down_loss,
    apo_zero_loss,
    bradley_terry_loss,
    chosen_nll,
    dpo_loss,
    dpop_loss,
    hinge_loss,
    infonca_loss,
    ipo_loss,
    kl_estimate,
    kto_loss,
    kto_pair_loss,
    log_exp_loss,
    nca_loss,
    nca_pair_loss,
    objective_losses,
    orpo_loss,
    r_dpo_loss,
    raft_loss,
    robust_dpo_loss,
    simpo_loss,
    sppo_hard_loss,
    sppo_loss,
)

PARTS = [
    {"weight": 1.0, "objective": {"type": "dpo", "beta": 0.1}},
    {"weight": 0.2, "objective": {"type": "raft"}},
]

# Case -> (objective, constants): every objective in every form it has.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {"beta": 0.1}),
    "dpo-smoothed": ("dpo", {"beta": 0.1, "label_smoothing": 0.2}),
    "dpo-normalized": ("dpo", {"beta": 0.5, "label_smoothing": 0.1, "length_normalized": True}),
    "dpo-nll": ("dpo", {"beta": 0.1, "nll_weight": 0.5}),
    "dpo-ld": ("dpo", {"beta": 0.1, "ld_alpha": 0.4}),
    "dpo-weighted": ("dpo", {"beta": 0.1, "policy_weighted": True, "nll_weight": 0.5}),
    "robust_dpo": ("robust_dpo", {"beta": 0.1, "label_smoothing": 0.2}),
    "r_dpo": ("r_dpo", {"beta": 0.1, "length_weight": 0.05}),
    "dpop": ("dpop", {"beta": 0.1, "penalty": 5.0}),
    "ipo": ("ipo", {"beta": 0.1, "length_normalized": True}),
    "ipo-summed": ("ipo", {"beta": 0.1, "length_normalized": False}),
    "hinge": ("hinge", {"beta": 0.1}),
    "apo_zero": ("apo_zero", {"beta": 0.1}),
    "apo_down": ("apo_down", {"beta": 0.1}),
    "sppo_hard": ("sppo_hard", {"beta": 0.1}),
    "sppo": ("sppo", {"beta": 0.1, "reward_temperature": 2.0}),
    "kto": ("kto", {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.7}),
    "kto_pair": ("kto_pair", {"beta": 0.1}),
    "nca_pair": ("nca_pair", {"beta": 0.1}),
    "nca": ("nca", {"beta": 0.1, "reward_temperature": 2.0}),
    "infonca": ("infonca", {"beta": 0.1, "reward_temperature": 2.0}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.1}),
    "orpo": ("orpo", {"beta": 0.1}),
    "raft": ("raft", {}),
    "mixture": ("mixture", {"parts": PARTS}),
}
COLUMNS = ("logprobs", "reference", "lengths", "rewards", "desirable", "shared", "weights")
KL = {"kto": (0.3,), "kto_pair": (0.2, 0.5)}
SECTIONS = {section.model_fields["type"].default: section for section in get_args(get_args(Objective)[0])}

EXAMPLES = {
    name: section(parts=PARTS) if name == "mixture" else section() for name, section in SECTIONS.items()
}

every_case = pytest.mark.parametrize("case", CASES)
few_examples = settings(deadline=None, max_examples=40)


def t(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def answers_of(
    logprobs: torch.Tensor,
    reference: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    rewards: torch.Tensor | None = None,
    desirable: torch.Tensor | None = None,
    sizes: list[int] | None = None,
) -> Answers:
    count = len(logprobs)
    sizes = sizes or [2] * (count // 2)
    first = torch.tensor([place == 0 for size in sizes for place in range(size)])
    return Answers(
        logprobs=logprobs,
        reference=reference,
        lengths=torch.ones(count, dtype=torch.long) if lengths is None else lengths,
        rewards=torch.zeros_like(reference) if rewards is None else rewards,
        desirable=first if desirable is None else desirable,
        sizes=tuple(sizes),
        shared=torch.zeros_like(reference),
        weights=torch.ones_like(reference),
    )


def random_answers(seed: int, sizes: list[int], dtype: torch.dtype = torch.float64) -> Answers:
    random, count = torch.Generator().manual_seed(seed), sum(sizes)
    return answers_of(
        -torch.rand(count, generator=random, dtype=dtype) * 15 - 1,
        -torch.rand(count, generator=random, dtype=dtype) * 15 - 1,
        lengths=torch.randint(1, 9, (count,), generator=random),
        rewards=torch.randn(count, generator=random, dtype=dtype),
        sizes=sizes,
    )


def pair() -> Answers:
    # Log-ratios 2 and -3 (h = 5); means over tokens 0.5 and -1.5 (h = 2); mean logprobs -1 and -4.5.
    return answers_of(t(-4, -9), t(-6, -6), lengths=torch.tensor([4, 2]))


def triple() -> Answers:
    # Log-ratios 2, -1 and -3.
    return answers_of(t(-4, -7, -9), t(-6, -6, -6), rewards=t(3, 1, 0), sizes=[3])


def losses_of(case: str, answers: Answers) -> torch.Tensor:
    name, constants = CASES[case]
    kl = tuple(torch.tensor(value, dtype=answers.logprobs.dtype) for value in KL.get(name, ()))
    return objective_losses(answers, kl, {"type": name, **constants})


def gradient_of(loss: Callable[[Answers], torch.Tensor], answers: Answers) -> torch.Tensor:
    logprobs = answers.logprobs.clone().requires_grad_()
    loss(replace(answers, logprobs=logprobs)).sum().backward()
    assert logprobs.grad is not None
    return logprobs.grad


def take(answers: Answers, order: torch.Tensor) -> Answers:
    """The answers in another order that keeps each group together, with groups numbered anew."""
    _, sizes = torch.unique_consecutive(answers.group[order], return_counts=True)
    values = {name: getattr(answers, name)[order] for name in COLUMNS}
    return Answers(**values, sizes=tuple(sizes.tolist()))


def swapped(answers: Answers) -> Answers:
    """Each group's answers in reverse."""
    order = [torch.nonzero(answers.group == g).flatten().flip(0) for g in range(answers.groups)]
    return take(answers, torch.cat(order))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """log(1 + e^x), which is -log sigmoid(-x)."""
    return math.log(1 + math.exp(x))


def check(losses: torch.Tensor, *expected: float) -> None:
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(list(expected), rel=1e-9, abs=1e-12)


def check_single_precision(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


# Numbers worked out by hand.


def test_dpo_by_hand() -> None:
    # beta h = 0.1 * 5 = 0.5, and -log sigmoid(0.5) = log(1 + e^-0.5).
    check(dpo_loss(pair(), beta=0.1), softplus(-0.5))


def test_dpo_label_smoothing_by_hand() -> None:
    # 0.8 L(0.5) + 0.2 L(-0.5).
    check(dpo_loss(pair(), beta=0.1, label_smoothing=0.2), 0.8 * softplus(-0.5) + 0.2 * softplus(0.5))


def test_dpo_length_normalized_by_hand() -> None:
    # 2 / 4 - (-3) / 2 = 2, times beta 0.1.
    check(dpo_loss(pair(), beta=0.1, length_normalized=True), softplus(-0.2))


def test_dpo_length_normalized_with_label_smoothing_by_hand() -> None:
    # beta h = 0.3 * 2, mixed 0.9 to 0.1.
    losses = dpo_loss(pair(), beta=0.3, length_normalized=True, label_smoothing=0.1)
    check(losses, 0.9 * softplus(-0.6) + 0.1 * softplus(0.6))


def test_ld_dpo_by_hand() -> None:
    # Of log-ratios 2 and -3 the first 2 tokens have 1 and -3 (the rejected answer has no more): 1 + 0.4 * 1 + 3 = 4.4.
    answers = replace(pair(), shared=t(1, -3))
    check(dpo_loss(answers, beta=0.1, ld_alpha=0.4), softplus(-0.44))
    check(dpo_loss(answers, beta=0.1, ld_alpha=0.0), softplus(-0.4))
    check(dpo_loss(answers, beta=0.1, ld_alpha=1.0), softplus(-0.5))


def test_wpo_weighs_a_pair_by_both_of_its_answers() -> None:
    answers = replace(pair(), weights=t(0.5, 0.8))
    constants = {"type": "dpo", "beta": 0.1, "policy_weighted": True}
    check(objective_losses(answers, (), constants), 0.4 * softplus(-0.5))
    # An NLL of 1 is added unweighed.
    check(objective_losses(answers, (), {**constants, "nll_weight": 0.3}), 0.4 * softplus(-0.5) + 0.3)
    part = {"weight": 2.0, "objective": constants}
    check(objective_losses(answers, (), {"type": "mixture", "parts": [part]}), 0.8 * softplus(-0.5))


def test_robust_dpo_by_hand() -> None:
    # (0.8 L(0.5) - 0.2 L(-0.5)) / (1 - 0.4).
    expected = (0.8 * softplus(-0.5) - 0.2 * softplus(0.5)) / 0.6
    check(robust_dpo_loss(pair(), beta=0.1, label_smoothing=0.2), expected)


def test_ipo_on_sums_by_hand() -> None:
    # (5 - 1 / (2 * 0.2))^2 = 2.5^2.
    check(ipo_loss(pair(), beta=0.2, length_normalized=False), 6.25)


def test_ipo_on_means_by_hand() -> None:
    # (2 - 1 / (2 * 0.2))^2 = 0.5^2.
    check(ipo_loss(pair(), beta=0.2, length_normalized=True), 0.25)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 0.5), (0.19, 0.05), (0.25, 0.0)])
def test_hinge_by_hand(beta: float, expected: float) -> None:
    # 1 - 5 beta, not below zero.
    check(hinge_loss(pair(), beta=beta), expected)


def test_kto_by_hand() -> None:
    # Wanted: beta (r - z) = 0.1 (2 - 0.5); unwanted: beta (z - r) = 0.1 (0.5 + 3).
    losses = kto_loss(
        pair(), torch.tensor(0.5).double(), beta=0.1, desirable_weight=1.5, undesirable_weight=0.7
    )
    check(losses, 1.5 * (1 - sigmoid(0.15)), 0.7 * (1 - sigmoid(0.35)))


def test_kto_takes_desirability_from_its_flags_and_not_from_the_order() -> None:
    # First unwanted: beta (z - r) = 0.1 (0.5 - 2); second wanted: 0.1 (-3 - 0.5).
    answers = replace(pair(), desirable=torch.tensor([False, True]))
    losses = kto_loss(
        answers, torch.tensor(0.5).double(), beta=0.1, desirable_weight=1.5, undesirable_weight=0.7
    )
    check(losses, 0.7 * (1 - sigmoid(-0.15)), 1.5 * (1 - sigmoid(-0.35)))


@pytest.mark.parametrize(
    ("own", "counts", "weights"),
    [
        ({}, (50, 50), (1.0, 1.0)),
        ({}, (100, 1000), (10.0, 1.0)),  # the paper's example
        ({}, (900, 100), (1.0, 9.0)),
        ({"undesirable_weight": 2.0}, (100, 300), (6.0, 2.0)),
        ({"desirable_weight": 3.0}, (100, 300), (3.0, 1.0)),
        ({"desirable_weight": 3.0, "undesirable_weight": 2.0}, (9, 1), (3.0, 2.0)),
        ({}, (7, 0), (1.0, 1.0)),
        ({"undesirable_weight": 2.0}, (0, 7), (1.0, 2.0)),
    ],
)
def test_kto_weighs_both_kinds_alike_unless_told(
    own: dict[str, float], counts: tuple[int, int], weights: tuple[float, float]
) -> None:
    found = KTO(**own).balanced(*counts)
    assert (found.desirable_weight, found.undesirable_weight) == pytest.approx(weights)


def test_kto_pair_by_hand() -> None:
    # Chosen against the rejected's KL: 0.1 (2 - 0.1); rejected against the chosen's: 0.1 (0.4 + 3).
    losses = kto_pair_loss(pair(), t(0.4)[0], t(0.1)[0], beta=0.1)
    check(losses, ((1 - sigmoid(0.19)) + (1 - sigmoid(0.34))) / 2)


def test_nca_pair_by_hand() -> None:
    # w = 0.2, l = -0.3: L(0.2) + (L(-0.2) + L(0.3)) / 2 with L(x) = log(1 + e^-x).
    check(nca_pair_loss(pair(), beta=0.1), softplus(-0.2) + (softplus(0.2) + softplus(-0.3)) / 2)


def test_nca_of_three_answers_by_hand() -> None:
    # v = 0.2, -0.1, -0.3; weights e^1.5, e^0.5, e^0 over their sum; the other term over K = 3.
    weights = [math.exp(1.5), math.exp(0.5), 1.0]
    values = [0.2, -0.1, -0.3]
    pulls = sum(w / sum(weights) * softplus(-v) for w, v in zip(weights, values, strict=True))
    pushes = sum(softplus(v) for v in values) / 3
    check(nca_loss(triple(), beta=0.1, reward_temperature=2.0), pulls + pushes)


def test_infonca_of_three_answers_by_hand() -> None:
    # Cross entropy from weights (e^1.5, e^0.5, e^0) to those of v = 0.2, -0.1, -0.3.
    weights = [math.exp(1.5), math.exp(0.5), 1.0]
    values = [0.2, -0.1, -0.3]
    normaliser = math.log(sum(math.exp(v) for v in values))
    expected = sum(w / sum(weights) * (normaliser - v) for w, v in zip(weights, values, strict=True))
    check(infonca_loss(triple(), beta=0.1, reward_temperature=2.0), expected)


def test_r_dpo_by_hand() -> None:
    # beta h + w (|chosen| - |rejected|) = 0.5 + 0.25 (4 - 2).
    check(r_dpo_loss(pair(), beta=0.1, length_weight=0.25), softplus(-1.0))


def test_dpop_by_hand() -> None:
    # The chosen log-ratio is 2: nothing lost, as DPO. Of -2 and -7: h = 5, and 0.1 (5 - 3 * 2) = -0.1.
    lost = answers_of(t(-8, -13), t(-6, -6))
    check(dpop_loss(pair(), beta=0.1, penalty=3.0), softplus(-0.5))
    check(dpop_loss(lost, beta=0.1, penalty=3.0), softplus(0.1))


def test_apo_by_hand() -> None:
    # beta r = 0.2 and -0.3.
    check(apo_zero_loss(pair(), beta=0.1), sigmoid(-0.2) + sigmoid(-0.3))
    check(apo_down_loss(pair(), beta=0.1), sigmoid(0.2) + sigmoid(-0.5))


def test_sppo_of_a_pair_by_hand() -> None:
    # Goals +-2.5 of log-ratios 2 and -3.
    check(sppo_hard_loss(pair(), beta=0.2), 0.5**2 + 0.5**2)


def test_sppo_of_three_answers_by_hand() -> None:
    # Rewards 3, 1, 0 by temperature 2: gaps 1, 1.5 and 0.5; each answer draws with itself. Goals (P - 1/2) / 0.1.
    one, two, three = sigmoid(1.0), sigmoid(1.5), sigmoid(0.5)
    wins = [(0.5 + one + two) / 3, (0.5 + 1 - one + three) / 3, (0.5 + 1 - two + 1 - three) / 3]
    expected = sum((r - (p - 0.5) / 0.1) ** 2 for r, p in zip([2, -1, -3], wins, strict=True)) / 3
    check(sppo_loss(triple(), beta=0.1, reward_temperature=2.0), expected)


def test_raft_imitates_the_best_answer_alone() -> None:
    # 4 nats over 4 tokens.
    check(raft_loss(pair()), 1.0)
    assert gradient_of(raft_loss, pair()).tolist() == [-0.25, 0.0]


def test_mixture_adds_weighted_losses() -> None:
    # DPO's log(1 + e^-0.5), and 0.2 of an NLL of 1: RPO's loss.
    mixed = objective_losses(pair(), (), {"type": "mixture", "parts": PARTS})
    check(mixed, softplus(-0.5) + 0.2)
    rpo = objective_losses(pair(), (), {"type": "dpo", "beta": 0.1, "nll_weight": 0.2})
    assert torch.equal(mixed, rpo)


def test_mixture_needs_what_any_of_its_parts_needs() -> None:
    def mixed(*types: str) -> Mixture:
        return Mixture.model_validate({"parts": [{"objective": {"type": name}} for name in types]})

    assert mixed("raft", "dpo").uses_reference and not mixed("raft", "simpo").uses_reference
    assert mixed("dpo", "sppo").listwise and not mixed("dpo", "raft").listwise
    assert mixed("simpo", "dpo").beta == 2.0
    whole = Mixture.model_validate({"parts": [{"objective": DPO()}, {"objective": {"type": "raft"}}]})
    assert whole.beside == "none" and not whole.policy_weighted
    own = DPO(ld_alpha=0.5, policy_weighted=True)
    both = Mixture.model_validate({"parts": [{"objective": own}, {"objective": {"type": "raft"}}]})
    assert both.beside == "cut" and both.policy_weighted
    with pytest.raises(ValueError, match="ld_alpha"):
        Mixture.model_validate({"parts": [{"objective": own}, {"objective": {"type": "sppo"}}]})


def test_simpo_by_hand() -> None:
    # beta (-1 + 4.5) - gamma = 0.4 * 3.5 - 0.5 = 0.9.
    check(simpo_loss(pair(), beta=0.4, gamma=0.5), softplus(-0.9))


def test_simpo_label_smoothing_by_hand() -> None:
    # 0.9 L(0.9) + 0.1 L(-0.9).
    losses = simpo_loss(pair(), beta=0.4, gamma=0.5, label_smoothing=0.1)
    check(losses, 0.9 * softplus(-0.9) + 0.1 * softplus(0.9))


def test_orpo_by_hand() -> None:
    # NLL 1; P = e^-1 and e^-4.5; log odds = log(P / (1 - P)).
    chosen, rejected = math.exp(-1), math.exp(-4.5)
    ratio = math.log(chosen / (1 - chosen)) - math.log(rejected / (1 - rejected))
    check(orpo_loss(pair(), beta=0.1), 1 + 0.1 * softplus(-ratio))


def test_orpo_of_a_confident_answer_by_hand() -> None:
    # P = 1 - e^-10 (log P = log(1 - e^-10)) has log odds log(e^10 - 1); P = 1/2 has 0.
    logprob = math.log1p(-math.exp(-10))
    answers = answers_of(t(logprob, -math.log(2)), t(0, 0))
    check(orpo_loss(answers, beta=1.0), -logprob + softplus(-math.log(math.exp(10) - 1)))


def test_chosen_nll_by_hand() -> None:
    # 4 nats over 4 tokens, and 7 over 1.
    check(chosen_nll(pair()), 1.0)
    check(chosen_nll(answers_of(t(-7, -1), t(0, 0))), 7.0)


@pytest.mark.parametrize(
    ("name", "constants", "plain"),
    [
        ("dpo", {"beta": 0.1}, softplus(-0.5)),
        ("robust_dpo", {"beta": 0.1, "label_smoothing": 0.0}, softplus(-0.5)),
        ("ipo", {"beta": 0.2, "length_normalized": False}, 6.25),
        ("hinge", {"beta": 0.1}, 0.5),
        ("nca_pair", {"beta": 0.1}, softplus(-0.2) + (softplus(0.2) + softplus(-0.3)) / 2),
        ("simpo", {"beta": 0.4, "gamma": 0.5}, softplus(-0.9)),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_nll_term_adds_weight_times_the_chosens_nll_per_token(
    name: str, constants: dict[str, Any], plain: float, weight: float
) -> None:
    # The chosen answer has 4 nats over 4 tokens.
    check(
        objective_losses(pair(), (), {"type": name, **constants, "nll_weight": weight}), plain + weight * 1.0
    )


def test_bradley_terry_by_hand() -> None:
    # Gaps 1.5 and -1.
    check(bradley_terry_loss(t(2, 0), t(0.5, 1)), softplus(-1.5), softplus(1))


def test_bradley_terry_with_margin_and_centering_by_hand() -> None:
    # L(1.5 - 0.5) + 0.01 * 2.5^2, and L(-1 - 0.25) + 0.01 * 1^2.
    losses = bradley_terry_loss(t(2, 0), t(0.5, 1), margin=t(0.5, 0.25), centering=0.01)
    check(losses, softplus(-1) + 0.0625, softplus(1.25) + 0.01)


def test_bradley_terry_takes_a_scalar_margin() -> None:
    # L(1.5 - 0.5), L(-1 - 0.5).
    check(bradley_terry_loss(t(2, 0), t(0.5, 1), margin=0.5), softplus(-1), softplus(1.5))


def test_log_exp_by_hand() -> None:
    # log(1 + e^-1.5), log(1 + e^1).
    check(log_exp_loss(t(2, 0), t(0.5, 1)), softplus(-1.5), softplus(1))


# TRL's own code.


class ScoredModel:
    """Gives token i the logprob table[i], wherever it stands: what TRL's trainers call in place of a model."""

    training = False

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.collisions = table.flip(0) / 2  # likewise, log sum pi^2

    def __call__(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> SimpleNamespace:
        logprobs = self.table[input_ids[:, 1:]] * (labels[:, 1:] != -100)
        zeros = torch.zeros_like(logprobs)
        found = {"log_probs": logprobs, "log_sum_sq_probs": self.collisions[input_ids[:, 1:]]}
        return SimpleNamespace(**found, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trl_class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"trl.{module}"), name)  # imported late: it takes seconds


def trl_self(**attributes: Any) -> SimpleNamespace:
    """The attributes of a TRL trainer that its losses read."""
    same = lambda value: value
    return SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **attributes,
    )


def tokens_of(seed: int, count: int) -> tuple[ScoredModel, dict[str, torch.Tensor], Answers]:
    """Random rows of a 2-token prompt, 1 to 9 answer tokens and padding, and the same as `Answers` in pairs."""
    model = ScoredModel(-3 * torch.rand(200, generator=torch.Generator().manual_seed(100)))
    random = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(200, (count, 11), generator=random)
    lengths = torch.randint(1, 10, (count,), generator=random)
    place = torch.arange(11)
    mask = ((place >= 2) & (place < 2 + lengths[:, None])).long()
    attention = (place < 2 + lengths[:, None]).long()
    inputs = {"input_ids": input_ids, "completion_mask": mask, "attention_mask": attention}
    logprobs = (model.table[input_ids[:, 1:]] * mask[:, 1:]).sum(1)
    reference = logprobs + 4 * torch.randn(count, generator=random)
    return model, inputs, answers_of(logprobs, reference, lengths=lengths)


def trl_dpo_losses(
    loss_type: str,
    model: ScoredModel,
    inputs: dict[str, torch.Tensor],
    answers: Answers,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    ld_alpha: float | None = None,
    use_weighting: bool = False,
) -> torch.Tensor:
    """What `DPOTrainer._compute_loss` gives for each pair alone (it returns the batch's mean)."""
    trainer = trl_self(
        ld_alpha=ld_alpha,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=use_weighting,
        model=model,
    )
    compute = trl_class("trainer.dpo_trainer", "DPOTrainer")._compute_loss
    losses = []
    for start in range(0, len(answers.logprobs), 2):
        rows = {name: value[start : start + 2] for name, value in inputs.items()}
        rows["ref_chosen_logps"] = answers.reference[start : start + 1]
        rows["ref_rejected_logps"] = answers.reference[start + 1 : start + 2]
        losses.append(compute(trainer, model, rows, False))
    return torch.stack(losses)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize(
    ("loss_type", "label_smoothing", "ours"),
    [
        ("sigmoid", 0.0, dpo_loss),
        ("sigmoid_norm", 0.0, partial(dpo_loss, length_normalized=True)),
        # TRL 1.16's label smoothing is in AOT only, which for a single pair, with nothing to sort, is cDPO.
        ("aot_unpaired", 0.2, partial(dpo_loss, label_smoothing=0.2)),
        ("robust", 0.2, partial(robust_dpo_loss, label_smoothing=0.2)),
        ("hinge", 0.0, hinge_loss),
        ("ipo", 0.0, partial(ipo_loss, length_normalized=True)),
        ("nca_pair", 0.0, nca_pair_loss),
        ("apo_zero", 0.0, apo_zero_loss),
        ("apo_down", 0.0, apo_down_loss),
        ("sppo_hard", 0.0, sppo_hard_loss),
        ("sft", 0.0, lambda answers, beta: raft_loss(answers)),
    ],
)
def test_agrees_with_trls_dpo_trainer(
    loss_type: str, label_smoothing: float, ours: Callable[..., torch.Tensor], beta: float, seed: int
) -> None:
    model, inputs, answers = tokens_of(seed, 16)
    theirs = trl_dpo_losses(loss_type, model, inputs, answers, beta=beta, label_smoothing=label_smoothing)
    check_single_precision(ours(answers, beta=beta), theirs)


@pytest.mark.parametrize("ld_alpha", [0.0, 0.4])
def test_ld_dpo_agrees_with_trls_dpo_trainer(ld_alpha: float) -> None:
    model, inputs, answers = tokens_of(3, 16)
    shortest = answers.lengths.view(-1, 2).amin(1).repeat_interleave(2)
    place = inputs["completion_mask"].cumsum(1)[:, 1:]
    logprobs = model.table[inputs["input_ids"][:, 1:]]
    shared = (logprobs * ((place > 0) & (place <= shortest[:, None])) * inputs["completion_mask"][:, 1:]).sum(
        1
    )
    # The reference's sums, of the shared tokens and of the others, are the policy's and some noise.
    random = torch.Generator().manual_seed(9)
    noise = torch.where(answers.lengths > shortest, 2 * torch.randn(16, generator=random), 0.0)
    reference_shared = answers.reference - answers.logprobs + shared - noise
    rest = answers.reference - reference_shared
    weighed = replace(answers, reference=reference_shared + ld_alpha * rest)
    theirs = trl_dpo_losses("sigmoid", model, inputs, weighed, beta=0.1, ld_alpha=ld_alpha)
    ours = replace(answers, shared=shared - reference_shared)
    torch.testing.assert_close(dpo_loss(ours, beta=0.1, ld_alpha=ld_alpha), theirs, rtol=1e-5, atol=1e-5)


def test_wpo_agrees_with_trls_dpo_trainer() -> None:
    model, inputs, answers = tokens_of(4, 16)
    ids, mask = inputs["input_ids"][:, 1:], inputs["completion_mask"][:, 1:]
    aligned = ((model.table[ids] - model.collisions[ids]) * mask).sum(1)
    answers = replace(answers, weights=(aligned / answers.lengths).exp())
    theirs = trl_dpo_losses("sigmoid", model, inputs, answers, beta=0.1, use_weighting=True)
    ours = objective_losses(answers, (), {"type": "dpo", "beta": 0.1, "policy_weighted": True})
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [-3.0, 3.0], ids=["kl-clamped", "kl-positive"])
def test_kto_agrees_with_trls_trainer(shift: float) -> None:
    model, inputs, answers = tokens_of(0, 12)
    kl_inputs, kl_answers = tokens_of(7, 6)[1:]
    kl_reference = kl_answers.logprobs - shift + torch.linspace(-2, 2, 6)
    trainer = trl_self(
        beta=0.1,
        desirable_weight=1.5,
        undesirable_weight=0.7,
        loss_type="kto",
        calculate_KL=True,
        model=model,
    )
    KTOTrainer = trl_class("trainer.kto_trainer", "KTOTrainer")
    trainer._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, trainer)
    theirs = []
    for i in range(12):
        rows = {name: value[i : i + 1] for name, value in inputs.items()}
        rows |= {f"KL_{name}": value for name, value in kl_inputs.items()}
        rows |= {"ref_KL_logps": kl_reference, "ref_logps": answers.reference[i : i + 1]}
        rows["label"] = answers.desirable[i : i + 1]
        theirs.append(KTOTrainer._compute_loss(trainer, model, rows, False))
    kl = kl_estimate(kl_answers.logprobs - kl_reference)
    ours = kto_loss(answers, kl, beta=0.1, desirable_weight=1.5, undesirable_weight=0.7)
    check_single_precision(ours, torch.stack(theirs))
    assert (kl > 0) == (shift > 0)


@pytest.mark.parametrize(
    ("loss_type", "ours"),
    [
        ("simpo", partial(simpo_loss, beta=2.0, gamma=1.0)),
        ("simpo-smoothed", partial(simpo_loss, beta=2.0, gamma=1.0, label_smoothing=0.1)),
        ("ipo", partial(ipo_loss, beta=2.0, length_normalized=False)),
        ("hinge", partial(hinge_loss, beta=2.0)),
        ("sigmoid", partial(dpo_loss, beta=2.0)),
        ("sigmoid-smoothed", partial(dpo_loss, beta=2.0, label_smoothing=0.1)),
    ],
)
def test_agrees_with_trls_cpo_trainer_without_a_reference(
    loss_type: str, ours: Callable[..., torch.Tensor]
) -> None:
    answers = tokens_of(2, 16)[2]
    answers = replace(answers, reference=torch.zeros(16))
    # TRL's trainer gives SimPO the mean logprobs per token.
    logprobs = answers.logprobs / answers.lengths if loss_type.startswith("simpo") else answers.logprobs
    trainer = trl_self(
        alpha=0.0,
        beta=2.0,
        simpo_gamma=1.0,
        loss_type=loss_type.removesuffix("-smoothed"),
        label_smoothing=0.1 if loss_type.endswith("-smoothed") else 0.0,
    )
    compute = trl_class("experimental.cpo.cpo_trainer", "CPOTrainer").cpo_loss
    check_single_precision(ours(answers), compute(trainer, logprobs[0::2], logprobs[1::2])[0])


def trl_orpo_losses(answers: Answers, beta: float) -> torch.Tensor:
    """TRL's odds-ratio term of mean logprobs; the NLL is added here, for TRL's also counts the prompt."""
    means = answers.logprobs / answers.lengths
    compute = trl_class("experimental.orpo.orpo_trainer", "ORPOTrainer").odds_ratio_loss
    return -means[0::2] - compute(trl_self(beta=beta), means[0::2], means[1::2])[0]


def test_orpo_agrees_with_trls_trainer() -> None:
    answers = tokens_of(3, 32)[2]
    check_single_precision(orpo_loss(answers, beta=1.0), trl_orpo_losses(answers, beta=1.0))


@pytest.mark.parametrize("mean", [-1e-1, -1e-2, -1e-3, -1e-4, -1e-5])
def test_orpo_of_confident_answers_agrees_with_trls_trainer(mean: float) -> None:
    random = torch.Generator().manual_seed(4)
    chosen, rejected = mean * (1 + torch.rand(2, 8, generator=random))
    answers = answers_of(torch.stack([chosen, rejected], 1).flatten(), torch.zeros(16))
    check_single_precision(orpo_loss(answers, beta=1.0), trl_orpo_losses(answers, beta=1.0))


@pytest.mark.parametrize("centering", [None, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_agrees_with_trls_trainer(with_margin: bool, centering: float | None) -> None:
    chosen, rejected, margin = 3 * torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    compute = trl_class("trainer.reward_trainer", "RewardTrainer").compute_loss
    losses = []
    for i in range(16):
        model = lambda **_: SimpleNamespace(logits=torch.stack([chosen[i], rejected[i]])[:, None])  # noqa: B023
        trainer = trl_self(
            model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=centering)
        )
        losses.append(compute(trainer, model, {"margin": margin[i : i + 1]} if with_margin else {}))
    ours = bradley_terry_loss(
        chosen, rejected, margin=margin if with_margin else 0.0, centering=centering or 0.0
    )
    check_single_precision(ours, torch.stack(losses))


# OpenRLHF 0.11's formulas (openrlhf/models/loss.py), restated: it imports flash-attn, which CI lacks.


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_dpo_agrees_with_openrlhfs_formula(label_smoothing: float) -> None:
    answers, beta = tokens_of(6, 32)[2], 0.1
    policy, reference = answers.logprobs, answers.reference
    logits = (policy[0::2] - policy[1::2]) - (reference[0::2] - reference[1::2])
    theirs = (
        -F.logsigmoid(beta * logits) * (1 - label_smoothing) - F.logsigmoid(-beta * logits) * label_smoothing
    )
    check_single_precision(dpo_loss(answers, beta=beta, label_smoothing=label_smoothing), theirs)


def test_ipo_agrees_with_openrlhfs_formula() -> None:
    answers, beta = tokens_of(6, 32)[2], 0.1
    policy, reference = answers.logprobs, answers.reference
    logits = (policy[0::2] - policy[1::2]) - (reference[0::2] - reference[1::2])
    theirs = (logits - 1 / (2 * beta)) ** 2
    check_single_precision(ipo_loss(answers, beta=beta, length_normalized=False), theirs)


def test_reward_losses_agree_with_openrlhfs_formulas() -> None:
    chosen, rejected, margin = 3 * torch.randn(3, 64, generator=torch.Generator().manual_seed(8))
    check_single_precision(bradley_terry_loss(chosen, rejected), -F.logsigmoid(chosen - rejected))
    with_margin = bradley_terry_loss(chosen, rejected, margin=margin)
    check_single_precision(with_margin, -F.logsigmoid(chosen - rejected - margin))
    check_single_precision(log_exp_loss(chosen, rejected), torch.log(1 + torch.exp(rejected - chosen)))


# Gradients.


@every_case
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradient_agrees_with_finite_differences(case: str, seed: int) -> None:
    answers = random_answers(seed, [2, 3, 2, 2, 3])
    # The hinge has no derivative where beta h = 1.
    assert (0.1 * answers.margin(answers.logratios) - 1).abs().min() > 1e-3
    logprobs = answers.logprobs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses_of(case, replace(answers, logprobs=x)), (logprobs,))


def test_hinge_gradient_ends_at_its_kink() -> None:
    # beta h = 0.5: slopes -beta and beta; beta h = 1.5: none.
    answers = answers_of(t(-1, -6, -1, -16), t(0, 0, 0, 0))
    assert gradient_of(partial(hinge_loss, beta=0.1), answers).tolist() == [-0.1, 0.1, 0.0, 0.0]


@pytest.mark.parametrize(
    "loss",
    [bradley_terry_loss, partial(bradley_terry_loss, margin=0.5, centering=0.1), log_exp_loss],
    ids=["bradley_terry", "bradley_terry-margin-centering", "log_exp"],
)
def test_gradient_of_reward_losses_agrees_with_finite_differences(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_gradient_of_group_softmax_agrees_with_finite_differences() -> None:
    answers = random_answers(0, [1, 2, 3])
    values = answers.rewards.clone().requires_grad_()
    assert torch.autograd.gradcheck(answers.log_softmax_by_group, (values,))


def test_kto_gradient_does_not_pass_through_the_reference_point() -> None:
    answers = random_answers(3, [2, 2, 2])
    answers = replace(answers, reference=answers.reference - 10)  # a KL above its clamp
    fixed = kl_estimate(answers.logratios).clone()
    assert fixed > 0
    moving = gradient_of(lambda a: kto_loss(a, kl_estimate(a.logratios), beta=0.1), answers)
    torch.testing.assert_close(moving, gradient_of(lambda a: kto_loss(a, fixed, beta=0.1), answers))


def test_kto_pair_gradient_does_not_pass_through_the_reference_points() -> None:
    answers = random_answers(3, [2, 2, 2])
    answers = replace(answers, reference=answers.reference - 10)

    def points(a: Answers) -> tuple[torch.Tensor, torch.Tensor]:
        return kl_estimate(a.chosen(a.logratios)), kl_estimate(a.rejected(a.logratios))

    fixed = points(answers)
    assert min(fixed) > 0
    moving = gradient_of(lambda a: kto_pair_loss(a, *points(a), beta=0.1), answers)
    torch.testing.assert_close(moving, gradient_of(lambda a: kto_pair_loss(a, *fixed, beta=0.1), answers))


@pytest.mark.parametrize("name", SECTIONS)
def test_reference_matters_only_where_the_config_says_so(name: str) -> None:
    answers = random_answers(4, [3, 3])
    constants = EXAMPLES[name].model_dump()
    kl = tuple(t(*KL.get(name, ())))
    shifted = replace(answers, reference=answers.reference - t(1, 0, 0, 1, 0, 0))
    before, after = (objective_losses(a, kl, constants) for a in (answers, shifted))
    assert torch.equal(before, after) != EXAMPLES[name].uses_reference


@pytest.mark.parametrize("name", sorted(set(SECTIONS) - {"kto"}))
def test_answers_between_first_and_last_matter_only_to_listwise_objectives(name: str) -> None:
    answers = random_answers(4, [3, 3])
    constants = EXAMPLES[name].model_dump()
    kl = tuple(t(*KL.get(name, ())))
    shifted = replace(answers, logprobs=answers.logprobs - t(0, 1, 0, 0, 1, 0))
    before, after = (objective_losses(a, kl, constants) for a in (answers, shifted))
    assert torch.equal(before, after) != EXAMPLES[name].listwise


# Rules that hold for every input.


logprob = st.floats(-60, -0.01)
answer = st.tuples(logprob, logprob, st.integers(1, 20), st.floats(-5, 5), st.booleans())


@st.composite
def some_answers(draw: st.DrawFn, smallest: int = 2, largest: int = 3) -> Answers:
    counts = draw(st.lists(st.integers(smallest, largest), min_size=1, max_size=4))
    rows = draw(st.lists(answer, min_size=sum(counts), max_size=sum(counts)))
    logprobs, reference, lengths, rewards, desirable = zip(*rows, strict=True)
    return answers_of(
        t(*logprobs),
        t(*reference),
        lengths=torch.tensor(lengths),
        rewards=t(*rewards),
        desirable=torch.tensor(desirable),
        sizes=counts,
    )


pairs = some_answers(largest=2)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_case
@few_examples
@given(answers=some_answers(), data=st.data())
def test_permuting_groups_permutes_losses(case: str, answers: Answers, data: st.DataObject) -> None:
    groups = data.draw(st.permutations(range(answers.groups)))
    order = torch.cat([torch.nonzero(answers.group == g).flatten() for g in groups])
    losses = losses_of(case, answers)
    expected = losses[order] if case == "kto" else losses[torch.tensor(groups)]
    close(losses_of(case, take(answers, order)), expected)


@every_case
@few_examples
@given(answers=some_answers(), others=some_answers())
def test_a_groups_loss_does_not_depend_on_other_groups(case: str, answers: Answers, others: Answers) -> None:
    joined = {name: torch.cat([getattr(answers, name), getattr(others, name)]) for name in COLUMNS}
    both = Answers(**joined, sizes=answers.sizes + others.sizes)
    close(losses_of(case, both), torch.cat([losses_of(case, answers), losses_of(case, others)]))


@few_examples
@given(answers=some_answers())
def test_swapping_chosen_and_rejected_flips_the_margin(answers: Answers) -> None:
    other = swapped(answers)
    assert torch.equal(other.margin(other.logratios), -answers.margin(answers.logratios))


@few_examples
@given(answers=some_answers(), beta=st.floats(0.01, 1))
def test_dpo_of_swapped_answers_is_higher_by_beta_times_the_margin(answers: Answers, beta: float) -> None:
    rise = dpo_loss(swapped(answers), beta=beta) - dpo_loss(answers, beta=beta)
    close(rise, beta * answers.margin(answers.logratios))


@few_examples
@given(answers=some_answers(), flips=st.floats(0, 0.45))
def test_robust_dpo_expects_the_clean_loss_under_flipped_labels(answers: Answers, flips: float) -> None:
    kept = robust_dpo_loss(answers, beta=0.1, label_smoothing=flips)
    flipped = robust_dpo_loss(swapped(answers), beta=0.1, label_smoothing=flips)
    close((1 - flips) * kept + flips * flipped, dpo_loss(answers, beta=0.1))


@few_examples
@given(answers=pairs, beta=st.floats(0.01, 1))
def test_infonca_of_a_pair_with_a_hard_label_is_dpo(answers: Answers, beta: float) -> None:
    answers = replace(answers, rewards=t(*([1e6, -1e6] * answers.groups)))
    close(infonca_loss(answers, beta=beta, reward_temperature=1.0), dpo_loss(answers, beta=beta))


@few_examples
@given(answers=pairs, beta=st.floats(0.01, 1))
def test_nca_of_a_pair_with_a_hard_label_is_nca_pair(answers: Answers, beta: float) -> None:
    answers = replace(answers, rewards=t(*([1e6, -1e6] * answers.groups)))
    close(nca_loss(answers, beta=beta, reward_temperature=1.0), nca_pair_loss(answers, beta=beta))


@few_examples
@given(answers=pairs, beta=st.floats(0.01, 1))
def test_sppo_of_a_sure_pair_is_half_the_hard_one_with_half_the_goal(answers: Answers, beta: float) -> None:
    # The winner's P is (1/2 + 1) / 2 = 3/4 with itself among the two.
    answers = replace(answers, rewards=t(*([1e6, -1e6] * answers.groups)))
    soft = sppo_loss(answers, beta=beta, reward_temperature=1.0)
    close(soft, sppo_hard_loss(answers, beta=2 * beta) / 2)


@pytest.mark.parametrize("loss", [nca_loss, infonca_loss])
@few_examples
@given(answers=some_answers(smallest=1), constant=st.floats(-1e3, 1e3))
def test_adding_a_constant_to_all_rewards_changes_nothing(
    loss: Callable[..., torch.Tensor], answers: Answers, constant: float
) -> None:
    shifted = replace(answers, rewards=answers.rewards + constant)
    close(loss(shifted, beta=0.1, reward_temperature=0.7), loss(answers, beta=0.1, reward_temperature=0.7))


@every_case
@pytest.mark.parametrize("chosen", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("rejected", [-1e4, 0.0, 1e4])
def test_extreme_log_ratios_give_finite_losses_and_gradients(
    case: str, chosen: float, rejected: float
) -> None:
    # A log-ratio of 1e4 from a sure answer that the reference finds impossible, and the other way round.
    ratios = t(chosen, rejected, dtype=torch.float32)
    answers = answers_of(
        ratios.clamp(max=0), (-ratios).clamp(max=0), rewards=t(1e4, -1e4, dtype=torch.float32)
    )
    assert answers.logratios.tolist() == [chosen, rejected]
    assert losses_of(case, answers).isfinite().all()
    assert gradient_of(partial(losses_of, case), answers).isfinite().all()


@pytest.mark.parametrize("gap", [-1e4, 1e4])
@pytest.mark.parametrize("loss", [partial(bradley_terry_loss, margin=0.5, centering=0.01), log_exp_loss])
def test_extreme_rewards_give_finite_losses_and_gradients(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], gap: float
) -> None:
    chosen = t(gap, dtype=torch.float32).requires_grad_()
    losses = loss(chosen, t(0, dtype=torch.float32))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad is not None and chosen.grad.isfinite().all()


# KTO of one kind of answer.


@pytest.mark.parametrize("wanted", [True, False])
@few_examples
@given(
    ratios=st.lists(st.floats(-50, 50), min_size=2, max_size=6),
    kl=st.floats(0, 20),
    beta=st.floats(0.01, 0.3),
    weight=st.floats(0.2, 3),
)
def test_kto_of_one_kind_of_answer_does_what_the_paper_says(
    wanted: bool, ratios: list[float], kl: float, beta: float, weight: float
) -> None:
    count = len(ratios)
    answers = answers_of(
        t(*ratios) - 100,
        t(*[-100.0] * count),
        desirable=torch.full((count,), wanted),
        sizes=[1] * count,
    )

    def loss(a: Answers) -> torch.Tensor:
        # The other kind's weight, 99, must have no part in it.
        desirable, undesirable = (weight, 99.0) if wanted else (99.0, weight)
        return kto_loss(a, t(kl)[0], beta=beta, desirable_weight=desirable, undesirable_weight=undesirable)

    losses = loss(answers)
    assert ((losses > 0) & (losses < weight)).all()

    # Desirable answers pay less as their log-ratio rises; undesirable ones pay more.
    sign = -1 if wanted else 1
    raised = loss(replace(answers, logprobs=answers.logprobs + 1))
    assert (sign * (raised - losses) > 0).all()

    # d/dr w (1 - s(beta (r - z))) = -w beta s (1 - s).
    slopes = [sigmoid(beta * (r - kl)) * (1 - sigmoid(beta * (r - kl))) * weight * beta for r in ratios]
    gradient = gradient_of(loss, answers)
    assert (sign * gradient > 0).all()
    assert gradient.tolist() == pytest.approx([sign * slope for slope in slopes], rel=1e-6)


@few_examples
@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=8))
def test_kl_estimate_is_the_mean_but_never_negative(values: list[float]) -> None:
    logratios = t(*values).requires_grad_()
    estimate = kl_estimate(logratios)
    assert estimate.shape == ()
    assert estimate.item() == pytest.approx(max(0.0, math.fsum(values) / len(values)), rel=1e-9, abs=1e-9)
    assert estimate.item() >= 0
    assert not estimate.requires_grad


# Groups of unequal sizes.


def unequal() -> Answers:
    return answers_of(t(*[0.0] * 6), t(*[0.0] * 6), sizes=[1, 2, 3])


def test_groups_are_counted_and_log_ratios_subtracted() -> None:
    answers = replace(unequal(), logprobs=t(-1, -2, -3, -4, -5, -6), reference=t(-2, -2, -5, 0, -5, -7))
    assert answers.groups == 3
    assert answers.logratios.tolist() == [1, 0, 2, -4, 0, 1]


def test_chosen_rejected_margin_and_sum_of_unequal_groups() -> None:
    answers, values = unequal(), t(5, 2, 7, 1, 4, 9)
    assert answers.chosen(values).tolist() == [5, 2, 1]
    assert answers.rejected(values).tolist() == [5, 7, 9]
    assert answers.margin(values).tolist() == [0, -5, -8]
    assert answers.sum_by_group(values).tolist() == [5, 9, 14]


def test_chosen_and_rejected_do_not_look_at_values_or_desirability() -> None:
    answers = replace(unequal(), desirable=torch.tensor([False, True, True, False, False, True]))
    assert answers.chosen(t(1, 2, 3, 4, 5, 6)).tolist() == [1, 2, 4]
    assert answers.rejected(t(6, 5, 4, 3, 2, 1)).tolist() == [6, 4, 1]


def test_log_softmax_of_unequal_groups_by_hand() -> None:
    # Alone: log 1. Of (2, 7): minus log(e^2 + e^7). Of (1, 4, 9): minus log(e + e^4 + e^9).
    two = math.log(math.exp(2) + math.exp(7))
    three = math.log(math.e + math.exp(4) + math.exp(9))
    check(
        unequal().log_softmax_by_group(t(5, 2, 7, 1, 4, 9)),
        0,
        2 - two,
        7 - two,
        1 - three,
        4 - three,
        9 - three,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_softmax_of_values_too_large_for_exp(dtype: torch.dtype) -> None:
    # Of (1e4, 1e4 + 1): as of (0, 1). Of (-1e4, 0, 1e4): the last takes all.
    values = t(1e4, 1e4, 1e4 + 1, -1e4, 0, 1e4, dtype=dtype).requires_grad_()
    result = unequal().log_softmax_by_group(values)
    one = softplus(1)
    expected = [0, -one, 1 - one, -2e4, -1e4, 0]
    assert result.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    result.sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()


def test_log_softmax_of_very_negative_values() -> None:
    # A maximum far below zero must be shifted away as well.
    one = softplus(1)
    result = unequal().log_softmax_by_group(t(-1e4, -1e4, -1e4 + 1, -1e4, -1e4, -1e4))
    check(result, 0, -one, 1 - one, -math.log(3), -math.log(3), -math.log(3))


# The config's objectives and the table of functions.


def test_config_and_table_name_the_same_objectives() -> None:
    assert set(SECTIONS) == set(OBJECTIVES)
    assert len(SECTIONS) == len(get_args(get_args(Objective)[0]))


def test_every_objective_is_tested_here() -> None:
    assert {name for name, _ in CASES.values()} == set(OBJECTIVES)


@pytest.mark.parametrize("name", SECTIONS)
def test_each_objective_runs_with_its_default_constants(name: str) -> None:
    section = EXAMPLES[name]
    answers = random_answers(5, [3, 2, 3] if section.listwise else [2, 2, 2])
    count = {"none": 0, "batch": 2, "mismatched": 1}[section.kl]
    kl = tuple(torch.tensor(0.2, dtype=torch.float64) for _ in range(count))
    constants = section.model_dump()
    losses = objective_losses(answers, kl, constants)
    assert losses.shape == ((len(answers.logprobs),) if name == "kto" else (answers.groups,))
    assert losses.isfinite().all()
    # Training does something: a step against the gradient lowers the loss.
    run = lambda a: objective_losses(a, kl, constants)
    moved = replace(answers, logprobs=answers.logprobs - 1e-3 * gradient_of(run, answers))
    assert run(moved).sum() < losses.sum()
