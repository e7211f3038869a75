"""Chunked logprobs equal the plain log-softmax, forward and backward."""

from __future__ import annotations

import pytest
import torch

from ultramed_rl.learning.logprobs import sum_by_row, token_logprobs


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_equals_log_softmax_with_gradients(chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    head = torch.nn.Linear(5, 11, bias=False)
    targets = torch.randint(11, (7,))

    expected = torch.log_softmax(head(hidden), -1)[torch.arange(7), targets]
    grads = torch.autograd.grad(expected.square().sum(), [hidden, head.weight])
    found = token_logprobs(hidden, targets, head, chunk=chunk)
    found_grads = torch.autograd.grad(found.square().sum(), [hidden, head.weight])

    torch.testing.assert_close(found, expected)
    for a, b in zip(found_grads, grads, strict=True):
        torch.testing.assert_close(a, b)


def test_no_tokens_give_an_empty_result() -> None:
    found = token_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), torch.nn.Linear(5, 3))
    assert found.shape == (0,)


def test_sum_by_row_keeps_empty_rows() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    assert sum_by_row(torch.tensor([1.0, 2.0, 4.0]), mask).tolist() == [3.0, 0.0, 4.0]
