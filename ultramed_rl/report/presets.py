"""The shipped preset that a config is nearest to, and how it differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ultramed_rl
from ultramed_rl.config import ConfigError, load_any
from ultramed_rl.config.base import Section as ConfigSection
from ultramed_rl.config.recipe import load_recipe, stage_config
from ultramed_rl.kinds import KINDS

Settings = dict[str, Any]
ABSENT = "(not there)"  # of a key that one side lacks
# What makes no difference to what a run is.
_OWN = ("run.name", "run.directory", "tracking.")


@dataclass(frozen=True)
class Difference:
    """What a config is compared with, and (key, its value, this run's value) where they differ."""

    against: str
    lines: tuple[tuple[str, Any, Any], ...]


def nearest_difference(config: Mapping[str, Any]) -> Difference | None:
    """Against the preset of the same type with the fewest differences; else against the defaults; None where the
    config cannot be read by this version and there is no preset."""
    kind, own = str(config.get("type", "online")), flatten(config)
    found = [Difference(name, compare_settings(preset, own)) for name, preset in _presets(kind)]
    if found:
        return min(found, key=lambda difference: len(difference.lines))
    defaults = _defaults(kind)
    if defaults is None:
        return None
    lines = tuple(line for line in compare_settings(defaults, own) if line[0] in defaults)
    return Difference("the defaults", lines)


def compare_settings(before: Settings, after: Settings) -> tuple[tuple[str, Any, Any], ...]:
    """(key, before, after) of every dotted key whose values differ; names, places and tracking aside.

    A key that one side lacks is `ABSENT` there; that is no difference where the other has null.
    """
    return tuple(
        (key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_OWN)
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> Settings:
    """Dotted keys and their values; a list stays whole unless it holds sections. `type` names the kind alone."""
    found: Settings = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{dotted}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            numbered = {str(place): item for place, item in enumerate(value)}
            found |= flatten(numbered, f"{dotted}.")
        else:
            found[dotted] = value
    return found if prefix else {key: value for key, value in found.items() if key != "type"}


def _presets(kind: str) -> Iterator[tuple[str, Settings]]:
    folder = Path(ultramed_rl.__file__).parents[1] / "configs"
    for path in sorted(folder.rglob("*.yaml")):
        for name, config in _read(path):
            if str(config.get("type", "online")) == kind:
                yield (f"configs/{path.relative_to(folder)}{name}", flatten(config))


@cache
def _read(path: Path) -> tuple[tuple[str, dict[str, Any]], ...]:
    """A preset, or a recipe's stages each by its name; nothing where it is no config of this version."""
    try:
        return (("", load_any(path).to_mapping()),)
    except (ConfigError, OSError):
        pass
    try:
        recipe = load_recipe(path)
        stages = ((name, stage_config(recipe, name, {}).to_mapping()) for name in recipe.stages)
        return tuple((f", stage {name}", config) for name, config in stages)
    except (ConfigError, OSError):
        return ()


def _defaults(kind: str) -> Settings | None:
    return flatten(_section_defaults(KINDS[kind].config_class)) if kind in KINDS else None


def _section_defaults(section: type[ConfigSection]) -> dict[str, Any]:
    """The fields that have a default, as plain values."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if not field.is_required():
            value = field.get_default(call_default_factory=True, validated_data={})
            found[name] = value.model_dump(mode="json") if isinstance(value, ConfigSection) else value
    return found
