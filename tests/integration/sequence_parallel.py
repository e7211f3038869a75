"""Two optimizer steps of the same training on four gloo ranks, of which 1, 2 or 4 share each micro-batch, beside those of one
process without DeepSpeed. Prints how far they are apart; run by a test, or by itself:

    python -m tests.integration.sequence_parallel
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.integration.test_training_ranks import make_groups
from tests.tiny import make_model, make_policy, make_reward
from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.scorer import ReferenceWorker, RewardWorker, score_groups
from ultramed_rl.actors.tasks import ImitationTask, PreferenceTask, RankingTask, Sums
from ultramed_rl.actors.trainer import RewardTrainWorker, plan_batches
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.config.cluster import ReplicaGroup, TrainerGroup
from ultramed_rl.config.models import LoRA, Model
from ultramed_rl.config.objectives import DPO, KTO
from ultramed_rl.config.rounds import Training
from ultramed_rl.config.stages import BradleyTerry
from ultramed_rl.learning.batching import MicroBatch
from ultramed_rl.learning.packing import AnswerGroup, sum_by_answer
from ultramed_rl.learning.preference_data import PreferenceSet
from ultramed_rl.models.load import load_policy, load_reward, model_shape
from ultramed_rl.models.lora import merged_weights
from ultramed_rl.records import TokenizedChat

RANKS = 4
TRAINING = Training(learning_rate=1e-3, batch_size=3, micro_batch_tokens=200, schedule="constant", warmup=0.0)
PLACE = TrainingPlace(0, 1, 5)
GROUPS, REFERENCES = make_groups(2)
RANKED, _ = make_groups(3)
ANSWERS = [AnswerGroup.of(group) for group in GROUPS]
CHATS = [
    TokenizedChat(g.group_id, (*g.prompt.token_ids, *g.chosen.token_ids), (False,) * len(g.prompt.token_ids) + (True,) * len(g.chosen.token_ids))
    for g in GROUPS
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is trained on what."""

    model: str
    task: str
    lora: LoRA | None = None

    def __str__(self) -> str:
        return f"{self.model}{' LoRA' if self.lora else ''}, {self.task}"


CASES = {
    Case("llama", "dpo"): (0, 1, 2, 3),
    Case("qwen3", "dpo"): (0, 1, 2, 3),
    Case("llama", "dpo", LoRA(rank=4, alpha=8)): (0, 1, 2, 3),
    Case("qwen2", "kto"): (2,),
    Case("llama", "sft"): (3,),
    Case("reward", "ranking"): (2, 3),
}


@dataclass
class Outcome:
    """Of two steps."""

    logprobs: list[float] = field(default_factory=list)  # of each answer, before the first
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)  # of the first
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def make_models(root: Path) -> None:
    """A Llama with grouped queries, Qwens with biases and with norms of queries and keys, a reward model."""
    make_policy(root / "llama")
    make_reward(root / "reward")
    for kind in ("qwen2", "qwen3"):
        make_model(root / kind, kind, max_position_embeddings=512)


# -- one process, without DeepSpeed ------------------------------------------------------------------------


def train_plainly(root: Path, case: Case) -> Outcome:
    """By torch's AdamW over whole micro-batches of one rank."""
    torch.manual_seed(0)
    path = str(root / case.model)
    module: Any = (
        load_reward(path, "float32")
        if case.task == "ranking"
        else load_policy(path, "float32", lora=case.lora)
    )
    engine: Any = Engine.__new__(Engine)
    engine.spec = SimpleNamespace(group=TrainerGroup(zero_stage=0))
    engine.device, engine.backend, engine.module = torch.device("cpu"), module, module
    engine.total = lambda values: values
    task, outcome = _task(case, engine), Outcome()
    if case.task != "ranking":
        outcome.logprobs = _logprobs(module)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=TRAINING.learning_rate, betas=(0.9, 0.95), weight_decay=TRAINING.weight_decay
    )
    batches, _ = plan_batches(len(task.lengths), TRAINING, PLACE)
    for step, batch in enumerate(batches):
        sums = Sums(task.sums)
        for loss in task.losses(batch, [MicroBatch(tuple(batch))], sums, step == 0):
            loss.backward()
        totals = dict(zip(sums.names, sums.values.tolist(), strict=True))
        outcome.losses.append(task.metrics(totals)["loss"])
        outcome.tokens.append(totals["tokens"])
        outcome.flops.append(totals["flops"])
        if step == 0:
            outcome.gradients = {
                n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None
            }
        norm = torch.nn.utils.clip_grad_norm_(trained, TRAINING.max_grad_norm)
        outcome.norms.append(float(norm))
        optimizer.step()
        optimizer.zero_grad()
    outcome.weights = {n: w.clone() for n, w in merged_weights(module.lm, lambda _: nullcontext())}
    return outcome


def _task(case: Case, engine: Any) -> Any:
    shape = model_shape(engine.module.lm)
    if case.task == "sft":
        return ImitationTask(engine, shape, CHATS)
    if case.task == "ranking":
        return RankingTask(engine, shape, RANKED, BradleyTerry())
    objective = {"dpo": DPO(), "kto": KTO()}[case.task]
    return PreferenceTask(engine, shape, PreferenceSet.at_hand(GROUPS, REFERENCES, 256), objective)


@torch.no_grad()
def _logprobs(module: Any) -> list[float]:
    passes = score_groups(
        ANSWERS, lambda batch: sum_by_answer(module(batch), batch), 200, "cpu", in_step=False, packed=True
    )
    return _in_order(passes)


def _in_order(passes: Any) -> list[float]:
    found = {(g, a): x for numbers in passes for g, a, x in numbers}
    return [found[key] for key in sorted(found)]


# -- ranks -------------------------------------------------------------------------------------------------


def run_rank(rank: int, root: str, port: int) -> None:
    """All cases at every number of ranks that share; the first rank writes what came of them."""
    torch.set_num_threads(1)
    outcomes: dict[tuple[str, int, int], dict[str, Any]] = {}
    scores: dict[tuple[str, bool, int], list[float]] = {}
    for case, stages in CASES.items():
        for stage in stages:
            for sharing in (1, 2, 4):
                found = _train(rank, Path(root), case, stage, sharing, port)
                outcomes[str(case), stage, sharing] = vars(found)
    for kind, worker in (("llama", ReferenceWorker), ("reward", RewardWorker)):
        for shard in (False, True):
            for sharing in (2, 4):
                group = ReplicaGroup(replicas=RANKS, shard=shard, sequence_parallel=sharing)
                scorer = worker(rank, "cpu", "float32", 200, group)
                scorer.join(("127.0.0.1", port))
                scorer.load(f"{root}/{kind}")
                own = scorer.score(ANSWERS[rank // sharing :: RANKS // sharing])
                numbered = {
                    (rank // sharing + g * (RANKS // sharing), a): x for numbers in own for g, a, x in numbers
                }
                every: list[Any] = [None] * RANKS
                torch.distributed.all_gather_object(every, numbered)
                together = {key: x for part in every for key, x in part.items()}
                scores[kind, shard, sharing] = [together[key] for key in sorted(together)]
                scorer._zero3 = None  # the next one may be whole
    if rank == 0:
        torch.save((outcomes, scores), f"{root}/outcomes.pt")


def _train(rank: int, root: Path, case: Case, stage: int, sharing: int, port: int) -> Outcome:
    from deepspeed.utils import safe_get_full_grad

    group = TrainerGroup(ranks=RANKS, zero_stage=stage, sequence_parallel=sharing)
    spec, outcome = EngineSpec("cpu", "float32", group, TRAINING), Outcome()
    kind = RewardTrainWorker if case.task == "ranking" else PolicyWorker
    worker: Any = kind(rank, RANKS, 0)
    worker.peaks = {}
    model = Model(path=str(root / case.model), lora=case.lora)
    worker.load(model, spec, ("127.0.0.1", port))
    _teach(worker, case)
    if case.task != "ranking":
        outcome.logprobs = _in_order(worker.score_base(ANSWERS, 200))
    backend, take = worker.engine.backend, worker.engine.backend.step

    def step() -> None:
        if not outcome.gradients:
            for name, p in worker.engine.module.named_parameters():
                if p.requires_grad:
                    # Before stage 2 a rank's own are at hand too.
                    added = p.get_full_hp_grad() if hasattr(p, "_hp_mapping") else safe_get_full_grad(p)
                    outcome.gradients[name] = added.float().clone()
        take()

    backend.step = step
    for metrics in worker.train(TRAINING, PLACE):
        outcome.losses.append(metrics["loss"])
        outcome.norms.append(metrics["grad_norm"])
        outcome.tokens.append(metrics["tokens"])
        outcome.flops.append(metrics["flops"])
    outcome.weights = {name: weight.clone() for name, weight in worker.engine.weights()}
    worker._zero3 = None  # the next case may be of another stage
    return outcome


def _teach(worker: Any, case: Case) -> None:
    if case.task == "sft":
        worker.learn_chats(CHATS)
    elif case.task == "ranking":
        worker.learn_ranking(RANKED, BradleyTerry(), 256)
    else:
        worker.learn_preferences(GROUPS, REFERENCES, {"dpo": DPO(), "kto": KTO()}[case.task], 256)


# -- the table ---------------------------------------------------------------------------------------------


def farthest(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))


def tensors_apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of a tensor's entries, of the expected tensor's largest entry."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    return max(
        float((found[n] - x).abs().max() / x.abs().max().clamp_min(1e-12)) for n, x in expected.items()
    )


def compare(root: Path) -> tuple[list[tuple[str, int, int, dict[str, float]]], dict[str, float]]:
    """Everything trained and scored in both ways: (case, stage, ranks that share, differences), and of replicas."""
    make_models(root)
    plain = {str(case): train_plainly(root, case) for case in CASES}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, (str(root), port), nprocs=RANKS)
    outcomes, scores = torch.load(root / "outcomes.pt", weights_only=False)
    rows = []
    for (case, stage, sharing), values in outcomes.items():
        found, expected = Outcome(**values), plain[case]
        assert found.tokens == expected.tokens and len(found.losses) == len(expected.losses) == 2
        assert len(expected.logprobs) == (0 if "ranking" in case else sum(len(a.answers) for a in ANSWERS))
        rows.append(
            (case, stage, sharing, {
                "logprob": farthest(found.logprobs, expected.logprobs) if expected.logprobs else 0.0,
                "loss": farthest(found.losses, expected.losses),
                "grad_norm": farthest(found.norms, expected.norms),
                "flops": farthest(found.flops, expected.flops),
                "gradient": tensors_apart(found.gradients, expected.gradients),
                "weight": tensors_apart(found.weights, expected.weights),
            })
        )  # fmt: skip
    replicas = {}
    whole = {"llama": ReferenceWorker, "reward": RewardWorker}
    for (kind, shard, sharing), found in scores.items():
        alone = whole[kind](0, "cpu", "float32", 200)
        alone.load(str(root / kind))  # type: ignore[attr-defined]
        replicas[f"{kind}, {'sharded' if shard else 'whole'}, {sharing} share"] = farthest(
            found, _in_order(alone.score(ANSWERS))
        )
    return rows, replicas


def main() -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        rows, replicas = compare(Path(folder))
    names = list(rows[0][3])
    print(f"{'largest relative difference':32} stage ranks " + " ".join(f"{n:>9}" for n in names))
    for case, stage, sharing, apart in rows:
        print(f"{case:32} {stage:5} {sharing:5} " + " ".join(f"{apart[n]:9.1e}" for n in names))
    for name, apart in replicas.items():
        print(f"{name:32} {apart:9.1e}")


if __name__ == "__main__":
    sys.exit(main())
