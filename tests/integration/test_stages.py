"""Offline stages and recipes on real Ray, DeepSpeed and vLLM; and the same ones with the driver killed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from typer.testing import CliRunner

from tests.tiny import tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config import PreferenceConfig, RewardConfig, SftConfig, parse_config
from ultramed_rl.records import Message
from ultramed_rl.stages.run import StageResult, run_stage

KINDS: dict[str, Any] = {"sft": SftConfig, "reward": RewardConfig, "preference": PreferenceConfig}
DRUGS = ("aspirin", "valium", "insulin", "codeine", "warfarin", "statins")
CPU = {"device": "cpu", "devices_per_node": 2, "device_memory_gib": 20.0}


# -- data and configs --------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def root(tiny_root: Path) -> Path:
    """The tiny models, chats in UltraMedical's format, and ranked answers of two categories."""
    chats, ranked = [], []
    for i in range(24):
        drug = DRUGS[i % 6]
        turns = [("human", f"What is {drug} {i}?"), ("gpt", f"{drug.title()} is drug {i}.")]
        if i % 3 == 0:
            turns += [("human", "Is it safe?"), ("gpt", "Ask a doctor.")]
        conversations = [{"from": role, "value": text} for role, text in turns]
        chats.append({"id": f"Exam,{i}", "type": "Exam", "conversations": conversations})
    for i in range(24):
        texts, question = ["yes yes yes", "so so", "0000 0000"], f"May I take {DRUGS[i % 6]} {i}?"
        scores = [2.0, 1.0, 0.0] if i % 4 else [2.0, 0.5, 0.5]
        order = [i % 3, (i + 1) % 3, (i + 2) % 3]  # that the best one stands first proves nothing
        answers = [texts[k] for k in order]
        ranked.append({"prompt": question, "answers": answers, "scores": [scores[k] for k in order]})
    write_rows(tiny_root / "chats.jsonl", chats)
    write_rows(tiny_root / "ranked.jsonl", ranked[:16])
    write_rows(tiny_root / "ranked-exam.jsonl", ranked[16:20])
    write_rows(tiny_root / "ranked-notes.jsonl", ranked[20:])
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": "yes yes"},
            ],
            "rejected": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": "no no"},
            ],
        }
        for row in ranked
    ]
    write_rows(tiny_root / "pairs.jsonl", pairs)
    return tiny_root


def stage(root: Path, kind: str, name: str, file: str, **changes: Any) -> dict[str, Any]:
    """A stage of one rank on the tiny policy; `changes` are dotted keys."""
    config: dict[str, Any] = {
        "type": kind,
        "run": {"name": name, "directory": str(root / "stages"), "seed": 7},
        "model": {"path": str(root / "policy"), "precision": "float32", "max_length": 128},
        "data": {"sources": [{"uri": str(root / file)}]},
        "training": {
            "learning_rate": 1.0e-3,
            "batch_size": 4,
            "micro_batch_tokens": 256,
            "gradient_checkpointing": False,
        },
        "cluster": {**CPU, "trainer": {"ranks": 1, "zero_stage": 0}},
        "tracking": {"wandb": "disabled"},
    }
    for key, value in changes.items():
        node = config
        *sections, last = key.split("__")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return config


def run(settings: dict[str, Any], *, resume: bool = False) -> StageResult:
    """In this process, on its Ray."""
    return run_stage(parse_config(settings, kind=KINDS[settings["type"]]), resume=resume)


def rows_of(run: Path, index: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if index in row]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(directory / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all stages of this process: the first one starts it."""
    import ray

    yield
    ray.shutdown()


# -- killed drivers ----------------------------------------------------------------------------------------


def start(command: str, config: Path, *extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ultramed_rl.cli", command, str(config), *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL the driver as soon as the condition holds."""
    wait_until(process, condition)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.001)


def kill_a_rank_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL one of the driver's training ranks as soon as the condition holds."""
    wait_until(process, condition)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if is_rank(p)]
    assert len(ranks) == 2, ranks
    ranks[1].kill()


def is_rank(process: psutil.Process) -> bool:
    try:
        return "".join(process.cmdline()).startswith("ray::PolicyWorker")
    except psutil.Error:
        return False


def write_config(settings: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


# -- supervised fine-tuning --------------------------------------------------------------------------------

SFT = {
    "data__held_out": 4,
    # Step 5 is between the states of 4 and 8, and the best weights of 3 are what 4 counts on.
    "training__max_steps": 10,
    "training__epochs": 2,
    "training__evaluate_every": 3,
    "training__save_every": 4,
    "training__keep": "best",
    "cluster__trainer": {"ranks": 2, "zero_stage": 2},
}


@pytest.fixture(scope="module")
def unbroken(root: Path, cluster: None) -> StageResult:
    """Fine-tuning with ZeRO-2 on two ranks."""
    return run(stage(root, "sft", "unbroken", "chats.jsonl", **SFT))


def test_fine_tuning_learns_and_leaves_a_model(unbroken: StageResult, root: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    figures = unbroken.metrics
    assert figures["samples"] == 20 and figures["steps"] == 10
    assert figures["loss_last"] < figures["loss_first"] - 0.5
    assert figures["held_out_loss"] < figures["start_held_out_loss"] - 0.5
    steps = rows_of(unbroken.directory, "step_index")
    assert [row["step_index"] for row in steps] == list(range(10))
    assert [row["evaluation_index"] for row in rows_of(unbroken.directory, "evaluation_index")] == [
        0,
        3,
        6,
        9,
        10,
    ]
    assert [row["samples"] for row in steps] == [4] * 10
    assert not (unbroken.directory / "states").exists() and not (unbroken.directory / "best").exists()

    assert unbroken.model == unbroken.directory / "model"
    model = AutoModelForCausalLM.from_pretrained(unbroken.model)
    tokenizer = AutoTokenizer.from_pretrained(unbroken.model)
    chat = [
        {"role": "user", "content": "What is aspirin 0?"},
        {"role": "assistant", "content": "Aspirin is drug 0."},
    ]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    losses = [model(input_ids=ids, labels=ids).loss.item()]
    losses.append(
        AutoModelForCausalLM.from_pretrained(root / "policy")(input_ids=ids, labels=ids).loss.item()
    )
    assert losses[0] < losses[1] - 0.5


@pytest.mark.slow
def test_killed_between_states_and_while_one_is_written(unbroken: StageResult, root: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = write_config(stage(root, "sft", "killed", "chats.jsonl", **SFT), root / "killed.yaml")
    killed = root / "stages" / "killed"
    metrics, states = killed / "metrics.jsonl", killed / "states"

    kill_when(start("sft", config), lambda: metrics.is_file() and '"step_index": 4,' in metrics.read_text())
    assert [p.name for p in states.glob("step-*.json")] == ["step-000000004.json"]
    kill_when(start("sft", config, "--resume"), lambda: any(states.glob(".tmp-step-000000008*")))
    assert [p.name for p in states.glob("step-*.json")] == ["step-000000004.json"], "killed too late"
    assert (killed / "best" / "step-000000003").is_dir(), "what the state of step 4 counts on"
    last = start("sft", config, "--resume")
    kill_a_rank_when(last, lambda: '"step_index": 8,' in metrics.read_text())
    output = finish(last)
    assert "resuming after step 4 of 10" in output
    assert "trainer: a rank died" in output and "starting again from the newest state" in output

    for index in ("step_index", "evaluation_index"):
        ours, theirs = rows_of(killed, index), rows_of(unbroken.directory, index)
        assert [row[index] for row in ours] == [row[index] for row in theirs]
        assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-5)
    expected, found = weights(unbroken.model), weights(killed / "model")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)
    assert {p.name for p in killed.iterdir()} == {
        ".lock",
        "config.yaml",
        "data",
        "data.json",
        "environment.json",
        "inputs.json",
        "metrics.jsonl",
        "model",
        "model.json",
        "status.json",
    }
    assert AutoModelForCausalLM.from_pretrained(killed / "model").num_parameters() > 0


def test_a_changed_config_is_refused_in_one_line(unbroken: StageResult, root: Path) -> None:
    again = stage(root, "sft", "unbroken", "chats.jsonl", **SFT)
    changed = {**again, "training": {**again["training"], "batch_size": 2}}
    with pytest.raises(ValueError, match=r"training\.batch_size: 4 -> 2") as caught:
        run(changed, resume=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="go on with it by --resume, or choose another run.name"):
        run(again)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_training_that_gets_worse_stops_early(root: Path, cluster: None, keep: str) -> None:
    """At this rate every step does harm. The best weights are those of the start."""
    changes = {
        "data__held_out": 4,
        "training__learning_rate": 1.0,
        "training__warmup": 0.0,
        "training__max_grad_norm": 100.0,
        "training__epochs": 10,
        "training__evaluate_every": 2,
        "training__save_every": 1,
        "training__patience": 1,
        "training__keep": keep,
    }
    result = run(stage(root, "sft", f"worse-{keep}", "chats.jsonl", **changes))
    evaluations = rows_of(result.directory, "evaluation_index")
    assert [row["evaluation_index"] for row in evaluations] == [0, 2] and result.metrics["steps"] == 2
    assert evaluations[1]["loss"] > evaluations[0]["loss"]
    begun, ended = weights(root / "policy"), weights(result.model)
    same = [torch.equal(ended[name], weight) for name, weight in begun.items()]
    assert all(same) if keep == "best" else not any(same)
    # The figures are those of the weights that were kept.
    assert result.metrics["held_out_loss"] == evaluations[0 if keep == "best" else 1]["loss"]
    assert result.metrics["start_held_out_loss"] == evaluations[0]["loss"]


# -- preferences -------------------------------------------------------------------------------------------

DPO = {
    "objective": {"type": "dpo", "beta": 0.1},
    "data__held_out": 4,
    "training__evaluate_every": 5,
}


@pytest.fixture(scope="module")
def preferred(root: Path, cluster: None) -> StageResult:
    return run(stage(root, "preference", "dpo", "pairs.jsonl", **DPO))


def test_the_start_is_its_own_reference(preferred: StageResult) -> None:
    first, *_, last = rows_of(preferred.directory, "evaluation_index")
    assert first["evaluation_index"] == 0 and last["evaluation_index"] == 5
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["implicit_margin"] == pytest.approx(0.0, abs=1e-4)
    assert last["accuracy"] == 1.0 and last["loss"] < first["loss"] - 0.05
    steps = rows_of(preferred.directory, "step_index")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[-1]["implicit_margin"] > steps[0]["implicit_margin"] + 0.1
    assert preferred.metrics["held_out_accuracy"] == 1.0
    assert not any("rollout_gap" in row for row in steps), "no engine sampled these answers"


def test_references_are_computed_once(preferred: StageResult, root: Path, cluster: None) -> None:
    """A stage that lost its model starts over from the references that it has, to the same weights."""
    import pyarrow.parquet as pq

    names = ("data", "reference.parquet", "reference_held_out.parquet")
    files = [preferred.directory / name for name in names]
    assert [pq.read_table(path).num_rows for path in files[1:]] == [20, 4]
    before, expected = [path.stat().st_mtime_ns for path in files], weights(preferred.model)
    losses = [row["loss"] for row in rows_of(preferred.directory, "step_index")]
    (preferred.directory / "model.json").unlink()
    again = run(stage(root, "preference", "dpo", "pairs.jsonl", **DPO), resume=True)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert [row["loss"] for row in rows_of(again.directory, "step_index")] == pytest.approx(losses, abs=1e-6)
    for name, weight in weights(again.model).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)


# -- a reward model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranked(root: Path, cluster: None) -> StageResult:
    sources = {
        "sources": [{"uri": str(root / "ranked.jsonl"), "category": "exam"}],
        "evaluation_sources": [
            {"uri": str(root / f"ranked-{name}.jsonl"), "category": name} for name in ("exam", "notes")
        ],
    }
    return run(stage(root, "reward", "reward", "", data=sources, training__epochs=3))


def test_a_reward_model_learns_to_rank(ranked: StageResult) -> None:
    first, last = rows_of(ranked.directory, "evaluation_index")
    assert ranked.metrics["samples"] == 16 and ranked.metrics["steps"] == 12
    assert last["loss"] < first["loss"] and last["accuracy"] > 0.8
    for name in ("accuracy", "accuracy_exam", "accuracy_notes", "length_accuracy", "length_accuracy_exam"):
        assert ranked.metrics[f"held_out_{name}"] == last[name]
        assert ranked.metrics[f"start_held_out_{name}"] == first[name]
    # Of each four prompts one has a tie: 3 + 3 + 3 + 2 pairs in either category.
    assert last["accuracy"] == pytest.approx((last["accuracy_exam"] + last["accuracy_notes"]) / 2)
    assert "accuracy_exam" not in rows_of(ranked.directory, "step_index")[0], (
        "there is one category in training"
    )


def test_transformers_read_the_same_rewards(ranked: StageResult) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    from ultramed_rl.actors.scorer import RewardWorker
    from ultramed_rl.learning.packing import AnswerGroup
    from ultramed_rl.models.tokenizer import ChatTokenizer

    path, question = str(ranked.model), Message(role="user", content="May I take valium?")
    answers = ["yes yes yes", "so so", "0000 0000", "no"]
    own = ChatTokenizer(path)
    group = AnswerGroup(own.encode_chat((question,)), [[*own.encode_text(a), own.end_id] for a in answers])
    worker = RewardWorker(0, "cpu", "float32", 1000)
    worker.load(path)
    rewards = [number for batch in worker.score([group]) for *_, number in batch]
    assert rewards[0] > rewards[1] > rewards[2]

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    with torch.no_grad():
        ids = [torch.tensor([[*group.prompt, *answer]]) for answer in group.answers]
        assert [model(input_ids=x).logits.item() for x in ids] == pytest.approx(rewards, abs=1e-4)
    chats = [[question, {"role": "assistant", "content": answer}] for answer in answers]
    # The template ends a turn with a line break, at which no answer that was sampled ends.
    texts = [tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("\n") for chat in chats]
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none")
    assert [found["score"] for found in classify(texts)] == pytest.approx(rewards, abs=1e-4)
    together = [found["score"] for found in classify(texts, batch_size=4)]
    assert together == pytest.approx(rewards, abs=1e-4), "padding changed what is read"


# -- bad input ---------------------------------------------------------------------------------------------


def test_a_finished_stage_is_read_back_without_ray(unbroken: StageResult, root: Path) -> None:
    import ray

    ray.shutdown()
    before = (unbroken.model / "model.safetensors").stat().st_mtime_ns
    # As a run leaves them that is killed after it has written its model.
    (unbroken.directory / "states" / "step-000000008").mkdir(parents=True)
    again = run(stage(root, "sft", "unbroken", "chats.jsonl", **SFT), resume=True)
    assert not ray.is_initialized()
    assert again == unbroken
    assert (again.model / "model.safetensors").stat().st_mtime_ns == before
    assert not (unbroken.directory / "states").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data__sources": [{"uri": "EMPTY"}]}, "empty.jsonl"),
        ({"data__sources": [{"uri": "/no/such.jsonl"}]}, "/no/such.jsonl"),
        ({"data__held_out": 24}, "held_out"),
        ({"model__max_length": 40}, "over model.max_length=40; raise that, or set data.too_long=drop"),
        ({"model__max_length": 10, "data__too_long": "drop"}, "nothing left for training"),
        ({"model__path": "/no/such/model"}, "model '/no/such/model': no config.json there"),
    ],
)
def test_bad_input_is_one_line_before_ray_starts(root: Path, change: dict[str, Any], says: str) -> None:
    """And it can be mended under the same name."""
    import ray

    ray.shutdown()
    empty = write_rows(root / "empty.jsonl", [])
    if change.get("data__sources") == [{"uri": "EMPTY"}]:
        change = {"data__sources": [{"uri": str(empty)}]}
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        run(stage(root, "sft", "bad", "chats.jsonl", **change))
    assert "\n" not in str(caught.value)
    assert not ray.is_initialized()
    assert not (root / "stages" / "bad" / "config.yaml").exists()


def test_a_config_of_another_type_names_its_command(root: Path) -> None:
    config = write_config(stage(root, "sft", "other", "chats.jsonl"), root / "other.yaml")
    found = CliRunner().invoke(app, ["reward", str(config)])
    assert found.exit_code == 2
    (line,) = found.output.splitlines()
    assert line.startswith(f"{config}: type='sft': ") and "ultramed-rl sft" in line


# -- a recipe ----------------------------------------------------------------------------------------------


def recipe(root: Path) -> dict[str, Any]:
    online = tiny_run(root, policy__path="stage://preference", reward__path="stage://reward")
    online |= {"run": {"rounds": 1}, "type": "online"}
    online["cluster"]["policy"] = {"ranks": 1, "zero_stage": 0}
    model = {"path": "stage://sft", "precision": "float32", "max_length": 128}
    trainer = {"trainer": {"ranks": 1, "zero_stage": 0}}
    training = {"learning_rate": 1.0e-3, "micro_batch_tokens": 256, "gradient_checkpointing": False}

    def offline(kind: str, data: str, steps: int, **sections: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "model": model,
            "data": {"sources": [{"uri": str(root / data)}]},
            "training": {**training, "batch_size": 4, "max_steps": steps, "epochs": 10},
            "cluster": trainer,
            **sections,
        }

    return {
        "type": "recipe",
        "run": {"name": "whole", "directory": str(root / "recipes"), "seed": 7},
        "shared": {"cluster": CPU, "tracking": {"wandb": "disabled"}},
        "stages": {
            "sft": offline("sft", "chats.jsonl", 3, model={**model, "path": str(root / "policy")}),
            "reward": offline("reward", "ranked.jsonl", 8),
            "preference": offline("preference", "pairs.jsonl", 3, objective={"type": "dpo"}),
            "online": online,
            "evaluate": {
                "type": "evaluate",
                "policies": {"start": str(root / "policy"), "online": "stage://online"},
                "policy": {"precision": "float32", "max_length": 128},
                "prompts": online["prompts"],
                "sampling": {"samples": 2, "temperature": 1.0, "max_new_tokens": 16},
                "reward": {"path": "stage://reward", "precision": "float32", "micro_batch_tokens": 512},
                "bootstrap": 200,
                "cluster": {"rollout": online["cluster"]["rollout"]},
            },
        },
    }


@pytest.mark.slow
def test_a_recipe_killed_in_its_second_stage_goes_on(root: Path) -> None:
    import ray

    ray.shutdown()  # two of them at a time are too many for a small machine
    config = write_config(recipe(root), root / "recipe.yaml")
    folder = root / "recipes" / "whole"
    metrics = folder / "reward" / "metrics.jsonl"
    kill_when(
        start("recipe", config), lambda: metrics.is_file() and '"step_index": 1,' in metrics.read_text()
    )
    assert (folder / "sft" / "model.json").is_file() and not (folder / "reward" / "model.json").exists()
    files = sorted((folder / "sft" / "model").iterdir())
    before = [path.stat().st_mtime_ns for path in files]

    again = CliRunner().invoke(app, ["recipe", str(config)])
    assert again.exit_code == 1
    assert "holds stages already (sft, reward); go on with --resume" in again.output.splitlines()[-1]
    output = finish(start("recipe", config, "--resume"))
    assert "sft: finished before" in output
    assert [path.stat().st_mtime_ns for path in files] == before
    assert [row["step_index"] for row in rows_of(folder / "reward", "step_index")] == list(range(8))
    for name in ("sft", "reward", "preference"):
        assert (folder / name / "model" / "model.safetensors").is_file()
    saved = yaml.safe_load((folder / "online" / "config.yaml").read_text())
    assert saved["policy"]["path"] == str(folder / "preference" / "model")
    assert saved["reward"]["path"] == str(folder / "reward" / "model")
    assert (folder / "online" / "rounds" / "000" / "commit.json").is_file()

    policies = json.loads((folder / "evaluate" / "results.json").read_text())["policies"]
    assert set(policies) == {"start", "online"}
    assert (policies["start"]["change"], policies["start"]["win_rate"]) == (0.0, 0.5)
    low, high = policies["online"]["change_low"], policies["online"]["change_high"]
    assert low <= policies["online"]["change"] <= high
    difference = policies["online"]["reward_mean"] - policies["start"]["reward_mean"]
    assert policies["online"]["change"] == pytest.approx(difference)
