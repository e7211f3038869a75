"""The plan's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_run
from ultramed_rl.cluster.layout import PlanError, render_plan
from ultramed_rl.cluster.memory import (
    KNOWN,
    PROCESS_BYTES,
    count_parameters,
    resolve_architecture,
    training_bytes,
)
from ultramed_rl.cluster.plan import make_plan, needs_reference
from ultramed_rl.config import AnyConfig, load_any, parse_config
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.models import Model, native_bfloat16
from ultramed_rl.config.recipe import load_recipe, stage_config
from ultramed_rl.config.rounds import Training

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = sorted(CONFIGS.rglob("*.yaml"))
LLAMA_8B = KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"]


def gpu_run(**changes: Any) -> Any:
    """A run of 8B models on 8 GPUs."""
    base = {
        "policy__path": "meta-llama/Meta-Llama-3-8B-Instruct",
        "policy__precision": "bfloat16",
        "reward__path": "sfairXC/FsfairX-LLaMA3-RM-v0.1",
        "reward__precision": "bfloat16",
        "training__batch_size": 8,
        "training__gradient_checkpointing": True,
        "cluster": {
            "device": "cuda",
            "devices_per_node": 8,
            "policy": {"ranks": 8, "zero_stage": 3},
            "rollout": {"engines": 4, "tensor_parallel": 2},
        },
    }
    return parse_config(tiny_run(Path("/nowhere"), **{**base, **changes}))


def test_parameter_counts_are_exact() -> None:
    assert count_parameters(LLAMA_8B) == 8_030_261_248
    assert count_parameters(KNOWN["meta-llama/Meta-Llama-3-70B-Instruct"]) == 70_553_706_496
    assert count_parameters(KNOWN["HuggingFaceTB/SmolLM2-135M-Instruct"]) == 134_515_008


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(0, (2, 4, 12)), (1, (2, 4, 12 / 8)), (2, (2, 6 / 8, 12 / 8)), (3, (2 / 8, 4 / 8, 12 / 8))],
)
def test_zero_divides_what_its_stage_says(stage: int, expected: tuple[float, float, float]) -> None:
    model, training = Model(path="8b", precision="bfloat16"), Training(micro_batch_tokens=2048)
    group = TrainerGroup(ranks=8, zero_stage=stage)
    found, host = training_bytes(LLAMA_8B, model, group, training, "cuda", 1024)
    assert host == {}
    count = 8_030_261_248
    assert (found["weights"], found["gradients"], found["optimizer"]) == pytest.approx(
        tuple(count * e for e in expected), abs=1
    )


def test_ranks_that_share_a_micro_batch_divide_its_activations() -> None:
    """16,384 tokens of 4 ranks: a layer's input kept for each of 32 layers, one layer live, and a chunk of logits, which has
    2^27 / 128,256 = 1,046 tokens either way."""
    model, training = Model(path="8b", precision="bfloat16"), Training(micro_batch_tokens=16384)
    sizes = {
        k: training_bytes(
            LLAMA_8B, model, TrainerGroup(ranks=8, zero_stage=3, sequence_parallel=k), training, "cuda", 4096
        )[0]
        for k in (1, 4)
    }
    logits = 2 * 1046 * 128256 * 4
    layers = 16384 * 2 * (32 * 4096 + 12 * 4096 + 4 * 14336)
    assert sizes[1]["activations"] == layers + logits
    assert sizes[4]["activations"] == layers // 4 + logits
    assert {k: v for k, v in sizes[1].items() if k != "activations"} == {
        k: v for k, v in sizes[4].items() if k != "activations"
    }


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("policy", {"ranks": 6, "zero_stage": 3, "sequence_parallel": 6}),
        ("reference", {"replicas": 3, "sequence_parallel": 3}),
        ("reward", {"replicas": 6, "shard": True, "sequence_parallel": 6}),
    ],
)
def test_heads_that_ranks_cannot_share_are_refused(key: str, group: dict[str, Any]) -> None:
    rollout = {"engines": 2, "tensor_parallel": 2}
    with pytest.raises(
        ValueError, match=rf"cluster\.{key}\.sequence_parallel={group['sequence_parallel']}: .*\b32\b"
    ):
        make_plan(gpu_run(**{f"cluster__{key}": group, "cluster__rollout": rollout}))


def shipped(path: Path) -> list[AnyConfig]:
    """The runs that a file under configs/ describes: one, or a recipe's stages."""
    if yaml.safe_load(path.read_text()).get("type") != "recipe":
        return [load_any(path)]
    recipe = load_recipe(path)
    return [stage_config(recipe, name, {}) for name in recipe.stages]


def expected_roles(config: Any) -> set[str]:
    """For a config with at most one reward model, and one that judges."""
    if config.type == "data":
        return {"rollout"} if config.engines else set()
    if config.type == "online":
        own = {"policy", "rollout", *(["reference"] if needs_reference(config) else [])}
        own |= {"judge"} if config.evaluation.models else set()
    else:
        own = {"rollout"} if config.type in ("contrasts", "evaluate") else {"trainer"}
    if config.type == "reward_bench":
        return {"reward"}
    scores = config.type in ("online", "evaluate") and config.reward and config.reward.paths
    return {*own, "reward"} if scores else own


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_presets_fit_their_nodes(path: Path) -> None:
    for config in shipped(path):
        plan = make_plan(config)
        assert plan.peak_bytes <= plan.limit_bytes
        roles = {role.role for role in plan.roles}
        assert roles == expected_roles(config)
        assert all(role in render_plan(plan) for role in roles)


@pytest.mark.parametrize(
    ("given", "tokens", "again"), [(None, 8192, 2), (None, 16384, 18), (32, 8192, 32), (5, 8192, 5)]
)
def test_as_few_layers_are_computed_again_as_leave_room(given: Any, tokens: int, again: int) -> None:
    """Of 80 GiB 92 %, less 4 processes' contexts, are 74.73 GB. Stage 3 on 8 ranks takes 18 / 8 bytes a parameter, 18.07 GB; 2.92 in
    buffers of 5e8 + 2 x 218,112,000 + 525,336,576 numbers, and 1.07 of logits. A layer at 8,192 tokens keeps 8192 x (12 x
    4096 + 4 x 14336) x 2 = 1.745 GB, its input alone 0.067: 30 whole ones and 2 inputs fit into the 52.67 GB that are left."""
    changes = {"training__checkpointed_layers": given, "training__micro_batch_tokens": tokens}
    policy = make_plan(gpu_run(**changes)).roles[1]
    assert policy.role == "policy" and policy.recomputed == again
    inputs, whole = tokens * 4096 * 2, tokens * (12 * 4096 + 4 * 14336) * 2
    logits = 2 * (2**27 // 128256) * 128256 * 4
    kept = again * inputs + max(1, 32 - again) * whole
    assert policy.bytes_per_device["activations"] == kept + logits


def test_too_little_memory_shows_the_arithmetic_and_the_fix() -> None:
    with pytest.raises(PlanError, match=r"policy: .*15\.0 \+ .*29\.9 \+ .*89\.7 .*zero_stage"):
        make_plan(gpu_run(cluster__policy={"ranks": 8, "zero_stage": 0}))


def test_what_waits_in_host_memory_is_counted_and_refused_where_it_is_too_much() -> None:
    """Roles that take turns take along what they keep: weights 2 bytes a parameter, and the policy at stage 3 masters and
    moments 12 and the gradients' buffer 4. Engines keep weights where no policy brings them: before there is one, or of a
    base model. Where each has its own GPUs, only what is kept on the host by their settings."""
    count = 8_030_261_248
    held = (2 + 12 + 4) + 2 + 2  # the policy's 8 ranks, reference, reward model
    plan = make_plan(gpu_run())
    assert plan.host_bytes == pytest.approx(held * count + (4 + 8 + 1 + 1) * PROCESS_BYTES, abs=100)
    engines = 4 * 2  # of two GPUs each
    own = {"train": {"learning_rate": 1e-5, "batch_size": 8}, "precision": "bfloat16"}
    plan = make_plan(gpu_run(reward=own, reward__path=None))
    assert plan.host_bytes == pytest.approx((held + engines) * count + 14 * PROCESS_BYTES, abs=100)
    kept = {}
    for sync in ("merged", "adapter"):
        lora = {"policy__lora": {"sync": sync}, "cluster__policy__zero_stage": 2}
        kept[sync] = make_plan(gpu_run(**lora)).host_bytes
    assert kept["adapter"] - kept["merged"] == pytest.approx(engines * count, abs=100)
    with pytest.raises(
        PlanError, match=r"host_memory_gib=100 .*rollout 4 x 0\.9 \+ policy 8 x 17\.7 .* = 177\.1 GiB"
    ):
        make_plan(gpu_run(cluster__host_memory_gib=100))
    apart = {
        "device": "cuda",
        "devices_per_node": 8,
        "layout": "disaggregated",
        "policy": {"ranks": 2, "zero_stage": 3, "offload_optimizer": True},
        "rollout": {"engines": 2},
        "reference": {"replicas": 2, "shard": True},
        "reward": {"replicas": 1},
    }
    plan = make_plan(gpu_run(cluster=apart))
    assert plan.host_bytes == pytest.approx((16 + 4 + 2) * count + 7 * PROCESS_BYTES, abs=100)


def test_too_few_devices_shows_the_arithmetic() -> None:
    with pytest.raises(PlanError, match=r"cluster\.rollout: 5 .* x 2 .* = 10, .* 8 .* 1 x 8 = 8"):
        make_plan(gpu_run(cluster__rollout={"engines": 5, "tensor_parallel": 2}))
    with pytest.raises(PlanError, match=r"cluster\.policy: 8 .* x 1 .* = 8, .* 0 .* 1 x 8 = 8"):
        make_plan(gpu_run(cluster__layout="disaggregated"))


def test_engines_on_shared_gpus_need_a_policy_rank_on_each() -> None:
    few = {"ranks": 2, "zero_stage": 3, "offload_optimizer": True}
    with pytest.raises(PlanError, match=r"ranks=2: .* 8 .* 8\b"):
        make_plan(gpu_run(cluster__policy=few))
    plan = make_plan(gpu_run(cluster__policy=few, cluster__rollout={"engines": 1, "tensor_parallel": 2}))
    assert len({slot for role in plan.roles[:2] for member in role.members for slot in member.slots}) == 2


def test_engines_have_a_precision_of_their_own() -> None:
    def weights(**changes: Any) -> int:
        plan = make_plan(gpu_run(policy__precision="float32", cluster__device_memory_gib=1000, **changes))
        return next(role for role in plan.roles if role.role == "rollout").bytes_per_device["weights"]

    assert weights() == 2 * weights(cluster__rollout__precision="bfloat16")


def test_8_bits_halve_the_layers_of_engines() -> None:
    def weights(**changes: Any) -> int:
        plan = make_plan(gpu_run(**changes))
        return next(role for role in plan.roles if role.role == "rollout").bytes_per_device["weights"]

    outside = 2 * 128256 * 4096  # embeddings and head, of two bytes each as before
    assert weights() == 8_030_261_248  # half of two bytes each: an engine has two GPUs
    assert weights(cluster__rollout__quantization="fp8") == (8_030_261_248 + outside) // 2


def test_an_unknown_model_names_the_fix() -> None:
    with pytest.raises(ValueError, match=r"policy\.path='who/knows': .*policy\.architecture"):
        resolve_architecture("who/knows", None, "policy")


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_disaggregated_roles_never_share_a_device(
    engines: int, parallel: int, ranks: int, references: int, rewards: int
) -> None:
    cluster = {
        "device": "cuda",
        "nodes": 4,
        "devices_per_node": 8,
        "layout": "disaggregated",
        "policy": {"ranks": ranks, "zero_stage": 3, "offload_optimizer": True},
        "rollout": {"engines": engines, "tensor_parallel": parallel},
        "reference": {"replicas": references},
        "reward": {"replicas": rewards},
    }
    plan = make_plan(gpu_run(cluster=cluster, training__batch_size=60))
    slots = [slot for role in plan.roles for member in role.members for slot in member.slots]
    assert len(slots) == len(set(slots)) == engines * parallel + ranks + references + rewards
    for role in plan.roles:
        for member in role.members:
            assert len({slot.node for slot in member.slots}) == 1


def test_cpu_roles_share_slots_and_add_up(tmp_path: Path) -> None:
    from tests.tiny import make_policy, make_reward

    make_policy(tmp_path / "policy")
    make_reward(tmp_path / "reward")
    plan = make_plan(parse_config(tiny_run(tmp_path)))
    assert {m.slots[0] for r in plan.roles for m in r.members} == {
        r.members[0].slots[0] for r in plan.roles
    } | {plan.roles[1].members[1].slots[0]}
    single = sum(r.total_bytes * len(r.members) for r in plan.roles)
    assert plan.peak_bytes > single


def test_native_bfloat16_reads_the_cpu_flags(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("flags: avx512f avx512_vnni\n")
    assert not native_bfloat16(str(file))
    file.write_text("flags: avx512f avx512_bf16\n")
    assert native_bfloat16(str(file))


# -- judges on engines -------------------------------------------------------------------------------------

JUDGE = {"type": "judge", "engine": {"path": "meta-llama/Meta-Llama-3-8B-Instruct", "precision": "bfloat16"}}


def judged(**engine: Any) -> dict[str, Any]:
    return {**JUDGE, "engine": {**JUDGE["engine"], **engine}}


def test_a_judges_engines_are_a_role_beside_the_others_or_on_their_devices() -> None:
    alone = {"reward": {"terms": [judged(), {**judged(), "name": "again"}]}}
    colocated = make_plan(gpu_run(**alone))
    (role,) = [role for role in colocated.roles if role.role.startswith("judge_engine")]
    # 0.85 of the GPU: weights, and the cache what is left.
    assert sum(role.bytes_per_device.values()) == pytest.approx(0.85 * 80 * 2**30, rel=1e-6)
    assert [member.slots[0].index for member in role.members] == [0]
    layout = {"cluster__layout": "disaggregated", "cluster__policy": {"ranks": 4, "zero_stage": 3}}
    apart = make_plan(gpu_run(**alone, **layout, cluster__rollout={"engines": 2}))
    slots = [slot.index for role in apart.roles for member in role.members for slot in member.slots]
    assert sorted(slots) == list(range(len(slots))) and "judge_engine" in {r.role for r in apart.roles}


def test_a_judge_beside_a_reward_model_is_added_up_and_refused() -> None:
    """68 GiB of the engine, and 15 of the reward model's weights: on one GPU both are awake while answers are scored."""
    both = {"reward__terms": [judged()]}
    with pytest.raises(
        PlanError, match=r"judge_engine.*68\.0.*reward \d+\.\d \+ judge_engine 68\.0.*engine\.kv_cache_gib"
    ):
        make_plan(gpu_run(**both))
    make_plan(gpu_run(reward__terms=[judged(kv_cache_gib=20.0)]))
    judges = {"evaluation__judges": [judged(path="HuggingFaceTB/SmolLM2-135M-Instruct")]}
    make_plan(gpu_run(**judges))  # its turn is another


def test_two_different_judges_are_two_roles() -> None:
    small = judged(path="HuggingFaceTB/SmolLM2-135M-Instruct", kv_cache_gib=4.0)
    terms = [judged(kv_cache_gib=20.0), {**small, "name": "small"}]
    plan = make_plan(gpu_run(reward={"terms": terms}))
    assert [r.role for r in plan.roles if "judge" in r.role] == ["judge_engine", "judge_engine-2"]
