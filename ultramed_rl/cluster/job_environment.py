"""The runtime environment that a submitted job gets: a file's, with variables from the command line over it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultramed_rl.config.document import YamlProblem, read_yaml, why_unreadable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_HIDDEN = "***"


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
    secrets = (value for name, value in env_vars.items() if _SECRET.search(name) and value)
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
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
    reason = why_unreadable(file)
    if reason is not None:
        raise ValueError(f"--runtime-env {file}: {reason}; see docs/cluster.md for an example")
    try:
        found = read_yaml(file.read_text(encoding="utf-8"))[0] or {}
    except (YamlProblem, UnicodeDecodeError):
        # Without YAML's own words: they may quote what stands there, a secret perhaps.
        raise ValueError(
            f"--runtime-env {file}: not valid YAML; see docs/cluster.md for an example"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"--runtime-env {file}: must be a mapping, as in env_vars: {{NCCL_DEBUG: WARN}}")
    _check_keys(file, found)
    return found


def _check_keys(file: Path, found: Mapping[str, Any]) -> None:
    from ray.runtime_env import RuntimeEnv

    allowed = sorted(name for name in RuntimeEnv.known_fields - {"working_dir"} if not name.startswith("_"))
    for key in found:
        if key == "working_dir":
            raise ValueError(
                f"--runtime-env {file}: working_dir: the config is sent in it; use --working-dir DIR"
            )
        if key not in allowed:
            guess = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {guess[0]!r}?" if guess else ""
            raise ValueError(
                f"--runtime-env {file}: {key}: unknown key{hint} (allowed: {', '.join(allowed)})"
            )
    variables = found.get("env_vars", {})
    if not isinstance(variables, dict):
        raise ValueError(f"--runtime-env {file}: env_vars: must be a mapping, as in {{NCCL_DEBUG: WARN}}")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise ValueError(f"--runtime-env {file}: env_vars.{name}: must be text; put its value in quotes")
