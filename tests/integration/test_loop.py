"""Two rounds on real Ray, vLLM and DeepSpeed; and the same rounds with the driver killed on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.learning import check_trained_alike
from tests.tiny import make_reward, tiny_run


def start(config_file: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ultramed_rl.cli", "run", str(config_file), *extra]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def write_config(root: Path, name: str, **changes: Any) -> Path:
    """The tiny run with its steps side by side, as they are where roles have devices of their own."""
    settings = tiny_run(root, run__name=name, **{"cluster__sequential_phases": False, **changes})
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def pairs_of(run: Path, index: int) -> list[dict[str, Any]]:
    """A round's pairs in the order of its prompts, in which they are learnt; in their files they stand as answers came."""
    folder = run / "rounds" / f"{index:03d}"
    prompts = pq.read_table(folder / "prompts.parquet")["prompt_id"].to_pylist()
    rows = pq.read_table(folder / "pairs.parquet").to_pylist()
    return sorted(rows, key=lambda row: prompts.index(row["prompt_id"]))


@pytest.fixture(scope="module")
def unbroken(tiny_root: Path) -> Path:
    """A finished run with ZeRO-2 on two ranks."""
    output = finish(start(write_config(tiny_root, "unbroken")))
    assert "The held-out reward" in output
    return tiny_root / "runs" / "unbroken"


def test_a_run_leaves_complete_rounds(unbroken: Path) -> None:
    from transformers import AutoModelForCausalLM

    for index in range(2):
        folder = unbroken / "rounds" / f"{index:03d}"
        completions = pq.read_table(folder / "scored.parquet").to_pylist()
        assert len(completions) == 8 * 4
        assert {row["policy_version"] for row in completions} == {index}
        for pair in pairs_of(unbroken, index):
            assert pair["rewards"][0] > pair["rewards"][-1]
            assert pair["chosen"] != pair["rejected"]
            assert [m["role"] for m in pair["prompt"]] == ["user"]
        assert AutoModelForCausalLM.from_pretrained(folder / "checkpoint").num_parameters() > 0
    prompts = [
        {row["prompt_id"] for row in pq.read_table(unbroken / f"rounds/00{i}/prompts.parquet").to_pylist()}
        for i in range(2)
    ]
    assert not prompts[0] & prompts[1], "a prompt was used twice"
    metrics = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    rounds = [m for m in metrics if "eval_win_rate" in m]
    assert [m["round"] for m in rounds] == [0, 1]
    assert abs(rounds[0]["kl_to_reference"]) < 1e-2, "in round 0 the policy is the reference"
    assert rounds[1]["kl_to_reference"] != 0


def test_zero3_learns_the_same(unbroken: Path, tiny_root: Path) -> None:
    config = write_config(tiny_root, "zero3", cluster__policy={"ranks": 2, "zero_stage": 3})
    finish(start(config))
    run = tiny_root / "runs" / "zero3"
    assert [p["group_id"] for p in pairs_of(run, 0)] == [p["group_id"] for p in pairs_of(unbroken, 0)]
    check_trained_alike(weights_of(run, 0), weights_of(unbroken, 0), "zero3")
    losses = [
        [
            json.loads(line)["loss"]
            for line in (r / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for r in (run, unbroken)
    ]
    assert len(losses[0]) == len(losses[1]) >= 2
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-3)


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool], delay: float = 0.0) -> None:
    """SIGKILL the driver as soon as the condition holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the phase never came"
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def said(run: Path, index: int) -> list[tuple[str, list[list[int]]]]:
    """A round's pairs: whose they are, and the tokens of both answers."""
    return [(row["group_id"], [c["token_ids"] for c in row["completions"]]) for row in pairs_of(run, index)]


@pytest.mark.slow
def test_killed_in_generation_and_in_training_it_gives_the_same_pairs(
    unbroken: Path, tiny_root: Path
) -> None:
    config = write_config(tiny_root, "killed", cluster__sequential_phases=True)
    run = tiny_root / "runs" / "killed"
    done = lambda name: (run / "rounds" / name).exists()

    kill_when(start(config), lambda: done("000/prompts.json"))
    assert not done("000/completions.json"), "killed too late to be in generation"
    kill_when(start(config, "--resume"), lambda: done("001/reference.json"), delay=0.05)
    assert not done("001/checkpoint.json"), "killed too late to be in training"
    finish(start(config, "--resume"))

    for index in range(2):
        assert said(run, index) == said(unbroken, index)
        assert not done(f"{index:03d}/completions.json"), "what the scored answers hold already"
        assert_same_weights(run, unbroken, index)
    assert steps_of(run) == steps_of(unbroken), "a step was logged twice, or not at all"


def test_bad_resumes_are_one_clear_line(unbroken: Path, tiny_root: Path) -> None:
    config = tiny_root / "unbroken.yaml"
    again = start(config)
    output, _ = again.communicate(timeout=100)
    assert again.returncode == 1 and "--resume" in output.splitlines()[-1]
    changed = start(config, "--resume", "objective.beta=0.2")
    output, _ = changed.communicate(timeout=100)
    assert changed.returncode == 1 and "objective.beta: 0.1 -> 0.2" in output


def steps_of(run: Path) -> list[tuple[int, int]]:
    """Round and number of every optimizer step that was logged."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return sorted((row["round"], row["step"]) for row in rows if "loss" in row)


def assert_same_weights(run: Path, whole: Path, index: int) -> None:
    found, expected = weights_of(run, index), weights_of(whole, index)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)


def weights_of(run: Path, index: int) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "rounds" / f"{index:03d}" / "checkpoint" / "model.safetensors")


@pytest.mark.slow
def test_every_other_choice_resumes_too(tiny_root: Path) -> None:
    """KTO, an averaged reference, a kept optimizer, near-low pairs, two engines on devices of their own that answer while the
    policy learns, two reward models whose disagreement counts against an answer, and a term beside them."""
    make_reward(tiny_root / "reward-2", seed=5)
    choices: dict[str, Any] = {
        "reward": {
            "ensemble": {
                "paths": [str(tiny_root / "reward"), str(tiny_root / "reward-2")],
                "combine": "uncertainty",
                "penalty": 0.5,
            },
            "terms": [{"type": "length", "free": 8, "weight": 0.01}],
            "precision": "float32",
            "micro_batch_tokens": 512,
        },
        "run__overlap": 1,
        "objective": {"type": "kto", "beta": 0.1},
        "reference__update": "ema",
        "training__optimizer_state": "keep",
        "training__schedule_scope": "run",
        "pairs": {"rejected": "near_low", "max_length_ratio": 20.0},
        "cluster__layout": "disaggregated",
        "cluster__devices_per_node": 6,
        "cluster__policy": {"ranks": 1, "zero_stage": 1},
        "cluster__rollout": {"engines": 2, "max_num_seqs": 32, "kv_cache_gib": 0.1, "enforce_eager": True},
    }
    run = check_resume(tiny_root, "choices", choices)
    for row in pq.read_table(run / "rounds" / "000" / "scored.parquet").to_pylist():
        terms = dict(row["terms"])
        members = [terms["model_1"], terms["model_2"]]
        # Of two numbers the mean minus half the population's deviation: a quarter of the gap below the middle.
        ensemble = fmean(members) - 0.25 * abs(members[0] - members[1])
        assert terms["length"] == -max(0, len(row["token_ids"]) - 8)
        assert row["reward"] == pytest.approx(ensemble + 0.01 * terms["length"], abs=1e-6)


def check_resume(tiny_root: Path, name: str, choices: dict[str, Any]) -> Path:
    """A run killed after its first round gives the pairs and the weights of an unbroken one."""
    finish(start(write_config(tiny_root, name, **choices)))
    config = write_config(tiny_root, f"{name}-killed", **choices)
    whole, killed = tiny_root / "runs" / name, tiny_root / "runs" / f"{name}-killed"
    kill_when(start(config), lambda: (killed / "rounds" / "000" / "commit.json").exists())
    finish(start(config, "--resume"))

    for index in range(2):
        assert said(killed, index) == said(whole, index)
        assert_same_weights(killed, whole, index)
    return whole


@pytest.mark.slow
def test_a_lora_policy_is_its_own_reference(tiny_root: Path) -> None:
    """Listwise groups on adapters: no reference actors, merged checkpoints, and adapters to go on from."""
    choices = {
        "policy__lora": {"rank": 4, "alpha": 8},
        "objective": {"type": "nca", "beta": 0.1},
        "training__learning_rate": 1e-2,
    }
    run = check_resume(tiny_root, "lora", choices)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rounds = [r for r in rows if "kl_to_reference" in r]
    assert abs(rounds[0]["kl_to_reference"]) < 1e-3, "round 0 samples from the reference itself"
    assert abs(rounds[1]["kl_to_reference"]) > 1e-3
    # What is trained is what was sampled: merged weights in the engine, adapters in the policy.
    assert all(r["rollout_gap"] < 1e-3 for r in rounds)
    assert any(len(p["completions"]) > 2 for p in pairs_of(run, 0))
    assert (run / "rounds" / "001" / "checkpoint" / "adapter" / "adapter_model.safetensors").is_file()


def test_engines_sample_from_the_4_bit_policy_from_the_first_round_on(tiny_root: Path) -> None:
    choices = {"run__rounds": 1, "policy__lora": {"rank": 4, "alpha": 8, "quantize": "nf4"}}
    finish(start(write_config(tiny_root, "nf4", **choices)))
    run = tiny_root / "runs" / "nf4"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (whole,) = [row for row in rows if "kl_to_reference" in row]
    assert whole["rollout_gap"] < 1e-3
    # What a replaced engine would start with is on disk, and isn't the base model.
    base, start_policy = (
        load_file(p / "model.safetensors") for p in (tiny_root / "policy", run / "initial/policy")
    )
    assert any(not torch.equal(weight, base[name]) for name, weight in start_policy.items() if name in base)


def test_a_policy_with_its_own_devices_learns_while_engines_generate(tiny_root: Path) -> None:
    choices: dict[str, Any] = {
        "run__rounds": 1,
        "prompts__per_round": 16,
        "training__overlap_training": True,
        "cluster__layout": "disaggregated",
        "cluster__devices_per_node": 4,
        "cluster__policy": {"ranks": 1, "zero_stage": 0},
        "cluster__rollout__max_num_seqs": 8,  # so that prompts are answered two at a time
    }
    finish(start(write_config(tiny_root, "early", **choices)))
    run = tiny_root / "runs" / "early"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (whole,) = [row for row in rows if "early_steps" in row]
    steps = [row for row in rows if "grad_norm" in row]
    assert 1 <= whole["early_steps"] <= whole["policy_steps"] == len(steps)
    pairs = pairs_of(run, 0)
    assert [row["samples"] for row in steps] == [len(pairs[i : i + 4]) for i in range(0, len(pairs), 4)]
    # Engines kept on sampling from the policy that the round began with.
    assert steps[0]["rollout_gap"] < 1e-3
    scored = pq.read_table(run / "rounds" / "000" / "scored.parquet").to_pylist()
    assert len(scored) == 64 and {row["policy_version"] for row in scored} == {0}


def test_an_objective_without_a_reference_has_none(tiny_root: Path) -> None:
    choices = {"objective": {"type": "simpo"}, "run__rounds": 1, "cluster__policy": {"ranks": 1}}
    settings = tiny_run(tiny_root, run__name="simpo", **choices)
    del settings["reference"]
    # Rules alone can score: there is no reward model in this run.
    settings["reward"] = {
        "terms": [{"type": "format", "must_match": "[aeiou]"}, {"type": "length", "free": 4, "weight": 0.1}]
    }
    config = tiny_root / "simpo.yaml"
    config.write_text(yaml.safe_dump(settings))
    finish(start(config))
    phases = {p.stem for p in (tiny_root / "runs" / "simpo" / "rounds" / "000").glob("*.json")}
    assert "checkpoint" in phases and "reference" not in phases
    rows = pq.read_table(tiny_root / "runs/simpo/rounds/000/scored.parquet").to_pylist()
    assert {tuple(sorted(dict(row["terms"]))) for row in rows} == {("format", "length")}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policy__path": "/no/such/model"}, "model '/no/such/model': no config.json there"),
        ({"reward__path": "/no/such/model"}, "model '/no/such/model': no config.json there"),
        ({"prompts__per_round": 100}, "prompts.per_round"),
        ({"prompts__held_out": 24}, "held_out"),
        ({"prompts__max_prompt_tokens": 30}, "max_prompt_tokens=30"),
        ({"prompts__sources": [{"type": "question", "uri": "/no/such.jsonl"}]}, "/no/such.jsonl"),
    ],
)
def test_bad_input_is_found_before_anything_starts(
    tiny_root: Path, change: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultramed_rl import parse_config, run

    started: list[object] = []
    monkeypatch.setattr("ultramed_rl.workers.deployment.connect", started.append)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        run(parse_config(tiny_run(tiny_root, run__name="bad", **change)))
    assert "\n" not in str(caught.value) and not started
    assert not (tiny_root / "runs" / "bad").exists()
