"""What stands behind a config's names: models by sampled blocks, hub ids by their commit, rows by their bytes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.tiny import CHATML, make_policy, tiny_run
from ultramed_rl.cluster.inputs import describe_inputs, describe_model, describe_rendering
from ultramed_rl.config import parse_config
from ultramed_rl.kinds import KINDS
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Message
from ultramed_rl.stages import reward_bench
from ultramed_rl.stages.contrasts import make_contrasts
from ultramed_rl.stages.data.run import make_data
from ultramed_rl.stages.evaluate import evaluate_policies
from ultramed_rl.stages.reward_bench import bench_reward
from ultramed_rl.stages.run import run_stage
from ultramed_rl.store.digests import digest_path, digest_sampled

MIB = 2**20


def test_a_model_is_the_same_wherever_and_whenever_it_lies(tmp_path: Path) -> None:
    first = make_policy(tmp_path / "a")
    second = shutil.copytree(first, tmp_path / "b", copy_function=shutil.copyfile)
    (second / "README.md").write_text("a card")
    (second / "runs").mkdir()
    assert describe_model(str(first)) == describe_model(str(second)) != ""


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_each_file_of_a_model_counts(tmp_path: Path, name: str) -> None:
    model = make_policy(tmp_path / "a")
    before = describe_model(str(model))
    (model / name).write_bytes((model / name).read_bytes() + b" ")
    assert describe_model(str(model)) != before


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(8 * MIB + 1, 20 * MIB), at=st.floats(0, 1))
def test_a_change_of_a_thirtieth_of_a_large_file_is_seen_wherever_it_is(
    tmp_path: Path, size: int, at: float
) -> None:
    """64 blocks, one in each 64th: whatever covers two 64ths covers a block."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(size))
    before = digest_sampled(file)
    part = size // 64
    with file.open("r+b") as opened:
        opened.seek(int(at * (size - 2 * part)))
        opened.write(b"\1" * (2 * part))
    assert digest_sampled(file) != before


@pytest.mark.parametrize("size", [0, 1, 2**16, 8 * MIB])
def test_every_byte_of_a_small_file_counts(tmp_path: Path, size: int) -> None:
    file = tmp_path / "weights"
    seen = set()
    for place in {0, size // 3, size - 1} - {-1}:
        content = bytearray(size)
        if size:
            content[place] = 1
        file.write_bytes(content)
        seen.add(digest_sampled(file))
    assert len(seen) == len({0, size // 3, size - 1} - {-1})


def test_the_ends_of_a_large_file_count_and_its_size(tmp_path: Path) -> None:
    """A head is the last that a classifier's file holds."""
    found = set()
    for place, size in ((0, 50 * MIB), (50 * MIB - 1, 50 * MIB), (0, 50 * MIB + 1)):
        with (tmp_path / "weights").open("wb") as file:
            file.truncate(size)
            file.seek(place)
            file.write(b"\1")
        found.add(digest_sampled(tmp_path / "weights"))
    assert len(found) == 3


@given(changed=st.integers(0, 3))
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_another_training_of_one_tensor_is_seen(tmp_path: Path, changed: int) -> None:
    """However small it is: a head, a norm."""
    weights = {
        "body": torch.zeros(3 * MIB),
        "head": torch.zeros(1, 576),
        "norm": torch.ones(64),
        "z": torch.zeros(9),
    }
    save_file(weights, tmp_path / "model.safetensors")
    before = digest_sampled(tmp_path / "model.safetensors")
    name = sorted(weights)[changed]
    save_file(weights | {name: weights[name] + 0.01}, tmp_path / "model.safetensors")
    assert digest_sampled(tmp_path / "model.safetensors") != before


def test_seventy_billion_parameters_take_a_second(tmp_path: Path) -> None:
    """30 files of 5 GB, which hold nothing and so take no room."""
    for number in range(30):
        with (tmp_path / f"model-{number:05d}.safetensors").open("wb") as file:
            file.truncate(5 * 10**9)
    started = time.perf_counter()
    describe_model(str(tmp_path))
    assert time.perf_counter() - started < 10, "about 0.3 s on an idle machine"


def test_a_hub_id_is_its_commit_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for kind, name in (("models", "owner--name"), ("datasets", "owner--rows")):
        refs = tmp_path / f"{kind}--{name}" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text("0123abcd")
        (refs / "v1").write_text("4567cdef")
    sources = [{"type": "question", "uri": "hf://owner/rows/main:train"}]
    changes = {"policy__path": "owner/name", "reward__path": "owner/unknown", "prompts__sources": sources}
    found = describe_inputs(parse_config(tiny_run(tmp_path, **changes)))
    assert found == {"policy.path": "commit 0123abcd", "prompts.sources.0.uri": "commit 0123abcd"}
    commit = 5 * "01234567"  # known without a cache
    pinned = {"policy__path": "owner/name@v1", "reward__path": f"owner/unknown@{commit}"}
    sources = [{"type": "question", "uri": "hf://owner/rows@v1/main:train"}]
    found = describe_inputs(parse_config(tiny_run(tmp_path, **pinned, prompts__sources=sources)))
    assert found == {
        "policy.path": "commit 4567cdef",
        "reward.path": f"commit {commit}",
        "prompts.sources.0.uri": "commit 4567cdef",
    }


def test_rows_are_all_files_of_a_glob(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"question": "q"}\n')
    sources = [{"type": "question", "uri": str(tmp_path / "*.jsonl")}]
    config = parse_config(tiny_run(tmp_path, prompts__sources=sources))
    before = describe_inputs(config)["prompts.sources.0.uri"]
    (tmp_path / "b.jsonl").write_text('{"question": "other"}\n')
    assert describe_inputs(config)["prompts.sources.0.uri"] != before
    (tmp_path / "b.jsonl").unlink()
    alone = describe_inputs(config)["prompts.sources.0.uri"]
    assert alone == digest_path(tmp_path / "a.jsonl")


def test_a_templates_clock_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3's own asks for the date; another day gives the same tokens."""
    model = make_policy(tmp_path / "policy")
    template = tmp_path / "clock.jinja"
    template.write_text("Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML)
    tokenizer = ChatTokenizer(str(model), chat_template=str(template))
    text = tokenizer.decode(tokenizer.encode_chat([Message(role="user", content="What day is it?")]))
    assert "Today is 26 Jul 2024." in text and datetime.now().strftime("%d %b %Y") not in text
    assert describe_rendering(tokenizer) == describe_rendering(
        ChatTokenizer(str(model), chat_template=str(template))
    )
    assert describe_rendering(tokenizer) != describe_rendering(ChatTokenizer(str(model)))


# -- every kind of run compares them -----------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A config, how it is run, where it is stopped, and what to change under which of its keys."""

    settings: dict[str, Any]
    run: Callable[..., Any]
    stop: str
    file: str
    key: str


def stages(root: Path) -> dict[str, Stage]:
    cpu = {"device": "cpu", "device_memory_gib": 8.0}
    plain = {"tracking": {"wandb": "disabled"}, "cluster": cpu}
    model, rows = {"path": str(root / "policy"), "max_length": 128}, str(root / "rows.jsonl")
    engines = {**cpu, "rollout": {"kv_cache_gib": 0.1}}
    sft = {"type": "sft", "model": model, "data": {"sources": [{"uri": rows}]}, **plain}
    sft["training"] = {"learning_rate": 1e-5}
    prompts = {"sources": [{"type": "question", "uri": rows}], "max_prompt_tokens": 64}
    contrasts = {"type": "contrasts", "policy": model, "prompts": prompts, "cluster": engines}
    compared = {"type": "evaluate", "policies": {"tiny": model["path"]}, **plain, "cluster": engines}
    compared["benchmarks"] = {"tasks": [{"name": "medqa", "uri": rows}], "protocols": ["likelihood"]}
    compared["policy"] = {"max_length": 128}
    bench = {"type": "reward_bench", "model": model, "data": {"uri": rows}, **plain}
    data = {
        "type": "data",
        "input": [rows],
        "step": {"type": "records", "name": "r", "kind": "Open-End", "question": "question"},
        **plain,
    }
    return {
        "sft, data": Stage(sft, run_stage, "stages.run.prepare_data", "rows.jsonl", "data.sources.0.uri"),
        "sft, model": Stage(sft, run_stage, "stages.run.prepare_data", "policy/config.json", "model.path"),
        "contrasts": Stage(
            contrasts, make_contrasts, "stages.contrasts.prepare_pool", "rows.jsonl", "prompts.sources.0.uri"
        ),
        "evaluate": Stage(
            compared,
            evaluate_policies,
            "stages.evaluate.PolicyBenchmarks",
            "rows.jsonl",
            "benchmarks.tasks.0.uri",
        ),
        "evaluate, policy": Stage(
            compared,
            evaluate_policies,
            "stages.evaluate.PolicyBenchmarks",
            "policy/config.json",
            "policies.tiny",
        ),
        "reward_bench": Stage(bench, bench_reward, "stages.reward_bench._scores", "rows.jsonl", "data.uri"),
        "data": Stage(data, make_data, "stages.data.run.carry_out", "rows.jsonl", "input.0"),
    }


@pytest.mark.parametrize("name", stages(Path()))
def test_every_kind_of_run_compares_its_inputs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted in its midst, something is changed, and it is taken up again."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    make_policy(tmp_path / "policy")
    (tmp_path / "rows.jsonl").write_text('{"question": "Is it safe?"}\n')
    stage = stages(tmp_path)[name]
    monkeypatch.setattr(f"ultramed_rl.{stage.stop}", interrupt)
    monkeypatch.setattr(reward_bench, "prepare_bench", lambda *_: None)
    settings = {"run": {"name": "run", "directory": str(tmp_path / "runs")}, **stage.settings}
    config = parse_config(settings, kind=KINDS[settings["type"]].config_class)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, resume=True)
    file = tmp_path / stage.file
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(
        ValueError, match=rf"^\S+/runs/run: .*\({stage.key}: [0-9a-f]{{12}} -> [0-9a-f]{{12}}\)"
    ):
        stage.run(config, resume=True)
