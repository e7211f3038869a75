"""Each way to train or score on a fake GPU, in a process of its own: python -m tests.fake_cuda.steps GROUP

Prints a line of JSON a case: its name, the error or null, and how often the host waited for the device and where.
"""

from __future__ import annotations

from tests.fake_cuda import device

if __name__ == "__main__":
    device.load()

import json
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu_parts import train
from benchmarks.plain_rank import PlainBackend, plain_rank
from tests.benchmarks.shapes import TINY
from tests.unit.models.test_attention import PACKED, PADDED, make_config, randomise
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.scorer import ReferenceWorker, RewardWorker
from ultramed_rl.actors.trainer import RewardTrainWorker, TrainWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.config.models import LoRA
from ultramed_rl.config.objectives import DPO, Objective
from ultramed_rl.config.rounds import Training
from ultramed_rl.config.stages import BradleyTerry, LogExp
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.load import load_policy, load_reward
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, TokenizedChat

# What a step reads at its end: sums, no loss that isn't finite, a gradient of norm 1.
TOTALS = {"actors/engine.py:Engine.step": lambda count: [1.0] * (count - 2) + [0.0, 1.0]}


def checkpoint(kind: str, changes: dict[str, Any], *, classifier: bool = False) -> str:
    """A random model on disk."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = tempfile.mkdtemp(dir=ROOT)
    labels = {"num_labels": 1} if classifier else {}
    factory = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    model = factory.from_config(make_config(kind, changes, **labels))
    randomise(model)
    model.save_pretrained(folder)
    return folder


def groups(answers: int) -> list[PreferenceGroup]:
    """Three prompts; the first is the longest, so that the rank that has it alone also has an empty pass."""
    made = []
    for index, length in enumerate((9, 4, 3)):
        completions = tuple(
            Completion(f"p{index}", k, "", tuple(range(5 + k, 11 + 2 * k)), "stop", -20.0, 0)
            for k in range(answers)
        )
        prompt = Prompt(f"p{index}", (), tuple(range(20, 20 + length)), kind="exam" if index else "notes")
        made.append(PreferenceGroup(prompt, completions, tuple(float(answers - k) for k in range(answers))))
    return made


# -- steps -------------------------------------------------------------------------------------------------


class CheckedBackend(PlainBackend):
    """Every trained weight has a gradient beside it, in the type in which gradients are added up."""

    def step(self) -> None:
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                # A mixture's router may have left an expert out; what is fused has them all.
                assert parameter.grad is not None, f"{name} has no gradient"
                assert parameter.grad.device == parameter.device, name
                assert parameter.grad.dtype == torch.float32, name
        super().step()


def rank_of(kind: type[TrainWorker], module: Any) -> Any:
    """The first of two ranks, which meets nobody: the group is fake too."""
    worker = plain_rank(kind, device.move(module), "cuda", "bfloat16", checkpointing=True)
    worker.world_size = 2
    engine = worker.engine
    engine.backend = CheckedBackend(module, 1.0)
    worker.peak_flops = 1e12
    return worker


def take_step(worker: Any) -> None:
    budget = max(worker.task.lengths)
    training = Training(learning_rate=1e-6, batch_size=3, micro_batch_tokens=budget)
    shard = worker._shard(worker.task.lengths, range(3), budget)
    assert len(shard) == 2 and any(micro.filler for micro in shard), shard
    (metrics,) = worker.train(training, TrainingPlace(0, 1, 0))
    assert metrics["samples"] == 3 and metrics["flops"] > 0


def prefer(
    objective: Any, kind: str = "llama", changes: Any = (), lora: LoRA | None = None
) -> Callable[[], None]:
    path = checkpoint(kind, dict(changes))
    module = load_policy(path, "bfloat16", lora=lora)

    def work() -> None:
        worker = rank_of(PolicyWorker, module)
        answers = groups(3 if objective.listwise else 2)
        references = [ReferenceLogprobs(g.group_id, (-9.0,) * len(g.completions), -8.0) for g in answers]
        worker.learn_preferences(answers, references if objective.uses_reference else None, objective, 64)
        take_step(worker)

    return work


def imitate(kind: str = "llama", changes: Any = ()) -> Callable[[], None]:
    module = load_policy(checkpoint(kind, dict(changes)), "bfloat16")

    def work() -> None:
        worker = rank_of(PolicyWorker, module)
        sizes = (30, 20, 19)
        chats = [TokenizedChat(f"c{n}", tuple(range(n)), (False,) * 5 + (True,) * (n - 5)) for n in sizes]
        worker.learn_chats(chats, chats)
        take_step(worker)
        list(worker.evaluate(40))

    return work


def rank_answers(objective: Any, kind: str = "llama", changes: Any = ()) -> Callable[[], None]:
    module = load_reward(checkpoint(kind, dict(changes), classifier=True), "bfloat16")

    def work() -> None:
        worker = rank_of(RewardTrainWorker, module)
        worker.learn_ranking(groups(3), objective, 64)
        take_step(worker)

    return work


def score(kind: type[Any], changes: Any = (), family: str = "llama") -> Callable[[], None]:
    """A replica's numbers of all answers: as many passes as groups."""
    classifier = kind is RewardWorker
    path = checkpoint(family, dict(changes), classifier=classifier)
    module = (load_reward if classifier else load_policy)(path, "bfloat16")

    def work() -> None:
        worker = kind(0, "cuda", "bfloat16", 1)
        with patch.object(type(module), "to", lambda module, _: device.move(module)):
            worker._adopt(module)
        assert len(list(worker.score([AnswerGroup.of(g) for g in groups(1)]))) == 3

    return work


def score_own_base() -> Callable[[], None]:
    module = load_policy(checkpoint("llama", {}), "bfloat16", lora=LoRA(rank=4, alpha=8))

    def work() -> None:
        worker = rank_of(PolicyWorker, module)
        assert len(list(worker.score_base([AnswerGroup.of(g) for g in groups(1)], 1))) == 3

    return work


def check_gpu(lora: LoRA | None = None) -> Callable[[], None]:
    """What launch/gpu_check.sh measures: three steps, after the product's own look at what the GPU can."""
    driver = {
        "synchronize": lambda *_: None,
        "get_device_name": lambda *_: "fake",
        "empty_cache": lambda: None,
    }

    def work() -> None:
        with patch.multiple(torch.cuda, max_memory_allocated=lambda: 2**30, **driver):
            assert train(TINY, "cuda", 0.0, lora=lora, most=3)["steps"] == 1

    return work


# -- faults ------------------------------------------------------------------------------------------------


def with_hook(hook: Callable[..., Any]) -> Callable[[], None]:
    """A step whose model does something more after its first layer's norm."""
    module = load_policy(checkpoint("llama", {}), "bfloat16")
    module.lm.model.layers[0].input_layernorm.register_forward_hook(hook)

    def work() -> None:
        worker = rank_of(PolicyWorker, module)
        answers = groups(2)
        references = [ReferenceLogprobs(g.group_id, (-9.0, -9.0)) for g in answers]
        worker.learn_preferences(answers, references, DPO(), 64)
        take_step(worker)

    return work


def without_argument(name: str) -> Callable[[], None]:
    """A step whose attention leaves an argument out."""
    from torch.nn.attention import varlen

    attention, step = varlen.varlen_attn, prefer(DPO())

    def work() -> None:
        lacking = lambda *args, **kwargs: attention(*args, **{k: v for k, v in kwargs.items() if k != name})
        with patch.object(varlen, "varlen_attn", lacking):
            step()

    return work


def beside(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    """What a module does that keeps a tensor which `.to` doesn't move."""
    with unset_fake_temporarily():
        kept = torch.ones(32)
    return output * kept


FAULTS: dict[str, Callable[[], Callable[[], None]]] = {
    "a CPU tensor in the model": lambda: with_hook(beside),
    "no enable_gqa": lambda: without_argument("enable_gqa"),
    "a value read": lambda: with_hook(lambda module, args, out: out * float(out.sum() > 0)),
    "a copy to the host": lambda: with_hook(lambda module, args, out: out.sum().cpu() and None),
    "a blocking copy": lambda: with_hook(lambda module, args, out: out * torch.ones(32).to(out.device)),
    "a boolean mask": lambda: with_hook(lambda module, args, out: out + out[out > 0].sum()),
    "another type into a kernel": lambda: with_hook(lambda module, args, out: out.double()),
    "no gradient": lambda: with_hook(lambda module, args, out: out.detach()),
}

GROUPS: dict[str, dict[str, Callable[[], Callable[[], Any]]]] = {
    "objectives": {
        one.model_fields["type"].default: lambda one=one: prefer(one())
        for one in get_args(get_args(Objective)[0])
    },
    "packed": {
        name: lambda kind=kind, changes=changes: prefer(DPO(), kind, changes)
        for name, (kind, changes) in PACKED.items()
    },
    "padded": {
        name: lambda kind=kind, changes=changes: prefer(DPO(), kind, changes)
        for name, (kind, changes, _) in PADDED.items()
    },
    "others": {
        "lora": lambda: prefer(DPO(), lora=LoRA(rank=4, alpha=8)),
        "own base": score_own_base,
        "sft": imitate,
        "sft padded": lambda: imitate("gemma2", PADDED["gemma2"][1]),
        "reward": lambda: rank_answers(BradleyTerry(margin="score_difference", centering=0.01)),
        "reward log_exp": lambda: rank_answers(LogExp()),
        "reward padded": lambda: rank_answers(BradleyTerry(), "gemma2", PADDED["gemma2"][1]),
        "score reference": lambda: score(ReferenceWorker),
        "score reward": lambda: score(RewardWorker),
        "gpu_check": check_gpu,
        "gpu_check lora": lambda: check_gpu(LoRA(rank=2, alpha=4)),
    },
    "faults": FAULTS,
}


def outcomes(cases: dict[str, Callable[[], Callable[[], None]]]) -> Iterator[dict[str, Any]]:
    """What becomes of each."""
    for name, prepare in cases.items():
        work = prepare()
        waits: Counter[str] = Counter()
        error = None
        try:
            with device.fake_gpu(TOTALS) as waits:
                work()
        except Exception as problem:
            lines = traceback.format_exc().splitlines()
            error = f"{type(problem).__name__}: {problem}\n" + "\n".join(lines[-14:])
        yield {"case": name, "error": error, "waits": dict(waits)}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ROOT = Path(folder)
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        for outcome in outcomes(GROUPS[sys.argv[1]]):
            print(json.dumps(outcome), flush=True)
