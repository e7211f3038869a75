"""The same batch gives the same loss and weights at any rank count, ZeRO stage and micro-batch size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learning import check_trained_alike, write_round
from tests.tiny import make_model, make_tokenizer
from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.scorer import ReferenceWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.cluster.connection import start_private_ray
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.models import LoRA, Model
from ultramed_rl.config.objectives import DPO, KTO, NCA, KTOPair, SimPO
from ultramed_rl.config.rounds import Optimization, Training
from ultramed_rl.learning.costs import LOGITS_AT_ONCE
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.learning.preference_data import mismatched_answer
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs


def make_groups(answers: int = 2) -> tuple[list[PreferenceGroup], list[ReferenceLogprobs]]:
    """Six prompts of different lengths, each with answers of different lengths, best first."""
    tokenizer = make_tokenizer()
    groups = []
    for i in range(6):
        messages = ({"role": "user", "content": "Why? " * (1 + i)},)
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        completions = tuple(
            Completion(f"p{i}", k, "a", (*range(10 + 30 * k, 16 + 31 * k + i), 2), "stop", 0.0, 0)
            for k in range(answers)
        )
        groups.append(
            PreferenceGroup(Prompt(f"p{i}", messages, ids), completions, (1.0, 0.0, -1.0)[:answers])
        )
    references = [
        ReferenceLogprobs(g.group_id, tuple(-30.0 - i - 20 * k for k in range(answers)), -45.0)
        for i, g in enumerate(groups)
    ]
    return groups, references


@dataclass(frozen=True)
class Layout:
    """How the same training is cut up."""

    ranks: int = 1
    stage: int = 0
    budget: int = 100_000


class HostAdam(torch.optim.AdamW):
    """In the place of DeepSpeed's own, which is compiled at its first use."""

    def __init__(self, parameters: Any, adamw_mode: bool, **constants: Any) -> None:
        super().__init__(parameters, **constants)


class SmallChunks(PolicyWorker):
    """A policy rank whose head takes 64 tokens at a time, so that ranks differ in how many times they need it."""

    def load(self, *arguments: Any) -> None:
        import deepspeed.ops.adam

        from ultramed_rl.actors import trainer

        LOGITS_AT_ONCE["cpu"] = 1
        deepspeed.ops.adam.DeepSpeedCPUAdam, trainer.build_host_adam = HostAdam, lambda: None
        super().load(*arguments)

    def two_steps(self, cases: Sequence[tuple[Model, EngineSpec]], address: tuple[str, int]) -> list[Any]:
        """Loss, gradient norm and tokens of each case's two steps, or the error."""
        groups, references = make_groups()
        training = Training(learning_rate=1e-3, batch_size=3, micro_batch_tokens=200, schedule="constant")
        found: list[Any] = []
        for model, spec in cases:
            self.load(model, spec, address)
            self.learn_preferences(groups, references, DPO(), 256)
            steps = self.train(training, TrainingPlace(0, 1, 5))
            found.append([[m[name] for name in ("loss", "grad_norm", "tokens")] for m in steps])
        return found


class Ranks:
    """Real policy actors by number of ranks, started once: a case loads a new engine into them."""

    def __init__(self) -> None:
        self.groups: dict[int, tuple[WorkerGroup, Any]] = {}

    def of(self, ranks: int) -> tuple[WorkerGroup, Any]:
        import ray

        if ranks not in self.groups:
            environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
            remote = ray.remote(SmallChunks).options(num_cpus=0, runtime_env={"env_vars": environment})
            group = WorkerGroup("policy", lambda r: remote.remote(r, ranks, 0), ranks, takes_turns=False)
            self.groups[ranks] = group, group.actors[0].rendezvous.remote()
        return self.groups[ranks]


@pytest.fixture(scope="module")
def workers() -> Iterator[Ranks]:
    import ray

    if not ray.is_initialized():
        start_private_ray(4)
    ranks = Ranks()
    yield ranks
    for group, _ in ranks.groups.values():
        group.stop()


def train(
    workers: Ranks,
    start: Path,
    out: Path,
    objective: Any,
    layout: Layout,
    data: tuple[Sequence[PreferenceGroup], Sequence[ReferenceLogprobs] | None],
    lora: LoRA | None = None,
    epochs: int = 2,
) -> list[dict[str, float]]:
    """Train the tiny policy of `start` in real Ray actors; the checkpoint goes to `out`."""
    group, address = workers.of(layout.ranks)
    checkpointing = layout.stage == 3
    spec = EngineSpec(
        "cpu",
        "float32",
        TrainerGroup(zero_stage=layout.stage),
        Optimization(gradient_checkpointing=checkpointing, max_skipped_steps=0),
    )
    group.call(PolicyWorker.load, Model(path=str(start), lora=lora), spec, address)
    training = Training(
        learning_rate=1e-3,
        batch_size=3,
        micro_batch_tokens=layout.budget,
        epochs=epochs,
        schedule="constant",
        max_skipped_steps=0,
    )
    group.call(PolicyWorker.learn_preferences, *data, objective, 256)
    arguments = (training, TrainingPlace(0, 1, 5))
    steps = [
        m for rank, m in group.generate(PolicyWorker.train, [arguments] * layout.ranks).follow() if rank == 0
    ]
    group.call(PolicyWorker.save, str(out))
    return steps


CASES: dict[str, tuple[Any, int, LoRA | None, list[Layout]]] = {
    "dpo": (DPO(), 2, None, [Layout(1, 0, 80), Layout(2, 2, 80), Layout(2, 3, 160)]),
    "kto_pair": (KTOPair(), 2, None, [Layout(2, 1, 160)]),
    "kto": (KTO(), 2, None, [Layout(2, 2, 80)]),
    "nca": (NCA(), 3, None, [Layout(2, 2, 120), Layout(2, 3, 240)]),
    "simpo": (SimPO(), 2, None, [Layout(1, 0, 80)]),
    "lora": (DPO(), 2, LoRA(rank=4, alpha=8), [Layout(2, 2, 80), Layout(2, 3, 160)]),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_stages_and_packing_agree(workers: Ranks, tiny_root: Path, tmp_path: Path, case: str) -> None:
    from safetensors.torch import load_file

    objective, answers, lora, layouts = CASES[case]
    groups, references = make_groups(answers)
    data = (groups, references if objective.uses_reference else None)
    policy = tiny_root / "policy"
    plain = train(workers, policy, tmp_path / "plain", objective, Layout(), data, lora)
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    start = load_file(tiny_root / "policy" / "model.safetensors")
    assert expected.keys() == start.keys()
    assert any(not torch.equal(expected[name], start[name]) for name in expected)
    assert plain[-1]["implicit_margin"] > plain[0]["implicit_margin"]

    for layout in layouts:
        name = f"{case} {layout}"
        out = tmp_path / f"{layout.ranks}-{layout.stage}-{layout.budget}"
        steps = train(workers, policy, out, objective, layout, data, lora)
        assert len(steps) == len(plain) == 4
        for ours, theirs in zip(steps, plain, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), name
            assert ours["tokens"] == theirs["tokens"], name
        check_trained_alike(load_file(out / "model.safetensors"), expected, name)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
def test_split_experts_learn_as_whole_ones(workers: Ranks, tmp_path: Path, kind: str) -> None:
    """Ranks whose tokens choose other experts stay in step."""
    from safetensors.torch import load_file

    policy = make_model(tmp_path / "policy", kind, max_position_embeddings=512)
    folders, layouts = [tmp_path / "plain", tmp_path / "split"], [Layout(), Layout(2, 3, 160)]
    plain, split = (
        train(workers, policy, folder, DPO(), layout, make_groups())
        for folder, layout in zip(folders, layouts, strict=True)
    )
    assert len(plain) == len(split) == 4
    for ours, theirs in zip(split, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    found, expected = (load_file(folder / "model.safetensors") for folder in reversed(folders))
    check_trained_alike(found, expected, kind)


@pytest.mark.slow
def test_every_layout_that_the_config_allows_takes_the_same_two_steps(workers: Ranks, tmp_path: Path) -> None:
    """ZeRO stage, precision, the optimizer on the host, adapters, packed or padded rows: each with each."""
    paths = {kind: str(make_model(tmp_path / kind, kind)) for kind in ("llama", "granite")}
    cases, refused = [], set()
    for stage, precision, offload, lora, kind in product(
        range(4), ("float32", "bfloat16"), (False, True), (None, LoRA(rank=4, alpha=8)), paths
    ):
        try:
            group = TrainerGroup(zero_stage=stage, offload_optimizer=offload)
        except ValueError:
            refused.add((stage, offload))
            continue
        training = Optimization(gradient_checkpointing=False, max_skipped_steps=0)
        cases.append((Model(path=paths[kind], lora=lora), EngineSpec("cpu", precision, group, training)))
    assert refused == {(0, True)} and len(cases) == 2 * 2 * 2 * (4 + 3)
    group, address = workers.of(2)
    found, other = group.call(SmallChunks.two_steps, cases, address)
    assert found == other, "ranks agree"
    plain: dict[Any, Any] = {}
    for (model, spec), steps in zip(cases, found, strict=True):
        expected = plain.setdefault((model.path, model.lora is None, spec.precision), steps)  # of stage 0
        near = 1e-4 if spec.precision == "float32" else 2e-2
        assert len(steps) == 2 and steps[0][:2] != steps[1][:2], (model, spec)
        for ours, theirs in zip(steps, expected, strict=True):
            assert ours[0] == pytest.approx(theirs[0], rel=near), (model, spec)
            assert ours[1] == pytest.approx(theirs[1], rel=10 * near), (model, spec)
            assert ours[2] == theirs[2], (model, spec)


def test_batches_that_come_one_after_the_other_are_learnt_as_at_once(
    workers: Ranks, tiny_root: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    """And a rank that reads its own pairs, from files in the order of their answers, learns as one that has them all."""
    group, address = workers.of(2)
    groups, references = make_groups()
    write_round(tmp_path / "round", groups, references)
    training = Training(learning_rate=1e-3, batch_size=4, micro_batch_tokens=160)
    place = TrainingPlace(0, 1, 5, most=len(groups) + 6)  # six prompts gave no pair
    spec = EngineSpec(
        "cpu",
        "float32",
        TrainerGroup(zero_stage=2),
        Optimization(gradient_checkpointing=False, max_skipped_steps=0),
    )
    found = {}
    for early in (0, 1, 2):  # 2: none of them from files
        group.call(PolicyWorker.load, Model(path=str(tiny_root / "policy")), spec, address)
        group.call(
            PolicyWorker.learn_preferences, *((groups, references) if early == 2 else ([], [])), DPO(), 256
        )
        pending = [
            group.start(
                PolicyWorker.learn_next, groups[i : i + 4], references[i : i + 4], training, place, i // 4
            )
            for i in range(0, 4 * (early % 2), 4)
        ]
        steps = [group.wait(step)[0] for step in pending]
        if early < 2:
            folder = str(tmp_path / "round")
            group.call(PolicyWorker.learn_round, folder, DPO(), 256, training, place, early)
        rest = group.generate(PolicyWorker.train, [(training, place, early % 2)] * 2).follow()
        steps += [metrics for rank, metrics in rest if rank == 0]
        group.call(PolicyWorker.save, str(tmp_path / str(early)))
        found[early] = steps, load_file(tmp_path / str(early) / "model.safetensors")
    whole, expected = found[2]
    assert whole[-1]["learning_rate"] > 0.2e-3, "rates are those of a pair for every prompt"
    for steps, weights in (found[0], found[1]):
        assert [s["samples"] for s in whole] == [4, len(groups) - 4] == [s["samples"] for s in steps]
        for ours, theirs in zip(steps, whole, strict=True):
            for name in ("step", "loss", "grad_norm", "learning_rate", "tokens"):
                assert ours[name] == theirs[name], name
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("stage", "lora"),
    [(0, None), (2, None), (3, None), (2, LoRA(rank=4, alpha=8))],
    ids=["0", "2", "3", "lora"],
)
def test_small_steps_in_bfloat16_add_up_over_rounds_and_a_kill(
    workers: Ranks, tiny_root: Path, tmp_path: Path, stage: int, lora: LoRA | None
) -> None:
    from safetensors.torch import load_file

    group, address = workers.of(2)
    spec = EngineSpec(
        "cpu",
        "bfloat16",
        TrainerGroup(zero_stage=stage),
        Optimization(gradient_checkpointing=False, max_skipped_steps=0),
    )
    training = Training(learning_rate=1e-5, batch_size=3, micro_batch_tokens=160, schedule="constant")
    model = Model(path=str(tiny_root / "policy"), lora=lora)

    def learn(folder: Path) -> float:
        """A round, its checkpoint, and the share of its update that shows in bfloat16."""
        group.call(PolicyWorker.start_round, True)
        group.call(PolicyWorker.learn_preferences, *make_groups(), DPO(), 256)
        for _ in group.generate(PolicyWorker.train, [(training, TrainingPlace(0, 1, 5))] * 2).follow():
            pass
        group.call(PolicyWorker.save, str(folder))
        group.call(PolicyWorker.save_state, str(folder / "optimizer"), False)
        first, second = group.call(PolicyWorker.update_survives)
        assert first == second
        return float(first)

    def read(folder: Path) -> dict[str, torch.Tensor]:
        """Weights, and each rank's masters."""
        files = [folder / "model.safetensors", *sorted((folder / "optimizer").glob("masters-*.safetensors"))]
        assert len(files) == 3
        return {f"{file.name} {name}": x for file in files for name, x in load_file(file).items()}

    group.call(PolicyWorker.load, model, spec, address)
    shares = [learn(tmp_path / "first"), learn(tmp_path / "second")]
    assert 0 < shares[0] < 1, "rounding hides some of it"
    group.call(PolicyWorker.load, model, spec, address, str(tmp_path / "first"))
    group.call(PolicyWorker.load_state, str(tmp_path / "first" / "optimizer"))
    assert learn(tmp_path / "resumed") == shares[1]
    unbroken, resumed = read(tmp_path / "second"), read(tmp_path / "resumed")
    assert unbroken.keys() == resumed.keys()
    for name, weight in unbroken.items():
        assert torch.equal(weight, resumed[name]), name
    masters = [weight for name, weight in unbroken.items() if name.startswith("masters")]
    assert any(not torch.equal(m, m.bfloat16().float()) for m in masters), (
        "masters hold more than the weights"
    )


def test_bad_groups_are_refused_with_their_ids(workers: Ranks, tiny_root: Path, tmp_path: Path) -> None:
    import ray

    groups, references = make_groups()
    outside = replace(groups[2].chosen, token_ids=(10, 10**6))
    groups[2] = replace(groups[2], completions=(outside, groups[2].rejected))
    with pytest.raises(ray.exceptions.RayTaskError, match=r"outside the vocabulary.*p2:0>1"):
        train(workers, tiny_root / "policy", tmp_path / "never", DPO(), Layout(), (groups, references))
    groups, references = make_groups()
    references[4] = replace(references[4], logprobs=(float("nan"), -1.0))
    with pytest.raises(ray.exceptions.RayTaskError, match=r"non-finite reference logprobs: p4:0>1"):
        train(workers, tiny_root / "policy", tmp_path / "never", DPO(), Layout(), (groups, references))
    assert not (tmp_path / "never").exists()


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(
    workers: Ranks, tiny_root: Path, tmp_path: Path
) -> None:
    import ray

    groups, references = make_groups()
    # Finite as a number, not in float32: the rejected answer leads by more than it holds.
    references[4] = replace(references[4], logprobs=(-30.0, -1e39))
    data = (groups[3:], references[3:])  # one batch
    with pytest.raises(ray.exceptions.RayTaskError, match=r"NonFiniteError: loss .*p4:0>1"):
        train(workers, tiny_root / "policy", tmp_path / "never", DPO(), Layout(2, 3, 80), data)
    # No rank waits in that step's midst.
    train(workers, tiny_root / "policy", tmp_path / "out", DPO(), Layout(2, 2, 80), make_groups(), epochs=1)


def test_sixty_steps_raise_the_margin(workers: Ranks, tiny_root: Path, tmp_path: Path) -> None:
    steps = train(workers, tiny_root / "policy", tmp_path / "out", DPO(), Layout(), make_groups(), epochs=30)
    assert len(steps) == 60
    early = sum(s["implicit_margin"] for s in steps[:6]) / 6
    late = sum(s["implicit_margin"] for s in steps[-6:]) / 6
    assert late > early + 1.0
    assert sum(s["loss"] for s in steps[-6:]) < sum(s["loss"] for s in steps[:6])
    assert steps[-1]["accuracy"] == 1.0


@pytest.mark.parametrize("wanted", [True, False], ids=["desirable", "undesirable"])
def test_kto_moves_answers_by_their_label_alone(
    workers: Ranks, tiny_root: Path, tmp_path: Path, wanted: bool
) -> None:
    """Section 4.1 of the paper: desirable answers rise and undesirable ones fall without a counterpart. The
    reference point follows a rise that mismatched answers share, and never goes below zero."""
    groups = [replace(g, desirable=int(wanted)) for g in make_groups(1)[0]]
    reference = ReferenceWorker(0, "cpu", "float32", 1000)
    reference.load(str(tiny_root / "policy"))
    packed = [
        AnswerGroup(g.prompt.token_ids, [g.chosen.token_ids, mismatched_answer(groups, i, 256)])
        for i, g in enumerate(groups)
    ]
    found = {(g, a): x for numbers in reference.score(packed) for g, a, x in numbers}
    references = [ReferenceLogprobs(g.group_id, (found[i, 0],), found[i, 1]) for i, g in enumerate(groups)]
    steps = train(
        workers, tiny_root / "policy", tmp_path / "out", KTO(), Layout(), (groups, references), epochs=30
    )
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-4)  # 1 - sigmoid(0)
    name = "chosen_logratio" if wanted else "rejected_logratio"
    assert steps[0][name] == pytest.approx(0.0, abs=1e-3) and "implicit_margin" not in steps[0]
    assert all(0.0 < s["loss"] < 1.0 for s in steps)
    if wanted:
        assert steps[-1][name] > 5.0
    else:
        assert steps[-1][name] < -5.0 and steps[-1]["loss"] < 0.4


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_infinite_gradient_moves_nothing_and_stops_in_time(
    tiny_root: Path, tmp_path: Path, stage: int
) -> None:
    """The loss is finite, its gradient isn't."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    script = [
        sys.executable,
        "-m",
        "tests.integration.infinite_gradient",
        str(tiny_root / "policy"),
        str(stage),
    ]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "weights stood still" in done.stdout and "stopped: gradient is not finite in 2 steps" in done.stdout
    )
