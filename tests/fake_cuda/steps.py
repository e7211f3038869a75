"""Each way to train or score on a fake GPU, in a process of its own: python -m tests.fake_cuda.steps GROUP...

Prints a line of JSON a case: its name, the error or null, and how often the host waited for the device and where.
"""

from __future__ import annotations

from tests.fake_cuda import device

if __name__ == "__main__":
    device.load()

import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
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
from ultramed_rl.config.cluster import ReplicaGroup, TrainerGroup
from ultramed_rl.config.models import LoRA
from ultramed_rl.config.objectives import DPO, KTO, Mixture, Objective
from ultramed_rl.config.rounds import Training
from ultramed_rl.config.stages import BradleyTerry, LogExp
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.load import load_policy, load_reward
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, TokenizedChat

# What a step reads at its end: sums, no loss that isn't finite, a gradient of norm 1.
TOTALS = {"actors/engine.py:Engine.step": lambda count: [1.0] * (count - 2) + [0.0, 1.0]}


@cache
def checkpoint(name: str, *, classifier: bool = False) -> str:
    """A random model on disk, of a name in `PACKED` or `PADDED`."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = tempfile.mkdtemp(dir=ROOT)
    kind, changes, *_ = (PACKED | PADDED)[name]
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


def rank_of(kind: type[TrainWorker], module: Any, sharing: int) -> Any:
    """The first of two ranks, which meets nobody: the group is fake too. So many share each micro-batch."""
    checkpointing = module.lm.supports_gradient_checkpointing
    worker = plain_rank(kind, device.move(module), "cuda", "bfloat16", checkpointing=checkpointing)
    worker.world_size = 2
    group = TrainerGroup(ranks=2, zero_stage=0, sequence_parallel=sharing)
    worker.engine.spec = replace(worker.engine.spec, group=group)
    module.share_rows(dist.group.WORLD if sharing > 1 else None)
    worker.engine.backend = CheckedBackend(module, 1.0)
    worker.peaks = {"mfu": 1e12}
    return worker


def take_step(worker: Any) -> None:
    budget = max(worker.task.lengths)
    training = Training(learning_rate=1e-6, batch_size=3, micro_batch_tokens=budget)
    shard = worker._shard(worker.task.lengths, range(3), budget)
    if worker.engine.spec.group.sequence_parallel == 1:
        assert len(shard) == 2 and any(micro.filler for micro in shard), shard
    (metrics,) = worker.train(training, TrainingPlace(0, 1, 0))
    assert metrics["samples"] == 3 and metrics["flops"] > 0


Work = Callable[[], Any]


def prefer(
    objective: Any, name: str = "llama", lora: LoRA | None = None, hook: Any = None, sharing: int = 1
) -> Work:
    """A step of the policy; `hook` does something more after its first layer's norm."""
    module = load_policy(checkpoint(name), "bfloat16", lora=lora)
    if hook is not None:
        module.lm.model.layers[0].input_layernorm.register_forward_hook(hook)

    def work() -> None:
        worker = rank_of(PolicyWorker, module, sharing)
        answers = groups(3 if objective.listwise else 2)
        references = [ReferenceLogprobs(g.group_id, (-9.0,) * len(g.completions), -8.0) for g in answers]
        worker.learn_preferences(answers, references if objective.uses_reference else None, objective, 64)
        take_step(worker)

    return work


def imitate(name: str = "llama", sharing: int = 1) -> Work:
    """A step of fine-tuning."""
    module = load_policy(checkpoint(name), "bfloat16")

    def work() -> None:
        worker = rank_of(PolicyWorker, module, sharing)
        sizes = (30, 20, 19)
        chats = [TokenizedChat(f"c{n}", tuple(range(n)), (False,) * 5 + (True,) * (n - 5)) for n in sizes]
        worker.learn_chats(chats, chats)
        take_step(worker)

    return work


def rank_answers(objective: Any, name: str = "llama", sharing: int = 1) -> Work:
    """A step of reward modelling."""
    module = load_reward(checkpoint(name, classifier=True), "bfloat16")

    def work() -> None:
        worker = rank_of(RewardTrainWorker, module, sharing)
        worker.learn_ranking(groups(3), objective, 64)
        take_step(worker)

    return work


def score(kind: type[Any], sharing: int = 1) -> Work:
    """A replica's numbers of all answers: as many passes as groups."""
    classifier = kind is RewardWorker
    load = load_reward if classifier else load_policy
    module: Any = load(checkpoint("llama", classifier=classifier), "bfloat16")

    def work() -> None:
        group = ReplicaGroup(replicas=2, sequence_parallel=sharing)
        worker = kind(0, "cuda", "bfloat16", 1, group)
        worker.ranks = dist.group.WORLD if sharing > 1 else None
        with patch.object(type(module), "to", lambda module, _: device.move(module)):
            worker._adopt(module)
        assert len(list(worker.score([AnswerGroup.of(g) for g in groups(1)]))) == 3

    return work


def score_own_base() -> Work:
    """The same by a policy whose adapters are off."""
    module = load_policy(checkpoint("llama"), "bfloat16", lora=LoRA(rank=4, alpha=8))

    def work() -> None:
        worker = rank_of(PolicyWorker, module, 1)
        assert len(list(worker.score_base([AnswerGroup.of(g) for g in groups(1)], 1))) == 3

    return work


# -- faults ------------------------------------------------------------------------------------------------


def without_gqa() -> Work:
    """A step whose attention doesn't say that heads share keys."""
    from torch.nn.attention import varlen

    attention, step = varlen.varlen_attn, prefer(DPO())

    def lacking(*arguments: Any, enable_gqa: bool, **named: Any) -> Any:
        return attention(*arguments, **named)

    def work() -> None:
        with patch.object(varlen, "varlen_attn", lacking):
            step()

    return work


def beside(output: torch.Tensor) -> torch.Tensor:
    """What a module does that keeps a tensor which `.to` doesn't move."""
    with unset_fake_temporarily():
        kept = torch.ones(32)
    return output * kept


def faulty(hook: Callable[[torch.Tensor], Any]) -> Callable[[], Work]:
    return lambda: prefer(DPO(), hook=lambda module, arguments, output: hook(output))


# FlexAttention is compiled; JetMoe reads from the GPU how many tokens each expert has; a part of Falcon's bias is made in C++.
UNFOLLOWED = ("gemma2-window", "gpt-oss-window", "jetmoe", "falcon-alibi")
# Ranks that share rows: grouped and tied heads, biases, windows, experts, values narrower than keys.
SHARED = ("llama", "qwen2", "gpt2", "gemma3-window", "qwen3-moe", "mixtral-window", "deepseek")
MIXED = Mixture(parts=[{"weight": 1.0, "objective": {"type": kind}} for kind in ("dpo", "raft")])
ADAPTERS = LoRA(rank=4, alpha=8)
GROUPS: dict[str, dict[str, Callable[[], Work]]] = {
    "objectives": {
        one.model_fields["type"].default: lambda one=one: prefer(MIXED if one is Mixture else one())
        for one in get_args(get_args(Objective)[0])
    },
    "packed": {
        f"packed {name}": lambda name=name: prefer(DPO(), name) for name in PACKED if name not in UNFOLLOWED
    },
    "padded": {
        f"padded {name}": lambda name=name: prefer(DPO(), name) for name in PADDED if name not in UNFOLLOWED
    },
    "others": {
        "lora": lambda: prefer(DPO(), lora=ADAPTERS),
        "own base": score_own_base,
        "sft": imitate,
        "sft padded": lambda: imitate("granite"),
        "reward": lambda: rank_answers(BradleyTerry(margin="score_difference", centering=0.01)),
        "reward log_exp": lambda: rank_answers(LogExp()),
        "reward padded": lambda: rank_answers(BradleyTerry(), "bloom"),
        "score reference": lambda: score(ReferenceWorker),
        "score reward": lambda: score(RewardWorker),
        # Three steps, after the product's own look at what the GPU can.
        "gpu_check": lambda: lambda: train(TINY, "cuda", 0.0, most=3),
        "gpu_check lora": lambda: lambda: train(TINY, "cuda", 0.0, lora=ADAPTERS, most=3),
    },
    "shared": {
        **{f"shared {name}": lambda name=name: prefer(DPO(), name, sharing=2) for name in SHARED},
        "shared lora": lambda: prefer(DPO(), lora=ADAPTERS, sharing=2),
        "shared kto": lambda: prefer(KTO(), sharing=2),
        "shared sft": lambda: imitate(sharing=2),
        "shared reward": lambda: rank_answers(BradleyTerry(), sharing=2),
        "shared score reference": lambda: score(ReferenceWorker, sharing=2),
        "shared score reward": lambda: score(RewardWorker, sharing=2),
    },
    "faults": {
        "a CPU tensor in the model": faulty(beside),
        "no enable_gqa": without_gqa,
        "a value read": faulty(lambda output: output * float(output.sum() > 0)),
        "a copy to the host": faulty(lambda output: output.sum().cpu() and None),
        "a blocking copy": faulty(lambda output: output * torch.ones(32).to(output)),
        "a boolean mask": faulty(lambda output: output + output[output > 0].sum()),
        "another type into a kernel": faulty(lambda output: output.double()),
        "no gradient": faulty(lambda output: output.detach()),
    },
}


def outcomes(cases: dict[str, Callable[[], Work]]) -> Iterator[dict[str, Any]]:
    """What becomes of each."""
    for name, prepare in cases.items():
        waits: Counter[str] = Counter()
        error = None
        started = time.monotonic()
        try:
            work = prepare()
            with device.fake_gpu(TOTALS) as waits:
                work()
        except Exception as problem:
            where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(problem.__traceback__)]
            error = f"{type(problem).__name__}: {str(problem)[:500]} {' '.join(where[-6:])}"
        yield {"case": name, "error": error, "waits": waits, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ROOT = Path(folder)
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        for group in sys.argv[1:]:
            for outcome in outcomes(GROUPS[group]):
                print(json.dumps(outcome), flush=True)
