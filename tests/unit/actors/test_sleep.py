"""An engine that leaves the GPU and comes back: never half of it, never twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.weight_sync import WeightBucket
from ultramed_rl.actors.work import WorkBatch


class Memory:
    """vLLM's rules: what is mapped cannot be mapped again, and an engine with anything asleep doesn't go to sleep."""

    def __init__(self) -> None:
        self.here = {"weights", "kv_cache"}
        self.most: list[set[str]] = []

    def sleep(self, level: int) -> None:
        assert level == 1, "the weights would be lost"
        if self.here == {"weights", "kv_cache"}:
            self.here = set()

    def wake_up(self, tags: list[str]) -> None:
        assert not self.here & set(tags), f"{tags} are mapped already"
        self.here |= set(tags)


def worker(sleeps: bool = True) -> tuple[RolloutWorker, Memory]:
    made, memory = RolloutWorker(0), Memory()
    fake: Any = made
    fake.arguments, fake.llm = SimpleNamespace(sleeps=sleeps), memory
    return made, memory


def test_an_update_brings_back_the_weights_alone_and_sleep_after_it_is_whole() -> None:
    engine, memory = worker()
    engine.offload()
    assert memory.here == set()
    engine.reload_weights()
    assert memory.here == {"weights"}, "the cache is there beside the policy"
    engine.offload()
    engine.offload()
    assert memory.here == set(), "half of the engine stayed on the GPU"
    engine.reload_weights()
    engine.reload()
    assert memory.here == {"weights", "kv_cache"}


def test_a_replaced_engine_that_never_slept_is_not_woken() -> None:
    engine, memory = worker()
    engine.reload()
    engine.reload_weights()
    assert memory.here == {"weights", "kv_cache"}


def test_on_a_device_of_its_own_nothing_moves() -> None:
    engine, memory = worker(sleeps=False)
    engine.offload()
    engine.reload()
    assert memory.here == {"weights", "kv_cache"}


def test_an_update_whose_sender_died_is_closed_before_the_next() -> None:
    engine, _ = worker()
    calls: list[str] = []
    fake: Any = engine
    fake.llm = SimpleNamespace(
        start_weight_update=lambda: calls.append("start"),
        update_weights=lambda request: calls.append(f"take {request['update_info']}"),
        finish_weight_update=lambda version: calls.append(f"finish {version}"),
        reset_prefix_cache=lambda: calls.append("reset"),
    )
    begin, end = WeightBucket({"part": 0}, 8, last=False), WeightBucket({"part": 1}, 8, first=False)
    versions = []
    for bucket in (begin, begin, end, begin):
        engine.pull_weights(bucket, 1)
        versions.append(engine.version())
    begun = ["start", "take {'part': 0}"]
    ended = ["take {'part': 1}", "finish 1", "reset"]
    assert calls == [*begun, "finish None", *begun, *ended, *begun]
    assert versions == [-1, -1, 1, -1]


def test_an_engine_in_the_middle_of_an_update_answers_nothing() -> None:
    engine, _ = worker()
    assert engine.version() == -1
    with pytest.raises(AssertionError, match="policy_version=-1"):
        engine.work(WorkBatch())
