"""Types and rules of config keys in words, for the configuration reference."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from ultramed_rl.config.base import Section

_WIDE, _LONG = 1000, 200  # bounds that nobody meets by chance need no words
_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "anything"}


@dataclass(frozen=True)
class Link:
    """A section's heading on the page, and the way there."""

    model: type[Section]

    @property
    def title(self) -> str:
        """The heading: the section's name."""
        return self.model.__name__.lstrip("_")

    def __str__(self) -> str:
        kind = self.model.model_fields.get("type")
        shown = self.title if kind is None else str(kind.default)
        return f"[{shown}](#{self.title.lower()})"


def describe_type(annotation: Any) -> str:
    """What may stand there: `integer`, `` `a` or `b` ``, `list of text`, links to sections."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe_type(parts[0])
    if origin is Literal:
        return _either([f"`{value}`" for value in parts])
    if origin in (Union, types.UnionType):
        return _union(parts)
    if origin is list:
        return f"list of {describe_type(parts[0])}".replace("list of one by", "list, each by")
    if origin in (dict, Mapping):
        return f"mapping of {describe_type(parts[0])} to {describe_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return str(Link(annotation))
    if annotation is type(None):
        return "null"
    return _PLAIN.get(annotation) or origin.__name__.lower()


def describe_rules(field: FieldInfo) -> str:
    """The limits of a key's value, and of what it holds: `at least 2, at most 16`."""
    rules = [*_limits(field.metadata, field.annotation), *_inner(field.annotation)]
    return ", ".join(dict.fromkeys(rules))


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a key may hold, in the order of the schema."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return [model for part in inner for model in sections_in(part)]


def _union(parts: tuple[Any, ...]) -> str:
    models = [model for part in parts for model in sections_in(part)]
    words = [describe_type(part) for part in parts if not sections_in(part) and part is not type(None)]
    if len(models) > 1:
        words.insert(0, "one by its `type`: " + ", ".join(str(Link(model)) for model in models))
    elif models:
        words = [describe_type(part) for part in parts if part is not type(None)]
    return _either([*words, *(["null"] if type(None) in parts else [])])


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _inner(annotation: Any) -> Iterator[str]:
    """Limits of list items, mapping keys and the like."""
    if get_origin(annotation) is Annotated:
        value, *metadata = get_args(annotation)
        parts = [item.metadata if isinstance(item, FieldInfo) else [item] for item in metadata]
        yield from _limits([limit for part in parts for limit in part], value)
        yield from _inner(value)
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _inner(part)


def _limits(metadata: list[Any], annotation: Any) -> Iterator[str]:
    unit = " characters" if _holds(annotation, str) else " entries" if _holds(annotation, list, dict) else ""
    yield from _bounds(metadata)
    for item in metadata:
        match item:
            case MinLen(min_length=1):
                yield "not empty"
            case MinLen(min_length=limit):
                yield f"at least {limit}{unit}"
            case MaxLen(max_length=limit) if limit < _LONG:
                yield f"at most {limit}{unit}"
            case _ if getattr(item, "pattern", None):
                yield f"matches `{item.pattern}`"


def _bounds(metadata: list[Any]) -> Iterator[str]:
    """The closest lower and the closest upper bound, for a key may narrow its kind's; wide ones are left out."""
    low: list[tuple[Any, bool]] = [(item.ge, False) for item in metadata if isinstance(item, Ge)]
    low += [(item.gt, True) for item in metadata if isinstance(item, Gt)]
    high: list[tuple[Any, bool]] = [(item.le, True) for item in metadata if isinstance(item, Le)]
    high += [(item.lt, False) for item in metadata if isinstance(item, Lt)]
    if low:
        limit, open_end = max(low)
        if limit > -_WIDE:
            yield f"{'above' if open_end else 'at least'} {limit:g}"
    if high:
        limit, closed_end = min(high)
        if limit < _WIDE:
            yield f"{'at most' if closed_end else 'below'} {limit:g}"


def _holds(annotation: Any, *kinds: type) -> bool:
    """Whether a value of this type is one of these kinds, null aside."""
    found = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(part in kinds or get_origin(part) in kinds for part in found)
