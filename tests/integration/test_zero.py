"""DeepSpeed's stages in one process: a policy that is split while it loads is the one that loads whole, and a step is the same
step in all of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_model
from tests.unit.models.test_attention import PACKED, save
from ultramed_rl.actors import host_memory
from ultramed_rl.actors.deepspeed_setup import (
    EngineSpec,
    deepspeed_config,
    inference_config,
    join_ranks,
    loading_context,
    shard_for_inference,
)
from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.tasks import Sums
from ultramed_rl.actors.trainer import TrainWorker
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.models import LoRA, Model
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.learning.costs import LOGITS_AT_ONCE
from ultramed_rl.learning.packing import AnswerGroup, PackedBatch, pack_groups
from ultramed_rl.models.load import PolicyModel, is_packed, load_policy, load_reward

pytestmark = pytest.mark.usefixtures("one_rank")

BFLOAT16 = EngineSpec(
    "cpu",
    "bfloat16",
    TrainerGroup(zero_stage=3),
    Optimization(gradient_checkpointing=False, max_skipped_steps=0),
)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A process group of this process alone; afterwards torch as it was before DeepSpeed, and no address in the environment
    for other tests' processes to meet at."""
    linear = torch.nn.functional.linear
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mock.patch.dict(os.environ):
        join_ranks(0, 1, "127.0.0.1", port, "cpu")
        yield
    torch.distributed.destroy_process_group()
    torch.nn.functional.linear = linear


# -- loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3", "gemma3"])
def test_a_split_policy_computes_what_a_whole_one_does(tmp_path: Path, kind: str) -> None:
    """Rotary frequencies that bfloat16 had rounded turned keys elsewhere, the farther the longer the text."""
    longer = {"max_position_embeddings": 4096}
    changes = {} if kind == "gemma3" else longer
    path = str(make_model(tmp_path, kind, **changes))
    tokens = [i % 250 + 3 for i in range(600)]
    batch = pack_groups([AnswerGroup(tokens[:560], [tokens[560:]])])

    @torch.no_grad()
    def logprobs(policy: PolicyModel) -> torch.Tensor:
        return policy(batch)

    whole = load_policy(path, "bfloat16")
    expected, buffers = logprobs(whole), dict(whole.lm.named_buffers())
    held = loading_context(deepspeed_config(BFLOAT16))
    split = load_policy(path, "bfloat16")
    for name, buffer in split.lm.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name
    engine = Engine(split.train(), BFLOAT16)
    torch.testing.assert_close(logprobs(engine.backend), expected, atol=0.0, rtol=0.0)
    weights = whole.lm.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in engine.weights())
    del held


@pytest.mark.parametrize("name", PACKED)
def test_a_split_models_buffers_are_a_whole_ones(tmp_path: Path, name: str) -> None:
    """Of a policy in training and of a frozen reward model; DeepSpeed rounds what a module makes to the weights' type."""
    path = save(tmp_path, *PACKED[name])
    for load, config in (
        (load_policy, deepspeed_config(BFLOAT16)),
        (load_reward, inference_config("bfloat16")),
    ):
        whole = dict(load(path, "bfloat16").lm.named_buffers(remove_duplicate=False))
        held = loading_context(config)
        model: Any = load(path, "bfloat16")
        if load is load_policy:
            split = Engine(model.train(), BFLOAT16).module
        else:
            split = shard_for_inference(model.eval().requires_grad_(False), "bfloat16").module
        found = dict(split.lm.named_buffers(remove_duplicate=False))
        del held
        assert found.keys() == whole.keys()
        for buffer, value in whole.items():
            assert found[buffer].dtype == value.dtype and torch.equal(found[buffer], value), buffer


@pytest.mark.parametrize("fault", ["missing", "unknown", "of another size", "not finite"])
@pytest.mark.parametrize("classifier", [False, True])
def test_what_is_refused_whole_is_refused_split(tmp_path: Path, fault: str, classifier: bool) -> None:
    file = make_model(tmp_path, "llama", classifier=classifier) / "model.safetensors"
    weights = load_file(file)
    name = "score.weight" if classifier and fault == "missing" else "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del weights[name]
    elif fault == "unknown":
        name = "model.layers.2.mlp.up_proj.weight"
        weights[name] = torch.ones(48, 32)
    elif fault == "of another size":
        weights[name] = torch.ones(32, 48)
    else:
        weights[name][-1, -1] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    held = loading_context(deepspeed_config(BFLOAT16))
    with pytest.raises(ValueError) as refusal:
        (load_reward if classifier else load_policy)(str(tmp_path), "bfloat16")
    assert fault in str(refusal.value) and name in str(refusal.value)
    del held


# -- steps -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("policy"), "llama", max_position_embeddings=2048))


def build(
    path: str,
    precision: str,
    stage: int,
    *,
    checkpointed: int = 0,
    lora: LoRA | None = None,
    offload_optimizer: bool = False,
) -> Engine:
    torch.manual_seed(0)
    training = Optimization(max_skipped_steps=0, max_grad_norm=1e6)
    training = training.model_copy(update={"checkpointed_layers": checkpointed})
    group = TrainerGroup(zero_stage=stage, offload_optimizer=offload_optimizer)
    spec = EngineSpec("cpu", precision, group, training)
    held = loading_context(deepspeed_config(spec))
    engine = Engine(load_policy(path, precision, lora=lora).train(), spec)
    del held
    return engine


def answers_of(*lengths: int) -> PackedBatch:
    return pack_groups([AnswerGroup([5, 6, 7], [[10 + k % 200 for k in range(n)]]) for n in lengths])


def step(engine: Engine, batches: Sequence[PackedBatch], rate: float = 1e-3) -> float:
    """The gradient's norm."""
    losses = (engine.backend(batch).mean() / len(batches) for batch in batches)
    return engine.step(losses, len(batches), rate, ["a"], Sums(()))[0]


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each time that ZeRO-3 forgets the order of calls by which it fetches weights ahead."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    found: list[int] = []
    forget = PartitionedParameterCoordinator._invalidate_trace
    monkeypatch.setattr(
        PartitionedParameterCoordinator, "_invalidate_trace", lambda c: found.append(1) or forget(c)
    )
    return found


HEAD = LoRA(rank=2, target_modules=["lm_head", "q_proj"])
MIXTURES = ["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"]


@pytest.mark.parametrize(
    ("kind", "lora", "checkpointed"),
    [
        *[("llama", lora, checkpointed) for lora in (None, HEAD) for checkpointed in (0, 1, 2)],
        *[(kind, None, 1) for kind in MIXTURES],
    ],
)
def test_prefetching_goes_on_whatever_the_lengths(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forgotten: list[int],
    kind: str,
    lora: LoRA | None,
    checkpointed: int,
) -> None:
    """The order that was recorded is that of all passes: a head that is applied in parts is called as often whatever a pass
    predicts, and experts are gathered whichever of them are chosen. And the gradient is a whole model's."""
    path = str(make_model(tmp_path, kind, max_position_embeddings=2048))
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 1)  # 64 tokens a part
    plain = build(path, "float32", 0, lora=lora)
    split = build(path, "float32", 3, lora=lora, checkpointed=checkpointed)
    assert is_packed(split.module.lm)
    for lengths in ([(40,), (150, 20)], [(200,), (3,)], [(70, 70), (100,)]):
        batches = [answers_of(*each) for each in lengths]
        assert step(split, batches) == pytest.approx(step(plain, batches), rel=1e-4)
    assert not forgotten


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_pass_without_gradients_costs_the_order_of_calls_once(
    path: str, forgotten: list[int], before: int
) -> None:
    """KTO's reference points come before a step's passes: what was recorded of them has no backward half."""
    split = build(path, "float32", 3)
    found = []
    for lengths in ((40,), (90,), (7,), (60,)):
        batch = answers_of(*lengths)
        with torch.no_grad():
            for _ in range(before):
                split.backend(batch)
        found.append((step(split, [batch]), len(forgotten)))
    assert [norm > 0 for norm, _ in found] == [True] * 4
    assert [count for _, count in found] == [1] * 4


@pytest.mark.parametrize("lora", [None, LoRA(rank=16)], ids=["full", "lora"])
def test_stage_3_has_the_models_own_limits(path: str, lora: LoRA | None) -> None:
    """Of 32 widths: a layer has 2 x 32 x 32 and 2 x 32 x 16 in its attention, 3 x 32 x 48 in its MLP and 2 norms; the head
    has 259 x 32."""
    engine = build(path, "float32", 3, lora=lora)
    layer, head = 2 * 1024 + 2 * 512 + 3 * 1536 + 64, 259 * 32
    zero = engine.backend._config.zero_config
    if lora is not None:  # on q and o 2 x 16 x 64, on k and v 2 x 16 x 48, in the MLP 3 x 16 x 80
        layer += 2 * 1024 + 2 * 768 + 3 * 1280
    assert zero.prefetch_bucket_size == layer and zero.max_reuse_distance == 2 * layer
    assert zero.max_live_parameters == 2 * layer + head and zero.param_persistence_threshold == 320
    kept = {name for name, weight in engine.module.named_parameters() if weight.ds_persist}
    assert kept == {name for name, weight in engine.module.named_parameters() if weight.ds_numel <= 320}
    assert len(engine.backend.optimizer.persistent_parameters) == len(kept) == (5 if lora is None else 9)


class HostAdam(torch.optim.AdamW):
    """In the place of DeepSpeed's own, which is compiled at its first use."""

    def __init__(self, parameters: Any, adamw_mode: bool, **constants: Any) -> None:
        super().__init__(parameters, **constants)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("stage", "offload"), [(0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]
)
def test_the_first_step_is_adams_first_and_gradients_add_up_in_float32(
    path: str, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str, offload: bool
) -> None:
    """Adam's first step is the rate for every weight, whatever its gradient (arXiv 1412.6980, section 2.1). Of a gradient g
    and 16 of g / 1024 the sum is 1.015625 g; in bfloat16 each of the 16 is less than half a place of g's last digit."""
    monkeypatch.setattr("deepspeed.ops.adam.DeepSpeedCPUAdam", HostAdam)
    engine = build(path, precision, stage, offload_optimizer=offload)
    batch = answers_of(20)
    before = {name: weight.float().clone() for name, weight in engine.weights()}
    once = step(engine, [batch], rate=1.0)
    moved = torch.cat([(weight.float() - before[name]).abs().flatten() for name, weight in engine.weights()])
    assert float(moved.median()) == pytest.approx(1.0, abs=0.01)

    def norm(*shares: float) -> float:
        """Of a gradient in so many micro-batches; the weights stand still."""
        losses = (engine.backend(batch).mean() * share for share in shares)
        found = engine.step(losses, len(shares), 0.0, ["a"], Sums(()))[0]
        if offload:  # by which DeepSpeed clips
            assert float(engine.backend.get_global_grad_norm()) == pytest.approx(found, rel=1e-2)
        return found

    assert once > 0
    assert norm(1.0, *[2**-10] * 16) / norm(1.0) == pytest.approx(1.015625, abs=1e-4)
    assert norm(0.5, 0.25, 0.25) / norm(1.0) == pytest.approx(1.0, abs=1e-4), (
        "nothing is left of the step before"
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_that_is_on_the_host_stays_there(
    path: str, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """When the ranks leave the GPU, DeepSpeed notes what goes, and brings that back to the GPU."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

    monkeypatch.setattr("deepspeed.ops.adam.DeepSpeedCPUAdam", HostAdam)
    monkeypatch.setattr(host_memory, "pinned_like", torch.empty_like)
    engine = build(path, "bfloat16", stage, offload_optimizer=True)
    assert step(engine, [answers_of(20), answers_of(9)]) > 0
    engine.device = torch.device("meta")
    engine.offload()
    gone = engine.backend.optimizer.offloaded_states
    assert State.lp_params in gone and not {State.hp_params, State.optim_states} & gone


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_policy_that_left_its_gpu_learns_on_as_one_that_stayed(
    path: str, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str
) -> None:
    """And takes host memory once, DeepSpeed's own and ours."""
    from deepspeed.accelerator import get_accelerator

    taken: list[int] = []

    def pinned_like(tensor: torch.Tensor) -> torch.Tensor:
        taken.append(tensor.nbytes)
        return torch.empty_like(tensor)

    def pin_memory(tensor: torch.Tensor, **_: Any) -> torch.Tensor:
        taken.append(tensor.nbytes)
        return tensor

    restore = host_memory.HostMemory.restore
    monkeypatch.setattr(host_memory, "pinned_like", pinned_like)
    monkeypatch.setattr(get_accelerator(), "pin_memory", pin_memory)
    monkeypatch.setattr(host_memory.HostMemory, "restore", lambda own, these, _: restore(own, these, "cpu"))
    stayed, moved = build(path, precision, stage), build(path, precision, stage)
    batches, turns = [answers_of(20, 5), answers_of(9)], []
    for _ in range(4):
        moved.device = torch.device("meta")
        moved.offload()
        moved.reload()
        moved.device = torch.device("cpu")
        turns.append(len(taken))
        assert step(moved, batches) == step(stayed, batches)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(moved.weights(), stayed.weights(), strict=True))
    assert turns[1] == turns[3], "host memory was taken again"
    parameters = sum(weight.numel() for _, weight in stayed.weights())
    # Weights, two moments; masters but where nothing is split in float32; at stage 3 a buffer of gradients.
    size, masters = (2 if precision == "bfloat16" else 4), (4 if stage or precision == "bfloat16" else 0)
    held = size + 8 + masters + (4 if stage == 3 else 0)
    assert sum(taken) == pytest.approx(parameters * held, rel=0.01)


def test_a_machine_that_cannot_compile_the_hosts_adam_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(builder: Any, verbose: bool) -> None:
        raise TypeError("expected str, not NoneType")  # what it makes of no CUDA_HOME

    monkeypatch.setattr("deepspeed.ops.op_builder.CPUAdamBuilder.load", load)
    worker = TrainWorker(0, 1, 0)
    monkeypatch.setattr("ultramed_rl.actors.trainer.join_ranks", lambda *arguments: None)
    spec = EngineSpec("cpu", "bfloat16", TrainerGroup(offload_optimizer=True), Optimization())
    with pytest.raises(ValueError, match=r"offload_optimizer=.*NoneType.*CUDA_HOME"):
        worker.build(lambda: pytest.fail("a model was loaded"), Model(path="x"), spec, ("", 0))


def test_a_weight_that_no_loss_reaches_has_a_gradient_of_zeros(tmp_path: Path) -> None:
    """A single rank reduces nothing, and is otherwise as several are: its Adam has moments of every weight."""
    path = str(make_model(tmp_path, "llama"))
    spec = EngineSpec("cpu", "float32", TrainerGroup(zero_stage=0), BFLOAT16.training)
    engine = Engine(load_policy(path, "float32").train(), spec)
    reached, *others = engine.module.parameters()
    engine.backend.set_gradient_accumulation_boundary(True)
    engine.backend.backward(2.0 * reached.sum())
    assert reached.grad is not None and torch.equal(reached.grad, torch.full_like(reached, 2.0))
    assert others and all(p.grad is not None and not p.grad.any() for p in others)
