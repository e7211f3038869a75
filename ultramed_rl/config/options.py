"""A command's options and arguments as overrides of its config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the config file or None, overrides) out of `[CONFIG] [section.key=value ...]`."""
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def option_overrides(options: Mapping[str, Any]) -> list[str]:
    """Options as overrides: values by their dotted keys, None where not given."""
    # JSON is YAML that says whether it is a text.
    return [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]


def reward_bench_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What reward-bench's options alone make: named after the model and the data where they give no name."""
    parts = [options.get("model.path"), options.get("data.uri")]
    return {"type": "reward_bench", "run.name": run_name("-on-", parts), **_given(options)}


def evaluate_options(
    options: Mapping[str, Any],
    models: Sequence[str],
    tasks: str | None,
    protocols: str | None,
    *,
    sources: Sequence[str],
    limit: int | None,
    offline: bool,
) -> dict[str, Any]:
    """What evaluate's options alone make.

    Args:
        models: PATH or NAME=PATH; the first is what the others are compared with.
        tasks, protocols: names with commas between them.
        sources: TASK=URI, where a task's rows are.

    Raises:
        ValueError: a model or a source that doesn't read as it should.
    """
    uris = dict(_split(source, "--source", "TASK=URI") for source in sources)
    policies: dict[str, str] = {}
    for model in models:
        name, path = _split(model, "--model", "NAME=PATH") if "=" in model else (run_name("", [model]), model)
        if name in policies:
            raise ValueError(f"--model {model}: a second one named {name!r}; write --model NAME={path}")
        policies[name] = path
    names = _names(tasks)
    unknown = [name for name in uris if name not in names]
    if unknown:
        raise ValueError(f"--source {unknown[0]}=...: --tasks doesn't name that task; add it there")
    asked = [
        {"name": name, "uri": uris.get(name, "offline" if offline else None), "limit": limit}
        for name in names
    ]
    return {
        "type": "evaluate",
        "run.name": run_name("-on-", [*policies, *names][:4]),
        "policies": policies,
        "benchmarks.tasks": [_given(task) for task in asked] or None,
        "benchmarks.protocols": [{"type": name} for name in _names(protocols)] or None,
        **_given(options),
    }


def run_name(joint: str, addresses: Sequence[str | None]) -> str:
    """A run's name after what it is about: the last parts of paths or URIs, without split or file ending."""
    stems = []
    for address in addresses:
        last = re.split(r"[/\\]", (address or "").rstrip("/"))[-1].partition(":")[0]
        stem = re.sub(r"\.(jsonl?|parquet|arrow)$", "", last)
        stems.append(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data")
    return joint.join(stems)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _split(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ValueError(f"{option} {text}: must read {form}")
    return name, value
