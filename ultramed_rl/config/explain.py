"""What pydantic found wrong, in lines that begin with the dotted key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from ultramed_rl.config.base import SECRET, Problems, Section, show
from ultramed_rl.config.reference_types import sections_in

Config = TypeVar("Config", bound=Section)


# Keys of older versions, and what they are called now.
_RENAMED = {
    "cluster.barriers": "cluster.sequential_phases",
    "cluster.faults.fewer": "cluster.faults.allow_fewer_workers",
    "cluster.faults.set_aside_share": "cluster.faults.max_failed_prompt_share",
    "training.early": "training.overlap_training",
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
    key = ".".join(_keys(location, data, fault))
    value, context = problem.get("input"), problem.get("ctx", {})
    if fault == "extra_forbidden":
        allowed, now = _allowed_keys(kind, location), _RENAMED.get(key)
        meant = guess(location[-1], allowed) if now is None else f", called {now} now"
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
        yield from (_name(line, location, key) for line in lines)
    else:
        choices = re.findall(r"'([^']*)'", context.get("expected", "")) if fault == "literal_error" else []
        yield f"{key}={show(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}{guess(value, choices)}"


def guess(given: object, known: Sequence[str]) -> str:
    """What was meant, in words that go on after a rule; nothing where no known one is near."""
    near = difflib.get_close_matches(given[:80], known, n=1) if isinstance(given, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _name(text: str, location: list[str], key: str) -> str:
    """A rule's words after their whole key; a rule names its section or key by the last parts of it at most."""
    parts = re.match(r"[\w.]*", text)[0].split(".")  # type: ignore[index]
    for start in range(len(location)):
        said = location[start:]
        if parts[: len(said)] == said:
            return key + text[len(".".join(said)) :]
    return f"{key}: {text}" if key else text


def _keys(location: list[str], data: dict[str, Any], fault: str) -> Iterator[str]:
    """The parts of a location that are keys of the file: pydantic puts in which member of a union it tried."""
    node: Any = data
    for place, part in enumerate(location):
        inside = node.get(part, _ABSENT) if isinstance(node, dict) else _ABSENT
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            inside = node[int(part)]
        is_tag = isinstance(node, dict) and inside is _ABSENT
        if inside is not _ABSENT:
            node = inside
        if inside is not _ABSENT or (is_tag and fault == "missing" and place == len(location) - 1):
            yield part


_ABSENT = object()


def _allowed_keys(kind: type[Section], location: list[str]) -> list[str]:
    model: Any = kind
    for step in location[:-1]:
        model = _descend(model, step)
    fields = getattr(model, "model_fields", {})
    return list(fields)


def _descend(annotation: Any, step: str) -> Any:
    """The model behind one step of a location: a field, a list index, or a union's tag."""
    candidates = sections_in(annotation)
    for model in candidates:
        if step in model.model_fields:
            return _narrow(model.model_fields[step].annotation)
    for model in candidates:
        tag = model.model_fields.get("type")
        if tag is not None and tag.default == step:
            return model
    return annotation


def _narrow(annotation: Any) -> Any:
    found = sections_in(annotation)
    return found[0] if len(found) == 1 else annotation
