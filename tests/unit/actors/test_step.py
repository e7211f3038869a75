"""An optimizer step over real tasks and a tiny model, without DeepSpeed: how often it waits for the device, what it
adds up, and what a number that isn't finite does to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.plain_rank import PlainBackend, plain_rank
from tests.tiny import make_policy, make_reward
from ultramed_rl.actors.engine import Engine, NonFiniteError
from ultramed_rl.actors.tasks import ImitationTask, PreferenceTask, RankingTask, Sums
from ultramed_rl.actors.trainer import TrainWorker
from ultramed_rl.config.objectives import DPO, KTO, NCA, ORPO, KTOPair
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.config.stages import BradleyTerry
from ultramed_rl.learning.preference_data import PreferenceSet
from ultramed_rl.models.load import load_policy, load_reward, model_shape
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, TokenizedChat

aten = torch.ops.aten
_READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.is_nonzero,
    aten._unique2,
}


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: a value read, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.paused = 0, False

    def add(self, count: int = 1) -> None:
        self.count += 0 if self.paused else count

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if function.overloadpacket in (aten.index, aten.index_put) else ()
        self.add(
            function.overloadpacket in _READS or any(m is not None and m.dtype == torch.bool for m in masks)
        )
        return function(*args, **(kwargs or {}))


class Backend(PlainBackend):
    """The optimizer's own reads aren't counted."""

    reads: Reads

    def step(self) -> None:
        self.reads.paused = True
        super().step()
        self.reads.paused = False


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("models")
    make_policy(root / "policy")
    make_reward(root / "reward")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield root
    dist.destroy_process_group()


def group(index: int, answers: int = 2, kind: str = "exam") -> PreferenceGroup:
    """Answers of 3, 4, ... tokens; one of them is the data's own, that no engine sampled."""
    completions = tuple(
        Completion(
            f"p{index}", k, "a", tuple(range(10 + 9 * k + index, 13 + 10 * k + index)),
            "reference" if k == 1 and index == 0 else "stop", -20.0 - k, 0,
        )
        for k in range(answers)
    )  # fmt: skip
    prompt = Prompt(f"p{index}", (), (1, 50 + index, 51, 2), kind=kind)
    return PreferenceGroup(prompt, completions, tuple(float(answers - k) for k in range(answers)))


def task_of(name: str, engine: Engine) -> Any:
    shape = model_shape(engine.module.lm)
    if name == "sft":
        chats = [TokenizedChat(f"c{i}", tuple(range(3, 14)), (False,) * 5 + (True,) * 6) for i in range(6)]
        return ImitationTask(engine, shape, chats)
    if name == "reward":
        groups = [group(i, 3, "exam" if i % 2 else "notes") for i in range(6)]
        return RankingTask(engine, shape, groups, BradleyTerry(margin="score_difference"))
    objective = {"dpo": DPO(), "kto": KTO(), "kto_pair": KTOPair(), "nca": NCA(), "orpo": ORPO(beta=0.1)}[
        name
    ]
    answers = {"nca": 3, "kto": 1}.get(name, 2)
    groups = [group(i, answers) for i in range(6)]
    references = None
    if objective.uses_reference:
        references = [
            ReferenceLogprobs(g.group_id, tuple(-15.0 - 4 * k for k in range(answers)), -21.0) for g in groups
        ]
    return PreferenceTask(engine, shape, PreferenceSet.at_hand(groups, references, 64), objective)


@contextmanager
def worker_of(models: Path, name: str) -> Iterator[tuple[Any, Reads]]:
    """A training rank with its task, and the reads of what is done within."""
    module: Any = load_reward(str(models / "reward"), "float32") if name == "reward" else None
    module = module or load_policy(str(models / "policy"), "float32")
    reads = Reads()
    worker = plain_rank(TrainWorker, module, "cpu", "float32")
    engine = worker.engine
    engine.backend = Backend(module, 1.0)
    engine.backend.reads = reads
    worker.task = task_of(name, engine)
    tolist = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        reads.add()
        reads.paused, before = True, reads.paused
        found = tolist(tensor)
        reads.paused = before
        return found

    with pytest.MonkeyPatch.context() as patch, reads:
        patch.setattr(torch.Tensor, "tolist", counted)
        yield worker, reads


TASKS = ["dpo", "kto", "kto_pair", "nca", "orpo", "sft", "reward"]


@pytest.mark.parametrize("name", TASKS)
def test_a_step_reads_the_device_once(models: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And ranks meet once; before that for KTO's reference points."""
    with worker_of(models, name) as (worker, reads):
        meetings: list[torch.Tensor] = []
        reduce = dist.all_reduce
        monkeypatch.setattr(dist, "all_reduce", lambda x, **kwargs: meetings.append(x) or reduce(x, **kwargs))
        longest = max(worker.task.lengths)
        micro_batches = worker._shard(worker.task.lengths, range(6), 2 * longest)
        assert len(micro_batches) == 3
        worker._step(range(6), 2 * longest, 1e-3, first=True)
        assert reads.count == 1
        assert len(meetings) == 1 + int(name in ("kto", "kto_pair"))


# -- what isn't finite ---------------------------------------------------------------------------------------


def losses_of(module: Any, kinds: Sequence[str]) -> Iterator[torch.Tensor]:
    """Losses made by hand out of the sum of all weights."""
    made: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "good": lambda x: x * 0.01,
        "nan": lambda x: x * math.nan,
        "infinite": lambda x: x + math.inf,
        # 0 * inf in the backward pass, whatever becomes of the loss.
        "nan in activations": lambda x: (x * math.inf - x * math.inf).exp(),
        # An infinite slope at zero, and a finite value.
        "infinite slope": lambda x: (x - x.detach()).sqrt(),
    }
    for kind in kinds:
        yield made[kind](sum((p.sum() for p in module.parameters()), torch.zeros(())))


@pytest.mark.parametrize("bad", ["nan", "infinite", "nan in activations"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_moves_nothing_and_holds_up_nobody(
    models: Path, bad: str, place: int
) -> None:
    with worker_of(models, "dpo") as (worker, _):
        engine = worker.engine
        before = [p.clone() for p in engine.module.parameters()]
        kinds = tuple(bad if k == place else "good" for k in range(3))
        passed: list[bool] = []
        engine.backend.set_gradient_accumulation_boundary = passed.append
        with pytest.raises(NonFiniteError, match="p1.*p2"):
            engine.step(losses_of(engine.module, kinds), 3, 1e-3, ["p1", "p2"], Sums(("loss",)))
        assert passed == [False, False, True], "every rank makes every backward pass"
        assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
        assert not engine.backend.optimizer.state and engine.skipped_steps == 0


def test_a_gradient_that_is_not_finite_skips_its_step_as_often_as_allowed(models: Path) -> None:
    with worker_of(models, "dpo") as (worker, _):
        engine = worker.engine
        engine.spec = replace(engine.spec, training=Optimization(max_skipped_steps=1))

        def step(*kinds: str) -> tuple[float, dict[str, float]]:
            sums = Sums(("loss",))
            sums.add(loss=2.5)
            return engine.step(losses_of(engine.module, kinds), len(kinds), 1e-3, ["p1"], sums)

        before = [p.clone() for p in engine.module.parameters()]
        norm, totals = step("good", "infinite slope")
        assert math.isnan(norm) and totals == {"loss": 2.5} and engine.skipped_steps == 1
        assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
        # d(0.01 * sum) / dw = 0.01 for each of n weights.
        norm, _ = step("good")
        count = sum(p.numel() for p in before)
        assert norm == pytest.approx(0.01 * math.sqrt(count), rel=1e-4)
        assert all(not torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
        with pytest.raises(NonFiniteError, match="max_skipped_steps=1"):
            step("infinite slope")
