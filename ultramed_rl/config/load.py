"""YAML and `section.key=value` overrides in, a validated config out; every problem in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml

from ultramed_rl.config.base import ConfigError, Problems, Section, show
from ultramed_rl.config.document import Document, read_document
from ultramed_rl.config.explain import guess, validate
from ultramed_rl.config.factory_stage import EngineConfig
from ultramed_rl.config.run import AnyConfig, RunConfig
from ultramed_rl.config.sampling import ContrastsConfig, EvaluateConfig
from ultramed_rl.kinds import KINDS

SamplingConfig = RunConfig | ContrastsConfig | EvaluateConfig | EngineConfig
Config = TypeVar("Config", bound=Section)


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose texts are the same texts again, read by YAML 1.2: 1e5 and 0o17, and Unicode's own line ends."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|0o[0-7]+$"),
    list("-+0123456789."),
)


@overload
def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig: ...
@overload
def load_config(path: str | Path, overrides: Sequence[str] = (), *, kind: type[Config]) -> Config: ...
def load_config(path: str | Path, overrides: Sequence[str] = (), *, kind: type[Any] = RunConfig) -> Any:
    """Read and validate a config file.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings; the value is read as YAML, null takes the key away.
        kind: what the file describes.

    Raises:
        ConfigError: with one line per problem.
    """
    return check_document(read_document(path, overrides), kind)


def load_any(path: str | Path | None, overrides: Sequence[str] = ()) -> AnyConfig:
    """Like `load_config`, for the kind that the file's `type` names; without one it is an online run.

    Without a file the overrides are all there is.
    """
    return check_any(read_document(path, overrides))


def check_any(document: Document) -> AnyConfig:
    """The config of the kind that a document's `type` names. Raises `ConfigError`."""
    named = document.data.get("type", "online")
    if not isinstance(named, str) or named not in KINDS:
        hint = guess(named, [*KINDS])
        raise ConfigError([document.tell(f"type={show(named)}: must be one of {', '.join(KINDS)}{hint}")])
    config: AnyConfig = check_document(document, KINDS[named].config_class)
    return config


def check_document(document: Document, kind: type[Config]) -> Config:
    """The config of one kind that a document holds. Raises `ConfigError`."""
    try:
        return validate(kind, document.data)
    except Problems as error:
        raise ConfigError([document.tell(problem) for problem in error.problems]) from None


@overload
def parse_config(data: dict[str, Any], source: str = "config") -> RunConfig: ...
@overload
def parse_config(data: dict[str, Any], source: str = "config", *, kind: type[Config]) -> Config: ...
def parse_config(data: dict[str, Any], source: str = "config", *, kind: type[Any] = RunConfig) -> Any:
    """Validate a plain mapping. Raises `ConfigError` whose lines name `source`."""
    return check_document(Document(source, data), kind)


def dump_config(config: Section) -> str:
    """The resolved config as YAML; `parse_config` of it gives an equal config."""
    return yaml.dump(config.to_mapping(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def config_difference(old: Section, new: Section) -> list[str]:
    """Dotted keys that differ, as `key: old -> new` lines."""
    before, after = dict(_flatten(old.model_dump())), dict(_flatten(new.model_dump()))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for index, value in enumerate(node):
            yield from _flatten(value, f"{prefix}.{index}")
    else:
        yield prefix, node
