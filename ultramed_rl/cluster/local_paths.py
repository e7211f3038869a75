"""Values of a config that name a file or folder of this machine by a relative path.

A job runs in a temporary folder of the cluster, where such a path names something else, or nothing.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# By the last key: values that are files unless they have a scheme; and those that may be a hub id or a name instead.
FILE_KEYS = frozenset(
    {"uri", "input", "sources", "exemplars_from", "judged", "labels", "template", "include_path"}
)
MODEL_KEYS = frozenset(
    {"path", "paths", "tokenizer", "embedder", "chat_template", "policies", "chat_templates"}
)
OFFLINE = "offline"  # a benchmark's rows out of installed packages
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CURE = "an absolute path on a file system that all nodes see"


def path_problems(config: Mapping[str, Any], working_dir: Path | None) -> list[str]:
    """What keeps a config's paths from meaning on the cluster what they mean here: one line each.

    Args:
        config: plain values, of a recipe with its stages.
        working_dir: the folder that is sent along, if any; relative paths must then lead into it.
    """
    problems = []
    for key, value in _relative_paths(config, working_dir or Path()):
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
    if is_relative(run["directory"]):
        yield (
            f"run.directory={run['directory']!r}: a relative path, which lies in the job's temporary folder and goes "
            f"with it; give {_CURE}, as in run.directory=/shared/runs"
        )
    scratch = run.get("scratch", "~")
    if "://" in run["directory"] and is_relative(scratch) and not scratch.startswith("~"):
        yield (
            f"run.scratch={scratch!r}: a relative path, which lies in the job's temporary folder and goes with it; "
            f"give {_CURE}"
        )


def is_relative(path: str) -> bool:
    """Whether a path depends on who reads it where: on the working directory, or on the home directory."""
    return "://" not in path and not path.startswith("/")


def _relative_paths(config: Mapping[str, Any], base: Path) -> Iterator[tuple[str, str]]:
    for key, name, value in texts_of(config):
        if not is_relative(value) or value == OFFLINE:
            continue
        if name in FILE_KEYS or (name in MODEL_KEYS and not _may_be_id(value, base)):
            yield key, value


def _may_be_id(value: str, base: Path) -> bool:
    """Whether it reads like a hub id, or a name, and nothing lies there."""
    return bool(_HUB_ID.fullmatch(value)) and not value.startswith(".") and not (base / value).exists()


def texts_of(node: Any, key: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Every text of a config: its dotted key, the key's last name that is a field's, and the text."""
    if isinstance(node, str):
        yield key, name, node
    elif isinstance(node, Mapping):
        for step, value in node.items():
            below = name if name in {"policies", "chat_templates"} else str(step)
            yield from texts_of(value, f"{key}.{step}" if key else str(step), below)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from texts_of(value, f"{key}.{number}", name)


def _is_inside(value: str, folder: Path) -> bool:
    if value.startswith("~") or os.path.normpath(value).startswith(".."):
        return False
    path = folder / value
    return path.exists() or bool(glob.glob(str(path), recursive=True))
