"""YAML and `section.key=value` overrides in, a validated `RunConfig` out; every problem in one line."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, overload

import yaml
from pydantic import BaseModel, ValidationError

from ultramed_rl.config.base import ConfigError, Section
from ultramed_rl.config.factory_stage import DataConfig, EngineConfig
from ultramed_rl.config.reward_bench import RewardBenchConfig
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.sampling import ContrastsConfig, EvaluateConfig
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-5 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice (line {line})")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


AnyConfig = (
    RunConfig
    | SftConfig
    | RewardConfig
    | PreferenceConfig
    | ContrastsConfig
    | EvaluateConfig
    | RewardBenchConfig
    | DataConfig
)
SamplingConfig = RunConfig | ContrastsConfig | EvaluateConfig | EngineConfig
KINDS: dict[str, type[AnyConfig]] = {
    "online": RunConfig,
    "sft": SftConfig,
    "reward": RewardConfig,
    "preference": PreferenceConfig,
    "contrasts": ContrastsConfig,
    "evaluate": EvaluateConfig,
    "reward_bench": RewardBenchConfig,
    "data": DataConfig,
}
# Keys whose null says something, since their default is another value.
NULL_SAYS = ("benchmarks.contamination", "contamination.embedder", "step.cosine", "step.jaccard")
COMMAND_LINE = "command line"  # where a config comes from that is in no file
Config = TypeVar("Config", bound=Section)


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
    return parse_config(read_mapping(path, overrides), str(path), kind=kind)


def load_any(path: str | Path | None, overrides: Sequence[str] = ()) -> AnyConfig:
    """Like `load_config`, for the kind that the file's `type` names; without one it is an online run.

    Without a file the overrides are all there is.
    """
    source = COMMAND_LINE if path is None else str(path)
    data = read_mapping(path, overrides)
    named = data.get("type", "online")
    if named not in KINDS:
        raise ConfigError(
            [f"{source}: type={named!r}: must be one of {', '.join(KINDS)}{_guess(str(named), [*KINDS])}"]
        )
    return parse_config(data, source, kind=KINDS[named])


def read_mapping(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file, or nothing, with overrides applied, not validated yet."""
    data = {} if path is None else _read_yaml(Path(path))
    for override in overrides:
        _apply_override(data, override)
    return data


@overload
def parse_config(data: dict[str, Any], source: str = "config") -> RunConfig: ...
@overload
def parse_config(data: dict[str, Any], source: str = "config", *, kind: type[Config]) -> Config: ...
def parse_config(data: dict[str, Any], source: str = "config", *, kind: type[Any] = RunConfig) -> Any:
    """Validate a plain mapping. Raises `ConfigError` whose lines name `source`."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines: list[str] = []
        for problem in error.errors():
            lines.extend(_explain(problem, source, data, kind))
        raise ConfigError(lines) from None


def dump_config(config: Section) -> str:
    """The resolved config as YAML; `parse_config` of it gives an equal config."""
    return yaml.safe_dump(config.to_mapping(), sort_keys=False, allow_unicode=True)


def config_difference(old: Section, new: Section) -> list[str]:
    """Dotted keys that differ, as `key: old -> new` lines."""
    before, after = dict(_flatten(old.model_dump())), dict(_flatten(new.model_dump()))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError([f"{path}: no such file; see configs/ for complete examples"])
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML; mend it: {' '.join(str(error).split())}"]) from None
    if not isinstance(data, dict):
        raise ConfigError(
            [
                f"{path}: must be a mapping of sections, not {type(data).__name__}; see configs/ for complete examples"
            ]
        )
    return data


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError([f"override {override!r}: must read section.key=value, as in training.epochs=2"])
    *sections, last = key.strip().split(".")
    node = data
    for section in sections:
        child = node.setdefault(section, {})
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                [f"override {override!r}: {section!r} is a value, not a section; set the value itself"]
            )
        node = child
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        value = text
    if value is None and not key.strip().endswith(NULL_SAYS):
        node.pop(last, None)  # every other key that may be null is null by default
    else:
        node[last] = value


def _explain(problem: Any, source: str, data: dict[str, Any], kind: type[Section]) -> Iterator[str]:
    fault, location = problem["type"], [str(part) for part in problem["loc"]]
    key = ".".join(part for part in location if not _is_union_tag(part, data, location))
    value = problem.get("input")
    if fault == "extra_forbidden":
        allowed = _allowed_keys(kind, location)
        yield f"{source}: {key}: unknown key{_guess(location[-1], allowed)} (allowed: {', '.join(allowed)})"
    elif fault == "missing":
        yield f"{source}: {key}: required, but missing"
    elif fault == "union_tag_not_found":
        yield f"{source}: {key}.type: required, but missing"
    elif fault == "union_tag_invalid":
        tag, kinds = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        yield f"{source}: {key}.type={tag!r}: must be one of {', '.join(kinds)}{_guess(tag, kinds)}"
    elif fault == "value_error":
        for text in str(problem["ctx"]["error"]).split(" ;; "):
            yield f"{source}: {text}"
    elif fault in ("model_type", "model_attributes_type"):
        yield f"{source}: {key}={_shown(value)}: must be a section of keys; see docs/configuration.md"
    else:
        hint = ""
        if fault == "literal_error" and isinstance(value, str):
            choices = [c.strip("'") for c in problem["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            hint = _guess(value, choices)
        yield f"{source}: {key}={_shown(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}{hint}"


def _guess(given: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    """As the file has it."""
    if isinstance(value, dict):
        return "a mapping"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _is_union_tag(part: str, data: dict[str, Any], location: list[str]) -> bool:
    """Pydantic puts the chosen union member's tag into a location; it is no key of the file."""
    node: Any = data
    for step in location:
        if isinstance(node, list):
            node = node[int(step)] if step.isdigit() and int(step) < len(node) else None
        elif isinstance(node, dict):
            if step == part and step not in node and node.get("type", None) == step:
                return True
            if step in node:
                node = node[step]
    return False


def _allowed_keys(kind: type[Section], location: list[str]) -> list[str]:
    model: Any = kind
    for step in location[:-1]:
        model = _descend(model, step)
    fields = getattr(model, "model_fields", {})
    return list(fields)


def _descend(annotation: Any, step: str) -> Any:
    """The model behind one step of a location: a field, a list index, or a union's tag."""
    candidates = _models(annotation)
    for model in candidates:
        if step in model.model_fields:
            return _narrow(model.model_fields[step].annotation)
    for model in candidates:
        tag = model.model_fields.get("type")
        if tag is not None and tag.default == step:
            return model
    return annotation


def _narrow(annotation: Any) -> Any:
    found = _models(annotation)
    return found[0] if len(found) == 1 else annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for index, value in enumerate(node):
            yield from _flatten(value, f"{prefix}.{index}")
    else:
        yield prefix, node
