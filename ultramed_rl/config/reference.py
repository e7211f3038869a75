"""The configuration reference: every key of every config, out of the schema itself.

`python -m ultramed_rl.config.reference > docs/configuration.md` renews the page.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ultramed_rl.config.base import Section, sections_in
from ultramed_rl.config.recipe import RecipeConfig
from ultramed_rl.kinds import KINDS

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


RENEW = "python -m ultramed_rl.config.reference > docs/configuration.md"
_LONGEST_DEFAULT = 60
_HEAD = f"""# Configuration

Every key of every config, generated from the schema; `{RENEW}` renews it.

A config is a YAML file; `type` says which kind (without it, an online run). Any key can be given on the command line as
`section.key=value`: the value is read as YAML, `key=null` takes a key away, and a mapping replaces a section. A key that
isn't listed here is refused, with a guess at what was meant; so are values of the wrong type: `1.5` is no integer.
Every number is finite and has bounds, every text a longest length; the wide ones, which aren't listed, are in
`ultramed_rl/config/limits.py`. YAML is read by version 1.2's core schema: `yes`, `1:30` and `2024-01-31` are text, `010` is ten.
Anchors and merge keys (`<<: *shared`) may be used; tags (`!!int`), keys that are no text, and keys that stand twice are refused.
Rules that span several keys are checked as well; each broken one is a line with the fix.

"Required" keys have no default. A section in the default column means that it may be left out altogether.
"""


@dataclass(frozen=True)
class Row:
    """One key of a section, as the page shows it."""

    key: str
    type: str
    default: str
    meaning: str


def render_reference() -> str:
    """The whole page as Markdown."""
    kinds = {name: kind.config_class for name, kind in KINDS.items()} | {"recipe": RecipeConfig}
    places = _places(kinds)
    parts = [_HEAD, _contents(kinds)]
    seen: set[type[Section]] = set(kinds.values())
    for name, model in kinds.items():
        parts.append(f"\n## type: {name}\n\n{_words(model)}\n\n{_table(model)}")
        for section in _below(model):
            if section not in seen:
                seen.add(section)
                parts.append(_section(section, places[section]))
    return "\n".join(parts).rstrip() + "\n"


def rows_of(model: type[Section]) -> list[Row]:
    """The keys of a section, in the order of the schema; `type`, which has one value, is in the heading."""
    return [_row(name, field) for name, field in model.model_fields.items() if name != "type"]


def _row(name: str, field: FieldInfo) -> Row:
    rules = describe_rules(field)
    words = field.description or _inherited_words(field)
    meaning = "; ".join(part for part in (words, rules) if part)
    return Row(name, describe_type(field.annotation), _default(field), meaning)


def _inherited_words(field: FieldInfo) -> str:
    """Of a key that holds one section, that section's first sentence."""
    found = sections_in(field.annotation)
    return _summary(found[0]) if len(found) == 1 else ""


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Section):
        same = default == _or_none(type(default))
        return "the section's" if same else f"`{_flow(default.to_mapping())}`"
    if isinstance(default, list) and any(isinstance(item, Section) for item in default):
        default = [item.to_mapping() if isinstance(item, Section) else item for item in default]
    text = default if isinstance(default, str) and default else _flow(default)
    if len(text) > _LONGEST_DEFAULT and isinstance(default, list | dict):
        return f"{len(default)} of our own"
    return f"`{text}`"


def _or_none(model: type[Section]) -> Section | None:
    try:
        return model()
    except ValueError:  # a section with required keys
        return None


def _flow(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("|", "\\|")


def _table(model: type[Section]) -> str:
    rows = rows_of(model)
    if not rows:
        return "No further keys."
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.key}` | {row.type} | {row.default} | {row.meaning} |" for row in rows]
    return "\n".join(lines)


def _section(model: type[Section], used: list[str]) -> str:
    kind = model.model_fields.get("type")
    tagged = f"`type: {kind.default}`. " if kind is not None else ""
    where = ", ".join(f"`{place}`" for place in used)
    return f"\n### {Link(model).title}\n\n{tagged}{_words(model)} Stands in {where}.\n\n{_table(model)}"


def _contents(kinds: dict[str, type[Section]]) -> str:
    lines = ["| `type` | is |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| [{name}](#type-{name}) | {_summary(model)} |" for name, model in kinds.items())]
    )


def _places(kinds: dict[str, type[Section]]) -> dict[type[Section], list[str]]:
    """By section, the keys that hold it: of the config types in which it is named directly, or of sections."""
    found: dict[type[Section], list[str]] = {}
    owners = list(dict.fromkeys([*kinds.values(), *(s for model in kinds.values() for s in _below(model))]))
    names = {model: name for name, model in kinds.items()}
    for owner in owners:
        for key, field in owner.model_fields.items():
            for section in sections_in(field.annotation):
                place = f"{names.get(owner, Link(owner).title)}.{key}"
                places = found.setdefault(section, [])
                if place not in places:
                    places.append(place)
    return found


def _below(model: type[Section]) -> Iterator[type[Section]]:
    """All sections under one, depth first."""
    for field in model.model_fields.values():
        for section in sections_in(field.annotation):
            yield section
            yield from _below(section)


def _words(model: type[Section]) -> str:
    """A section's docstring as one line that a Markdown table can hold."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split()).replace("|", "\\|")


def _summary(model: type[Section]) -> str:
    """The docstring's first paragraph."""
    paragraph = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render_reference())
