"""Ranks that share micro-batches learn what one learns: losses, logprobs, gradients, weights, under every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from tests.integration.sequence_parallel import CASES, compare


def test_ranks_that_share_rows_learn_what_one_learns(tmp_path: Path) -> None:
    with mock.patch.dict("os.environ", {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}):
        rows, replicas = compare(tmp_path)
    assert len(rows) == 3 * sum(map(len, CASES.values())) and len(replicas) == 8
    for case, stage, sharing, apart in rows:
        name = f"{case}, stage {stage}, {sharing} share"
        assert apart["flops"] == 0.0, name
        assert max(apart["logprob"], apart["gradient"]) < 1e-5, name
        # After a step: Adam divides by the gradient's size, and where that is near zero, rounding decides a sign.
        assert max(apart["loss"], apart["grad_norm"]) < 5e-4, name
        assert apart["weight"] < 1e-2, name
    assert max(replicas.values()) < 1e-5
