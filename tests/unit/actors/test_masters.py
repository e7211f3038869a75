"""Masters on disk, and the share of an update that shows in bfloat16, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.actors import engine_state as module
from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.engine_state import EngineState, sample_of, surviving
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.rounds import Optimization

GAP = 2.0**-7  # between bfloat16's numbers from 1 to 2


def engine_of(precision: str, stage: int, **optimizer: Any) -> EngineState:
    engine = EngineState.__new__(EngineState)
    engine.spec = EngineSpec(
        "cpu",
        precision,
        TrainerGroup(zero_stage=stage),
        Optimization(gradient_checkpointing=False, max_skipped_steps=0),
    )
    engine.backend = SimpleNamespace(optimizer=SimpleNamespace(**optimizer))
    return engine


def test_what_rounds_to_the_old_weight_does_not_show() -> None:
    before, after = torch.ones(2), torch.tensor([1 + GAP, 1 + GAP / 8])
    assert surviving(before, after).tolist() == [GAP**2, GAP**2 + (GAP / 8) ** 2]
    assert surviving(before, before).tolist() == [0.0, 0.0]


def test_what_one_round_hides_a_later_one_shows() -> None:
    """Of three steps of 3/8 of a gap the first is hidden, the second brings one gap, the third none: 9/8 in all."""
    weights = torch.tensor([[1.0 + k * 3 / 8 * GAP] for k in range(4)])
    shares = [float(shown / whole) for shown, whole in map(surviving, weights[:-1], weights[1:])]
    assert shares == pytest.approx([0.0, 8 / 3, 0.0])


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40))
def test_between_weights_that_bfloat16_holds_all_shows(values: list[float]) -> None:
    weights = torch.tensor(values).bfloat16().float()
    shown, whole = surviving(weights[:-1], weights[1:]).tolist()
    assert shown == whole


def test_a_sample_is_all_of_few_and_an_odd_distance_apart_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.arange(6.0).reshape(2, 3), torch.arange(10.0, 15.0)]
    assert sample_of(parts).tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14]
    monkeypatch.setattr(module, "_SAMPLE", 5)  # 11 of 5: every third
    assert sample_of(parts).tolist() == [0, 3, 10, 13]


def test_masters_are_where_each_stage_keeps_them() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    kept = {
        "fp32_groups": [[one], [two]],
        "single_partition_of_fp32_groups": [one],
        "fp32_partitioned_groups_flat": [two],
    }
    assert engine_of("float32", 2, **kept).masters() == []
    found = [engine_of("bfloat16", stage, **kept).masters() for stage in range(4)]
    assert found == [[one, two], [one], [one], [two]]


def test_masters_come_back_bit_for_bit_and_only_into_their_like(tmp_path: Path, one_rank: None) -> None:
    masters, others = [torch.randn(3, 5), torch.randn(7)], [torch.zeros(3, 5), torch.zeros(7)]
    engine_of("bfloat16", 0, fp32_groups=[masters]).save_state(str(tmp_path), moments=False)
    engine_of("bfloat16", 0, fp32_groups=[others]).load_state(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(masters, others, strict=True))
    for wrong in ([torch.zeros(3, 5)], [torch.zeros(5, 3), torch.zeros(7)]):
        with pytest.raises(ValueError, match=r"masters-00000\.safetensors"):
            engine_of("bfloat16", 0, fp32_groups=[wrong]).load_state(str(tmp_path))


def test_in_float32_all_of_an_update_survives() -> None:
    assert engine_of("float32", 0).update_survives() == 1.0


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
