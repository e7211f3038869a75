"""Exactness on a GPU: packed varlen attention, its gradients, and a step that doesn't wait for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.exactness import FAMILIES, compare
from benchmarks.gpu_parts import Shape, random_policy, step_of, train
from benchmarks.plain_rank import plain_rank
from ultramed_rl.actors.tasks import Sums
from ultramed_rl.actors.trainer import TrainWorker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda sees no NVIDIA GPU"),
]
SMALL = Shape(
    "llama",
    dict(
        vocab_size=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=False,
    ),
    pack=4096, prompt=200, answer=300,
)  # fmt: skip


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_are_the_separate_sequences(name: str, precision: torch.dtype) -> None:
    for what, distance in compare(*FAMILIES[name], "cuda", precision).items():
        assert distance.is_rounding, (what, distance)


def test_a_step_waits_for_nothing_before_its_end() -> None:
    """tests/fake_cuda says so of every path; here the driver's own watch says it of one."""
    worker: Any = plain_rank(TrainWorker, random_policy(SMALL, "cuda", "bfloat16"), "cuda", "bfloat16")
    training = step_of(worker, SMALL)
    batch = range(training.batch_size)
    micro_batches = worker._shard(worker.task.lengths, batch, training.micro_batch_tokens)

    def learn() -> None:
        for loss in worker.task.losses(batch, micro_batches, Sums(worker.task.sums, "cuda"), True):
            loss.backward()

    learn()  # what is done once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        learn()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_rank_trains_and_stays_within_its_plan() -> None:
    figures = train(SMALL, "cuda", 0.0)
    assert float(figures["tokens/s"]) > 0
    assert 0 < float(figures["peak GiB"]) < 1.5 * float(figures["planned GiB"])
