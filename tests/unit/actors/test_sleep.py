"""An engine that leaves the GPU and comes back: never half of it, never twice."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.weight_sync import WeightBucket
from ultramed_rl.actors.work import WorkBatch


class Memory:
    """vLLM's rules: what is mapped cannot be mapped again, and an engine with anything asleep doesn't go to sleep."""

    def __init__(self) -> None:
        self.here = {"weights", "kv_cache"}
        self.levels: list[int] = []

    def sleep(self, level: int) -> None:
        self.levels.append(level)
        if self.here == {"weights", "kv_cache"}:
            self.here = set()

    def wake_up(self, tags: list[str]) -> None:
        assert not self.here & set(tags), f"{tags} are mapped already"
        self.here |= set(tags)


def worker(sleep_level: int = 1, memory: Memory | None = None) -> tuple[RolloutWorker, Memory]:
    made, memory = RolloutWorker(0), memory or Memory()
    fake: Any = made
    fake.arguments, fake.llm = SimpleNamespace(sleep_level=sleep_level), memory
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
    assert memory.here == {"weights", "kv_cache"} and set(memory.levels) == {1}


def test_a_replaced_engine_that_never_slept_is_not_woken() -> None:
    engine, memory = worker()
    engine.reload()
    engine.reload_weights()
    assert memory.here == {"weights", "kv_cache"}


def test_on_a_device_of_its_own_nothing_moves() -> None:
    engine, memory = worker(sleep_level=0)
    engine.offload()
    engine.reload()
    assert memory.here == {"weights", "kv_cache"} and not memory.levels


class Rotary(nn.Module):
    """A model of one weight, and of a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3, bias=False)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]), persistent=False)


class Garbage(Memory):
    """vLLM's own worker of a GPU, under which memory that comes back holds nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.v1.worker import gpu_worker

        super().__init__()
        self.model, self.sent = Rotary(), True
        gpu = SimpleNamespace(synchronize=lambda: None, get_memory_info=lambda: (0, 0))
        monkeypatch.setattr(gpu_worker.torch, "accelerator", gpu)
        backend = SimpleNamespace(suspend=self.suspend, resume=lambda tags: None)
        own: dict[str, Any] = {
            "model_runner": SimpleNamespace(model=self.model),
            "_sleep_saved_draft_buffers": {},
        }
        own |= {
            "_sleep_saved_buffers": {},
            "get_draft_model": lambda: None,
            "synchronize_device": lambda: None,
        }
        self.state, self.theirs = (
            SimpleNamespace(_get_sleep_mode_backend=lambda: backend, **own),
            gpu_worker.Worker,
        )

    def suspend(self, level: int) -> None:
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data.fill_(12345.0)

    def sleep(self, level: int) -> None:
        super().sleep(level)
        self.theirs.sleep(self.state, level)

    def wake_up(self, tags: list[str]) -> None:
        super().wake_up(tags)
        self.theirs.wake_up(self.state, tags)

    def apply_model(self, function: Callable[[nn.Module], Any]) -> list[Any]:
        return [function(self.model)]

    def start_weight_update(self) -> None:
        """Nothing to begin."""

    def update_weights(self, request: Any) -> None:
        if self.sent:
            self.model.layer.weight.data.fill_(7.0)

    def finish_weight_update(self, version: str) -> None:
        """Nothing to end."""

    def reset_prefix_cache(self) -> None:
        """Nothing is cached."""


def test_weights_that_an_update_brings_are_forgotten_and_buffers_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Garbage(monkeypatch)
    engine, _ = worker(2, memory)
    whole = WeightBucket({}, 8)
    for version in (1, 2):
        engine.pull_weights(whole, version)
        engine.offload()
        assert engine.version() == -1 and memory.here == set()
        engine.reload_weights()
        assert memory.model.layer.weight.isnan().all()
        assert memory.model.frequencies.tolist() == pytest.approx([1.0, 0.1])
        engine.pull_weights(whole, version)
        assert engine.version() == version and (memory.model.layer.weight == 7.0).all()
        engine.reload()
    assert set(memory.levels) == {2}


def test_a_weight_that_no_update_brings_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Garbage(monkeypatch)
    engine, _ = worker(2, memory)
    engine.offload()
    engine.reload_weights()
    memory.sent = False
    with pytest.raises(AssertionError, match=r"layer\.weight"):
        engine.pull_weights(WeightBucket({}, 8), 1)
    assert engine.version() == -1


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
