"""General checks: the command by lm-eval's own parser, its names by its own index, its results as records."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ultramed_rl.config.benchmarks import General
from ultramed_rl.config.cluster import Devices
from ultramed_rl.stages.general import (
    Figure,
    GeneralResult,
    GeneralTask,
    check_general,
    general_backend,
    general_command,
    general_environment,
    read_general,
)
from ultramed_rl.store.atomic import write_json

OUTPUT = Path("/runs/a, b/.tmp-general")


def parsed(section: General, device: str = "cpu", model: str = "/models/an [odd], name=7") -> Any:
    """What lm-eval makes of the command line."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig

    command = general_command(section, model, device, "float32", OUTPUT)
    assert command[:3] == ["python", "-m", "lm_eval"]
    return EvaluatorConfig.from_cli(HarnessCLI()._parser.parse_args(command[3:]))


def test_lm_eval_reads_what_the_section_says(tmp_path: Path) -> None:
    read = parsed(
        General(
            tasks=["gsm8k", "mmlu"],
            limit=1,
            num_fewshot=0,
            batch_size=4,
            max_length=512,
            apply_chat_template=True,
            include_path=str(tmp_path),
            seed=0,
        )
    )
    assert (read.model, read.device) == ("hf", "cpu")
    # A path with lm-eval's own signs stays whole.
    assert read.model_args == {
        "pretrained": "/models/an [odd], name=7",
        "dtype": "float32",
        "max_length": 512,
    }
    assert read.tasks == ["gsm8k", "mmlu"]
    assert (read.limit, read.num_fewshot, read.batch_size, read.seed) == (1, 0, "4", [0, 0, 0, 0])
    assert read.apply_chat_template is True
    assert read.include_path == str(tmp_path)
    assert read.output_path == str(OUTPUT / "results.json")


def test_what_the_section_leaves_open_is_lm_evals_own() -> None:
    read = parsed(General(tasks=["gsm8k"], log_samples=False))
    assert (read.limit, read.num_fewshot, read.seed) == (None, None, [0, 1234, 1234, 1234])
    assert (read.apply_chat_template, read.log_samples, read.include_path) == (False, False, None)


def test_foreign_code_runs_only_when_it_is_named() -> None:
    devices = Devices(device="cpu")
    plain = General(tasks=["humaneval"])
    read = parsed(plain)
    assert (read.trust_remote_code, read.confirm_run_unsafe_code) == (False, False)
    assert "trust_remote_code" not in read.model_args
    assert general_environment(plain, devices)["HF_ALLOW_CODE_EVAL"] == "0"
    asked = General(tasks=["humaneval"], run_unsafe_code=True)
    read = parsed(asked)
    assert (read.trust_remote_code, read.confirm_run_unsafe_code) == (False, True)
    assert general_environment(asked, devices)["HF_ALLOW_CODE_EVAL"] == "1"
    assert parsed(General(tasks=["mmlu"], trust_remote_code=True)).model_args["trust_remote_code"] is True


def test_the_backend_follows_the_device() -> None:
    section = General(tasks=["mmlu"], gpus=4, seed=3)
    assert [general_backend(section, device) for device in ("cpu", "cuda")] == ["hf", "vllm"]
    on_gpus = parsed(section, "cuda")
    assert (on_gpus.model, on_gpus.batch_size) == ("vllm", "auto")
    assert (on_gpus.model_args["tensor_parallel_size"], on_gpus.model_args["seed"]) == (4, 3)
    by_layers = parsed(General(tasks=["mmlu"], backend="hf", gpus=4), "cuda")
    assert (by_layers.device, by_layers.model_args["parallelize"]) == ("cuda", True)
    with pytest.raises(ValueError, match=r"general\.backend='vllm': .*cluster\.device=cpu\b"):
        check_general(General(tasks=["mmlu"], backend="vllm"), "cpu")
    # On a CPU `auto` would fill the memory to find the largest batch.
    assert parsed(section, "cpu").batch_size == "8"


def test_offline_switches_reach_the_job_and_tokens_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    found = general_environment(General(tasks=["mmlu"]), Devices(device="cpu", cpus_per_node=6))
    assert found["HF_HUB_OFFLINE"] == "1" and "HF_DATASETS_OFFLINE" not in found
    assert "secret" not in found.values()
    assert found["OMP_NUM_THREADS"] == "6"
    half = Devices(device="cuda", devices_per_node=4, cpus_per_node=16)
    assert general_environment(General(tasks=["mmlu"], gpus=2), half)["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize("name", ["a,b", "-x", "own.yaml/", "dir/own.yaml", "mmlu_*", "a b", ""])
def test_a_name_that_lm_eval_would_read_as_something_else_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"tasks={name!r}: ")):
        General(tasks=[name])


def test_a_task_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"tasks\n.*'mmlu'"):
        General(tasks=["mmlu", "gsm8k", "mmlu"])


def write_task(folder: Path, name: str, extra: str = "") -> None:
    (folder / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\n{extra}")


def test_own_tasks_are_found_and_their_python_is_not_run(tmp_path: Path) -> None:
    write_task(tmp_path, "own", "doc_to_text: !function booby.trap\n")
    (tmp_path / "booby.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    check_general(General(tasks=["own"], include_path=str(tmp_path)), "cpu")
    assert not (tmp_path / "ran").exists()


def test_unknown_tasks_are_refused_with_a_guess(tmp_path: Path) -> None:
    write_task(tmp_path, "own")
    section = General(tasks=["own", "gsm8k", "gpqa_main_zeroshott"], include_path=str(tmp_path))
    said = rf"^general\.tasks='gpqa_main_zeroshott': .*{re.escape(str(tmp_path))} .*'gpqa_main_zeroshot'\?$"
    with pytest.raises(ValueError, match=said):
        check_general(section, "cpu")


def test_a_task_that_runs_a_models_code_must_be_allowed(tmp_path: Path) -> None:
    write_task(tmp_path, "danger", "unsafe_code: true\n")
    asked: dict[str, Any] = {"tasks": ["danger"], "include_path": str(tmp_path)}
    with pytest.raises(ValueError, match=r"general\.tasks='danger': .*general\.run_unsafe_code=true"):
        check_general(General(**asked), "cpu")
    check_general(General(**asked, run_unsafe_code=True), "cpu")


def test_a_missing_package_or_folder_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"general\.include_path='.*/none': "):
        check_general(General(tasks=["x"], include_path=str(tmp_path / "none")), "cpu")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r'^general: .*pip install "lm-eval\[hf\]'):
        check_general(General(tasks=["mmlu"]), "cpu")


def test_results_of_tasks_and_groups(tmp_path: Path) -> None:
    alias = {"alias": " - x", "name": "x"}
    flexible = {"exact_match,flexible-extract": 0.25, "exact_match_stderr,flexible-extract": 0.1}
    strict = {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"}
    group = {"acc,none": 0.3, "acc_stderr,none": 0.02, "sample_len": 30, "sample_count": {"acc,none": 30}}
    content = {
        "results": {
            "gsm8k": {**alias, "sample_len": 4, **flexible, **strict},
            "mmlu": {**alias, **group},
            "mmlu_anatomy": {**alias, "sample_len": 30, "acc,none": 0.3, "acc_stderr,none": 0.02},
            "no_figures": {**alias},
        },
        "group_subtasks": {"mmlu": ["mmlu_anatomy"], "no_figures": ["gsm8k"]},
    }
    (tmp_path / "results_2026-01-01T00-00-00.json").write_text(json.dumps(content))
    result = read_general(tmp_path)
    assert list(result.tasks) == ["gsm8k", "mmlu", "mmlu_anatomy"]
    assert result.tasks["gsm8k"].figures == {
        "exact_match_flexible_extract": Figure(0.25, 0.1),
        "exact_match_strict_match": Figure(0.5, None),
    }
    assert (result.tasks["mmlu"].items, result.tasks["mmlu"].subtasks) == (30, ("mmlu_anatomy",))
    assert result.metrics == {
        "gsm8k/exact_match_flexible_extract": 0.25,
        "gsm8k/exact_match_flexible_extract_stderr": 0.1,
        "gsm8k/exact_match_strict_match": 0.5,
        "mmlu/acc": 0.3,
        "mmlu/acc_stderr": 0.02,
        "mmlu_anatomy/acc": 0.3,
        "mmlu_anatomy/acc_stderr": 0.02,
    }


def test_results_can_be_kept_in_a_file(tmp_path: Path) -> None:
    result = GeneralResult({"mmlu": GeneralTask(30, {"acc": Figure(0.3)}, ("mmlu_anatomy",))})
    write_json(tmp_path / "results.json", {"general": asdict(result)})
    kept = json.loads((tmp_path / "results.json").read_text())["general"]["tasks"]["mmlu"]
    assert kept == {
        "items": 30,
        "figures": {"acc": {"value": 0.3, "stderr": None}},
        "subtasks": ["mmlu_anatomy"],
    }


def test_a_run_that_left_no_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(str(tmp_path))}: "):
        read_general(tmp_path)
