"""What `ultramed-rl submit` sends: one resolved config, the job's environment, perhaps a folder; and which values of a
config would mean something else on the cluster, where a job runs in a temporary folder."""

from __future__ import annotations

import difflib
import glob
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import FILE_KEYS, MODEL_KEYS, OFFLINE
from ultramed_rl.config.base import texts_of
from ultramed_rl.config.document import YamlProblem, read_yaml, why_unreadable

CONFIG_FILE = "ultramed-rl.yaml"  # the config's name in the job's folder
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CURE = "an absolute path on a file system that all nodes see"


@dataclass(frozen=True)
class Submission:
    """What is sent.

    `name`: the job's id, to which a number is added where an ended job has it. `command`: runs on the head in a
    folder that holds `config` as CONFIG_FILE and what `working_dir` holds. `runtime_env`: Ray's, without its
    working directory.
    """

    name: str
    command: tuple[str, ...]
    config: str
    runtime_env: Mapping[str, Any]
    working_dir: Path | None = None


@contextmanager
def job_folder(submission: Submission) -> Iterator[Path]:
    """A temporary folder with the config, and links to what the working directory holds."""
    with tempfile.TemporaryDirectory(prefix="ultramed_rl-job-") as name:
        folder = Path(name)
        (folder / CONFIG_FILE).write_text(submission.config, encoding="utf-8")
        for entry in submission.working_dir.resolve().iterdir() if submission.working_dir else ():
            if entry.name != CONFIG_FILE:
                (folder / entry.name).symlink_to(entry)
        yield folder


# -- its environment ---------------------------------------------------------------------------------------


def read_runtime_env(file: Path | None, variables: Sequence[str], ours: Mapping[str, str]) -> dict[str, Any]:
    """What Ray takes as `runtime_env`, without a working directory.

    Args:
        file: YAML with Ray's keys (env_vars, pip, uv, ...), or none.
        variables: KEY=VALUE, or KEY alone for its value in `ours`; over those of the file.
        ours: this process's environment.

    Raises:
        ValueError: an unknown key, a value that is no text, a variable that isn't set. No value is ever named.
    """
    environment = _read_file(file) if file is not None else {}
    given = dict(_variable(text, ours) for text in variables)
    return {**environment, "env_vars": {**environment.get("env_vars", {}), **given}}


def hide_secrets(text: str, env_vars: Mapping[str, str]) -> str:
    """The text without the values of variables whose names speak of keys, tokens or passwords."""
    values = (value for name, value in env_vars.items() if _SECRET.search(name) and value)
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _variable(text: str, ours: Mapping[str, str]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not _NAME.fullmatch(name):
        shown = name if equals else "its argument"  # what was meant as a name may be a value
        raise ValueError(
            f"--env: {shown!r} is no variable's name; write --env KEY=VALUE, or --env KEY for your own value"
        )
    if equals:
        return name, value
    if name not in ours:
        raise ValueError(
            f"--env {name}: this environment variable isn't set; export it, or write --env {name}=VALUE"
        )
    return name, ours[name]


def _read_file(file: Path) -> dict[str, Any]:
    from ray.runtime_env import RuntimeEnv

    def refusal(words: str) -> ValueError:
        return ValueError(f"--runtime-env {file}: {words}")

    reason = why_unreadable(file)
    if reason is not None:
        raise refusal(f"{reason}; see docs/cluster.md for an example")
    try:
        environment = read_yaml(file.read_text(encoding="utf-8"))[0] or {}
    except (YamlProblem, UnicodeDecodeError):
        # Without YAML's own words: they may quote what stands there, a secret perhaps.
        raise refusal("not valid YAML; see docs/cluster.md for an example") from None
    if not isinstance(environment, dict):
        raise refusal("must be a mapping, as in env_vars: {NCCL_DEBUG: WARN}")
    allowed = sorted(name for name in RuntimeEnv.known_fields - {"working_dir"} if not name.startswith("_"))
    for key in environment:
        if key == "working_dir":
            raise refusal("working_dir: the config is sent in it; use --working-dir DIR")
        if key not in allowed:
            guess = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {guess[0]!r}?" if guess else ""
            raise refusal(f"{key}: unknown key{hint} (allowed: {', '.join(allowed)})")
    variables = environment.get("env_vars", {})
    if not isinstance(variables, dict):
        raise refusal("env_vars: must be a mapping, as in {NCCL_DEBUG: WARN}")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise refusal(f"env_vars.{name}: must be text; put its value in quotes")
    return environment


# -- its paths ---------------------------------------------------------------------------------------------


def path_problems(config: Mapping[str, Any], working_dir: Path | None) -> list[str]:
    """What keeps a config's paths from meaning on the cluster what they mean here: one line each.

    Args:
        config: plain values, of a recipe with its stages.
        working_dir: the folder that is sent along, if any; relative paths must then lead into it.
    """
    problems = []
    for key, name, value in texts_of(config):
        may_be_id = name in MODEL_KEYS and _may_be_id(value, working_dir or Path())
        if name not in FILE_KEYS | MODEL_KEYS or not is_relative(value) or value == OFFLINE or may_be_id:
            continue
        if working_dir is None:
            problems.append(
                f"{key}={value!r}: a relative path, which the cluster has not got; give {_CURE}, or send the folder "
                "along with --working-dir DIR"
            )
        elif not _is_inside(value, working_dir):
            problems.append(
                f"{key}={value!r}: not in --working-dir {working_dir}, from which the job reads it; give {_CURE}, or "
                "the folder that holds it"
            )
    if working_dir is None:
        problems += _run_problems(config["run"])
    return problems


def _run_problems(run: Mapping[str, Any]) -> Iterator[str]:
    lost = "a relative path, which lies in the job's temporary folder and goes with it"
    if is_relative(run["directory"]):
        yield f"run.directory={run['directory']!r}: {lost}; give {_CURE}, as in run.directory=/shared/runs"
    scratch = run.get("scratch", "~")
    if "://" in run["directory"] and is_relative(scratch) and not scratch.startswith("~"):
        yield f"run.scratch={scratch!r}: {lost}; give {_CURE}"


def is_relative(path: str) -> bool:
    """Whether a path depends on who reads it where: on the working directory, or on the home directory."""
    return "://" not in path and not path.startswith("/")


def _may_be_id(value: str, base: Path) -> bool:
    """Whether it reads like a hub id, or a name, and nothing lies there."""
    return bool(_HUB_ID.fullmatch(value)) and not value.startswith(".") and not (base / value).exists()


def _is_inside(value: str, folder: Path) -> bool:
    if value.startswith("~") or os.path.normpath(value).startswith(".."):
        return False
    path = folder / value
    return path.exists() or bool(glob.glob(str(path), recursive=True))
