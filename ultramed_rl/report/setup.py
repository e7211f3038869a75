"""What was run and where: the config against the nearest shipped preset, environment, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import ultramed_rl
from ultramed_rl.config import ConfigError, load_any
from ultramed_rl.config.recipe import load_recipe, stage_config
from ultramed_rl.kinds import KINDS
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.tables import DASH

Settings = dict[str, Any]
ABSENT = "(not there)"  # of a key that one side lacks
# What makes no difference to what a run is.
_OWN = ("run.name", "run.directory", "tracking.")


def nearest_preset(files: RunReader) -> tuple[list[tuple[str, str, str]], str]:
    """How a run's config differs, as of `compare_settings`, from the nearest shipped preset of its kind, or from the defaults;
    and what that is, or nothing where there is neither."""
    kind, own = str(files.config.get("type", "online")), flatten(files.config)
    folder = Path(ultramed_rl.__file__).parents[1] / "configs"
    differences = [
        (compare_settings(flatten(preset), own), f"configs/{path.relative_to(folder)}{name}")
        for path in sorted(folder.rglob("*.yaml"))
        for name, preset in _read(path)
        if preset.get("type", "online") == kind
    ]
    if not differences and kind in KINDS:
        defaults = flatten(KINDS[kind].config_class.model_construct().model_dump(mode="json"))
        lines = [line for line in compare_settings(defaults, own) if line[0] in defaults]
        differences = [(lines, "the defaults")]
    return min(differences, key=lambda difference: len(difference[0]), default=([], ""))


def compare_settings(before: Settings, after: Settings) -> list[tuple[str, str, str]]:
    """(key, before, after) of every dotted key whose values differ; names, places and tracking aside.

    A key that one side lacks is `ABSENT` there; that is no difference where the other has null.
    """
    return [
        (key, shown(before.get(key, ABSENT)), shown(after.get(key, ABSENT)))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_OWN)
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> Settings:
    """Dotted keys and their values; a list stays whole unless it holds sections. `type` names the kind alone."""
    settings: Settings = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping):
            settings |= flatten(value, f"{dotted}.")
        elif dotted != "type":
            settings[dotted] = value
    return settings


@cache
def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """A preset, or a recipe's stages each by its name; nothing where it is no config of this version."""
    try:
        return [("", load_any(path).to_mapping())]
    except (ConfigError, OSError):
        pass
    try:
        recipe = load_recipe(path)
        return [(f", stage {name}", stage_config(recipe, name, {}).to_mapping()) for name in recipe.stages]
    except (ConfigError, OSError):
        return []


def config_text(files: RunReader) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(files.config, sort_keys=False, allow_unicode=True)


def environment_rows(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine first, then packages."""
    memory, unknown = described.get("memory_gib"), "unknown: not run from a source tree"
    return [
        ("commit of ultramed_rl (+ changed)", str(described.get("commit", unknown))),
        ("python", shown(described.get("python"))),
        ("system", shown(described.get("system"))),
        ("CPUs", shown(described.get("cpus"))),
        ("memory", DASH if memory is None else f"{memory} GiB"),
        ("GPUs", "\n".join(map(str, described.get("gpus", []))) or "none"),
        *((str(name), str(version)) for name, version in described.get("packages", {}).items()),
    ]


def shown(value: Any) -> str:
    """A setting's value in one line, as YAML has it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
