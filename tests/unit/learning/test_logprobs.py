"""Chunked logprobs equal the plain log-softmax, forward and backward, and never hold the whole block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ultramed_rl.learning import costs
from ultramed_rl.learning.logprobs import token_logprobs

TOKENS, WIDTH, VOCAB = 23, 5, 11


def make_problem(
    seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    """Hidden states, targets and a head with logits of a few units."""
    torch.manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH).to(dtype).requires_grad_()
    head = nn.Linear(WIDTH, VOCAB, bias=False)
    nn.init.normal_(head.weight)
    return hidden, torch.randint(VOCAB, (TOKENS,)), head.to(dtype)


def reference(
    hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear, weights: torch.Tensor
) -> list[torch.Tensor]:
    """Logprobs and the gradients of their weighted sum, by plain autograd in float64."""
    states = hidden.detach().double().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    values = torch.log_softmax(states @ weight.T, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return [values.detach(), *torch.autograd.grad((values * weights.double()).sum(), [states, weight])]


class Recorder(nn.Module):
    """A head that keeps the number of rows of each of its calls."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head, self.rows = head, list[int]()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.rows.append(states.shape[0])
        return self.head(states)


@given(st.integers(1, TOKENS + 5), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_any_number_of_chunks_equals_log_softmax_with_gradients(chunks: int, seed: int) -> None:
    hidden, targets, head = make_problem(seed)
    weights = torch.randn(TOKENS)
    found = token_logprobs(hidden, targets, head, VOCAB, chunks)
    grads = torch.autograd.grad((found * weights).sum(), [hidden, head.weight])

    plain = torch.log_softmax(head(hidden), -1)[torch.arange(TOKENS), targets]
    torch.testing.assert_close(found, plain, atol=2e-6, rtol=0.0)
    for a, b in zip([found, *grads], reference(hidden, targets, head, weights), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 4])
def test_collisions_are_those_of_the_softmax_and_carry_no_gradient(chunks: int) -> None:
    hidden, targets, head = make_problem()
    found = token_logprobs(hidden, targets, head, VOCAB, chunks, collisions=True)
    plain = token_logprobs(hidden, targets, head, VOCAB, chunks)
    assert torch.equal(found[0], plain) and found.shape == (2, TOKENS)
    expected = torch.softmax(head(hidden), -1).square().sum(-1).log()
    torch.testing.assert_close(found[1], expected)
    grads = [torch.autograd.grad(one.sum(), hidden, retain_graph=True)[0] for one in (found, plain)]
    torch.testing.assert_close(*grads)


def test_the_default_chunk_gives_the_same() -> None:
    hidden, targets, head = make_problem()
    torch.testing.assert_close(
        token_logprobs(hidden, targets, head, VOCAB), token_logprobs(hidden, targets, head, VOCAB, chunks=6)
    )


def test_gradients_equal_finite_differences() -> None:
    """Central differences of the float64 formula: no autograd on the other side."""
    hidden, targets, head = make_problem()
    weights = torch.randn(TOKENS)
    (grad,) = torch.autograd.grad((token_logprobs(hidden, targets, head, VOCAB, 4) * weights).sum(), hidden)

    def value(states: torch.Tensor) -> torch.Tensor:
        logits = states @ head.weight.detach().double().T
        return ((logits[torch.arange(TOKENS), targets] - logits.logsumexp(-1)) * weights.double()).sum()

    base, step = hidden.detach().double(), 1e-5
    for row, column in [(0, 0), (3, 1), (4, 4), (22, 2)]:
        shift = torch.zeros_like(base)
        shift[row, column] = step
        slope = (value(base + shift) - value(base - shift)) / (2 * step)
        assert float(grad[row, column]) == pytest.approx(float(slope), abs=1e-5)


def test_a_head_behind_frozen_states_gets_its_gradient() -> None:
    hidden, targets, head = make_problem()
    frozen, weights = hidden.detach(), torch.randn(TOKENS)
    found = token_logprobs(frozen, targets, head, VOCAB, 4)
    (grad,) = torch.autograd.grad((found * weights).sum(), head.weight)
    expected = reference(hidden, targets, head, weights)[2]
    torch.testing.assert_close(grad.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_too_long_to_be_worked_on_together_give_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 2**19).to(dtype).requires_grad_(), torch.tensor([7, 0, 2**19 - 1, 5, 5])
    weights = torch.randn(5)
    found = token_logprobs(logits, targets, lambda states: states * 1.0, 2**19, 2)
    (grad,) = torch.autograd.grad((found * weights).sum(), logits)
    wide = logits.detach().double().requires_grad_()
    plain = torch.log_softmax(wide, -1)[torch.arange(5), targets]
    (wanted,) = torch.autograd.grad((plain * weights.double()).sum(), wide)
    torch.testing.assert_close(found.double(), plain, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(grad, wanted.to(dtype), atol=1e-8, rtol=2 * torch.finfo(dtype).eps)


def test_a_second_backward_is_refused() -> None:
    """The gradient has taken the logits' place: a graph that is kept has them no more."""
    hidden, targets, head = make_problem()
    total = token_logprobs(hidden, targets, head, VOCAB).sum()
    torch.autograd.grad(total, [hidden, head.weight], retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, [hidden, head.weight])


def test_the_logits_of_a_caller_stay_as_they_are() -> None:
    hidden, targets, head = make_problem()
    kept: list[torch.Tensor] = []

    def keep(states: torch.Tensor) -> torch.Tensor:
        kept.append(head(states))
        return kept[-1]

    with torch.no_grad():
        token_logprobs(hidden, targets, keep, VOCAB)
    torch.testing.assert_close(kept[0], head(hidden).detach(), atol=0.0, rtol=0.0)


def test_large_logits_stay_finite() -> None:
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[1e4], [0.0], [-1e4]])
    hidden = torch.ones(3, 1, requires_grad=True)
    found = token_logprobs(hidden, torch.tensor([0, 1, 2]), head, 3)
    assert found.tolist() == [0.0, -1e4, -2e4]
    (grad,) = torch.autograd.grad(found.sum(), hidden)
    assert grad.flatten().tolist() == [0.0, -1e4, -2e4]  # weight of the target minus weight of the first


def test_bfloat16_states_give_float32_logprobs_close_to_float32s() -> None:
    """Logits below 10 are rounded to 8 bits (2^-9 relative: 0.02), twice in a difference: 0.04.

    The softmax itself is float32: beyond the rounding of the logits nothing is lost.
    """
    hidden, targets, head = make_problem(dtype=torch.bfloat16)
    found = token_logprobs(hidden, targets, head, VOCAB, 4)
    assert found.dtype == torch.float32

    rounded = torch.log_softmax(head(hidden).float(), -1)[torch.arange(TOKENS), targets]
    torch.testing.assert_close(found, rounded, atol=2e-6, rtol=0.0)
    exact, hidden_grad, weight_grad = reference(hidden, targets, head, torch.ones(TOKENS))
    assert float((hidden.double() @ head.weight.double().T).detach().abs().max()) < 10
    torch.testing.assert_close(found.double(), exact, atol=0.04, rtol=0.0)
    grads = torch.autograd.grad(found.sum(), [hidden, head.weight])
    for grad, expected in zip(grads, (hidden_grad, weight_grad), strict=True):
        assert grad.dtype == torch.bfloat16
        # A gradient entry sums tens of terms that are each rounded to 8 bits.
        assert float((grad.double() - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("chunks", [1, 6, 23])
def test_the_head_sees_one_chunk_at_a_time(chunks: int) -> None:
    hidden, targets, head = make_problem()
    recorder = Recorder(head)
    found = token_logprobs(hidden, targets, recorder, VOCAB, chunks)
    largest = -(-TOKENS // chunks)
    assert max(recorder.rows) == largest and sum(recorder.rows) == TOKENS and len(recorder.rows) == chunks
    found.sum().backward()
    # In backward each chunk but the last is computed once more, alone.
    assert max(recorder.rows) == largest and sum(recorder.rows) == 2 * TOKENS - TOKENS // chunks


def test_the_last_chunks_logits_alone_are_kept_for_backward() -> None:
    hidden, targets, head = make_problem()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        token_logprobs(hidden, targets, head, VOCAB, chunks=6)
    blocks = {tuple(shape) for shape in kept if len(shape) > 1 and shape[-1] == VOCAB}
    assert blocks - {(WIDTH, VOCAB)} == {(TOKENS // 6, VOCAB)}  # the former is the head's weight


def test_without_gradients_each_chunk_is_computed_once() -> None:
    hidden, targets, head = make_problem()
    recorder = Recorder(head)
    with torch.no_grad():
        found = token_logprobs(hidden, targets, recorder, VOCAB, chunks=6)
    assert recorder.rows == [4, 4, 4, 4, 4, 3] and not found.requires_grad


def test_the_default_chunk_shrinks_with_the_vocabulary_down_to_64_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = Recorder(nn.Linear(1, 3))
    states, targets = torch.zeros(300, 1), torch.zeros(300, dtype=torch.long)
    monkeypatch.setitem(costs.LOGITS_AT_ONCE, "cpu", 1000)
    # 300 rows in equal parts of at most 1000 / vocabulary rows, or 64
    for vocab, largest in [(10, 100), (5, 150), (11, 75), (500, 60)]:
        head.rows.clear()
        token_logprobs(states, targets, head, vocab)
        assert max(head.rows) == largest


def test_no_tokens_give_an_empty_result() -> None:
    found = token_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), nn.Linear(5, 3), 3)
    assert found.shape == (0,) and found.dtype == torch.float32
