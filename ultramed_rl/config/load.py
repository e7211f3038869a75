"""YAML and `section.key=value` overrides in, a validated config out; every problem is one line that begins with its key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError
from typing_extensions import TypeVar

from ultramed_rl.config.base import SECRET, ConfigError, Problems, Section, flatten, sections_in, show
from ultramed_rl.config.document import Document, read_document
from ultramed_rl.config.factory import EngineConfig
from ultramed_rl.config.run import AnyConfig, RunConfig
from ultramed_rl.config.stages import ContrastsConfig, EvaluateConfig
from ultramed_rl.kinds import KINDS

SamplingConfig = RunConfig | ContrastsConfig | EvaluateConfig | EngineConfig
Config = TypeVar("Config", bound=Section, default=RunConfig)
# Keys of older versions, and what became of them.
_FORMER = {
    "cluster.barriers": "called cluster.sequential_phases now",
    "cluster.faults.fewer": "called cluster.faults.allow_fewer_workers now",
    "cluster.faults.set_aside_share": "called cluster.faults.max_failed_prompt_share now",
    "training.early": "called training.overlap_training now",
    "reward.terms.thought": "replaced by engine.thinking; an API's usual marks of a thought are known",
    **dict.fromkeys(
        ("step.cosine", "step.jaccard", "step.words"), "replaced by step.near (true or false) now"
    ),
    "step.embedder": "which this step reads no more: remove it",
}


def validate(kind: type[Config], data: dict[str, Any]) -> Config:
    """The config that plain values describe. Raises `Problems`."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise Problems(
            [line for problem in error.errors() for line in _explain(problem, data, kind)]
        ) from None


def _explain(problem: Any, data: dict[str, Any], kind: type[Section]) -> Iterator[str]:
    fault, location = problem["type"], [str(part) for part in problem["loc"]]
    key, section = _locate(kind, location, data, fault)
    value, context = problem.get("input"), problem.get("ctx", {})
    if fault == "extra_forbidden":
        allowed, now = list(section.model_fields) if section else [], _FORMER.get(re.sub(r"\.\d+", "", key))
        meant = guess(location[-1], allowed) if now is None else f", {now}"
        yield f"{key}: unknown key{meant} (allowed: {', '.join(allowed)})"
    elif fault == SECRET:
        yield f"{key}{context['place']}: {problem['msg']}"
    elif fault == "missing":
        yield f"{key}: required, but missing"
    elif fault == "union_tag_not_found":
        yield f"{key}.type: required, but missing"
    elif fault == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", context["expected_tags"])
        yield f"{key}.type={show(context['tag'])}: must be one of {', '.join(tags)}{guess(context['tag'], tags)}"
    elif fault in ("model_type", "model_attributes_type"):
        yield f"{key}={show(value)}: must be a section of keys; see docs/configuration.md"
    elif fault == "value_error":
        error = context["error"]
        lines = error.problems if isinstance(error, Problems) else [str(error)]
        for line in lines:
            own = section is not None and re.split(r"\W", line, maxsplit=1)[0] in section.model_fields
            yield line if not key else f"{key}.{line}" if own else f"{key}: {line}"
    else:
        choices = re.findall(r"'([^']*)'", context.get("expected", "")) if fault == "literal_error" else []
        yield f"{key}={show(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}{guess(value, choices)}"


def guess(given: object, known: Sequence[str]) -> str:
    """What was meant, in words that go on after a rule; nothing where no known one is near."""
    near = difflib.get_close_matches(given[:80], known, n=1) if isinstance(given, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _locate(
    kind: type[Section], location: list[str], data: dict[str, Any], fault: str
) -> tuple[str, type[Section] | None]:
    """The dotted key of a location, and the section there: of an unknown key the one around it. A location names fields,
    places in lists and, what the file doesn't, the members of unions that pydantic tried."""
    keys, node, annotation = [], cast(Any, data), cast(Any, kind)
    for part in location:
        models = sections_in(annotation)
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        tags = [
            (model.model_fields["type"].default, model) for model in models if "type" in model.model_fields
        ]
        annotation = next(iter([*fields, *(model for tag, model in tags if tag == part)]), annotation)
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (LookupError, TypeError, ValueError):
            if fault != "missing" or part is not location[-1]:
                continue
        keys.append(part)
    models = sections_in(annotation)
    return ".".join(keys), models[0] if len(models) == 1 else None


# -- reading and writing -----------------------------------------------------------------------------------


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    kind: type[Config] = RunConfig,  # type: ignore[assignment]
) -> Config:
    """Read and validate a YAML file of this kind, with `section.key=value` overrides: the value is read as YAML, null takes
    the key away. Raises `ConfigError` with one line per problem."""
    return check_document(read_document(path, overrides), kind)


def load_any(path: str | Path | None, overrides: Sequence[str] = ()) -> AnyConfig:
    """Like `load_config`, for the kind that `type` names: without one an online run. Without a file the overrides are all."""
    return check_any(read_document(path, overrides))


def parse_config(
    data: dict[str, Any],
    source: str = "config",
    *,
    kind: type[Config] = RunConfig,  # type: ignore[assignment]
) -> Config:
    """Validate a plain mapping. Raises `ConfigError` whose lines name `source`."""
    return check_document(Document(source, data), kind)


def check_any(document: Document) -> AnyConfig:
    """The config of the kind that a document's `type` names. Raises `ConfigError`."""
    named = document.data.get("type", "online")
    if not isinstance(named, str) or named not in KINDS:
        rule = f"must be one of {', '.join(KINDS)}{guess(named, [*KINDS])}"
        raise ConfigError([document.tell(f"type={show(named)}: {rule}")])
    config: AnyConfig = check_document(document, KINDS[named].config_class)
    return config


def check_document(document: Document, kind: type[Config]) -> Config:
    """The config of one kind that a document holds. Raises `ConfigError`."""
    try:
        return validate(kind, document.data)
    except Problems as error:
        raise ConfigError([document.tell(problem) for problem in error.problems]) from None


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


def dump_config(config: Section) -> str:
    """The resolved config as YAML; `parse_config` of it gives an equal config."""
    return yaml.dump(config.to_mapping(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def config_difference(old: Section, new: Section) -> list[str]:
    """Dotted keys that differ, as `key: old -> new` lines."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    changed = (key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key))
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in changed]
