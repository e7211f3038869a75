"""The configuration reference: every key of every config, out of the schema itself.

`python -m ultramed_rl.config.reference > docs/configuration.md` renews the page.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ultramed_rl.config.base import Section
from ultramed_rl.config.recipe import RecipeConfig
from ultramed_rl.config.reference_types import Link, describe_rules, describe_type, sections_in
from ultramed_rl.kinds import KINDS

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
