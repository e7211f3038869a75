"""The configuration reference: every key of every config, out of the JSON schemas of their sections.

`python docs/make_configuration.py > docs/configuration.md` renews the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from ultramed_rl.config.recipe import RecipeConfig
from ultramed_rl.kinds import KINDS

RENEW = "python docs/make_configuration.py > docs/configuration.md"
_LONGEST_DEFAULT = 60
_WIDE, _LONG = 1000, 200  # bounds that nobody meets by chance need no words
_PLAIN = {"boolean": "true or false", "string": "text"}
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
Schema = dict[str, Any]  # JSON's, of a section or of a value


def render_reference() -> str:
    """The whole page as Markdown."""
    models = {name: kind.config_class for name, kind in KINDS.items()} | {"recipe": RecipeConfig}
    kinds = {name: model.model_json_schema() for name, model in models.items()}
    sections = {title: section for kind in kinds.values() for title, section in kind.get("$defs", {}).items()}
    places: dict[str, list[str]] = {}
    own = {name: _place(name, kind, sections, places) for name, kind in kinds.items()}
    parts = [_HEAD, "| `type` | is |", "|---|---|"]
    parts += [f"| [{name}](#type-{name}) | {_summary(kind)} |" for name, kind in kinds.items()]
    for name, kind in kinds.items():
        parts.append(f"\n## type: {name}\n\n{_words(kind)}\n\n{_table(kind, sections)}")
        for title in own[name]:
            section = sections[title]
            tag = section["properties"].get("type")
            tagged = f"`type: {tag['default']}`. " if tag else ""
            where = f"Stands in {', '.join(f'`{place}`' for place in places[title])}."
            parts.append(f"\n### {title}\n\n{tagged}{_words(section)} {where}\n\n{_table(section, sections)}")
    return "\n".join(parts).rstrip() + "\n"


def _table(schema: Schema, sections: dict[str, Schema]) -> str:
    """The keys of a section, in the order of the schema; `type`, which has one value, is in the heading."""
    rows = []
    for name, value in schema["properties"].items():
        held = _titles(value)
        words = value.get("description") or (_summary(sections[held[0]]) if len(held) == 1 else "")
        meaning = "; ".join(filter(None, (words, ", ".join(dict.fromkeys(_rules(value))))))
        if name != "type":
            rows.append(
                f"| `{name}` | {_describe(value, sections)} | {_default(value, sections)} | {meaning} |"
            )
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else "No further keys."


def _place(
    owner: str, schema: Schema, sections: dict[str, Schema], places: dict[str, list[str]]
) -> list[str]:
    """Put into `places` the keys that hold each section under this one, depth first; the titles that are new there."""
    new = []
    for name, value in schema["properties"].items():
        for title in _titles(value):
            if title not in places:
                places[title] = []
                new += [title, *_place(title, sections[title], sections, places)]
            places[title].append(f"{owner}.{name}")
    return new


def _titles(value: Schema) -> list[str]:
    """The sections that a key may hold, in the order of the schema."""
    own = [value["$ref"].rpartition("/")[2]] if "$ref" in value else []
    return own + [title for part in _parts(value) for title in _titles(part)]


def _parts(value: Schema) -> list[Schema]:
    """What a value is made of: the members of a union, a list's items, a mapping's values."""
    inside = [
        value.get("items"),
        value.get("additionalProperties"),
        *value.get("patternProperties", {}).values(),
    ]
    return [*_members(value), *(part for part in inside if isinstance(part, dict))]


def _members(value: Schema) -> list[Schema]:
    members: list[Schema] = value.get("oneOf") or value.get("anyOf") or []
    return members


def _describe(value: Schema, sections: dict[str, Schema]) -> str:
    """What may stand there: `integer`, `` `a` or `b` ``, `list of text`, links to sections."""
    if "$ref" in value:
        return _link(_titles(value)[0], sections)
    if "const" in value or "enum" in value:
        return _either([f"`{choice}`" for choice in value.get("enum") or [value["const"]]])
    if members := _members(value):
        linked = [_link(title, sections) for title in _titles(value)]
        words = [f"one by its `type`: {', '.join(linked)}"] if len(linked) > 1 else linked
        plain = [_describe(part, sections) for part in members if not _titles(part)]
        return _either([*words, *sorted(plain, key="null".__eq__)])  # null last
    if value.get("type") == "array":
        return f"list of {_describe(value['items'], sections)}".replace("list of one by", "list, each by")
    if value.get("type") == "object":
        return f"mapping of text to {_describe((_parts(value) or [{}])[0], sections)}"
    kind: str = value.get("type", "anything")
    return _PLAIN.get(kind, kind)


def _link(title: str, sections: dict[str, Schema]) -> str:
    tag = sections[title]["properties"].get("type")
    return f"[{tag['default'] if tag else title}](#{title.lower()})"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _default(value: Schema, sections: dict[str, Schema]) -> str:
    if "default" not in value:
        return "required"
    default = value["default"]
    for title in _titles(value):
        own = {name: inner.get("default", ...) for name, inner in sections[title]["properties"].items()}
        if default == own:
            return "the section's"
    text = default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)
    if len(text) > _LONGEST_DEFAULT and isinstance(default, list | dict):
        return f"{len(default)} of our own"
    return f"`{text}`".replace("|", "\\|")


def _rules(value: Schema) -> Iterator[str]:
    """The limits of a value and of what it holds: `at least 2, at most 16`; of two bounds the closer one."""
    low = [(value[name], name[0] == "e") for name in ("minimum", "exclusiveMinimum") if name in value]
    high = [(value[name], name[0] == "m") for name in ("maximum", "exclusiveMaximum") if name in value]
    if low and max(low)[0] > -_WIDE:
        limit, is_open = max(low)
        yield f"{'above' if is_open else 'at least'} {limit:g}"
    if high and min(high)[0] < _WIDE:
        limit, is_closed = min(high)
        yield f"{'at most' if is_closed else 'below'} {limit:g}"
    for unit, of in (("characters", "Length"), ("entries", "Items"), ("entries", "Properties")):
        least, most = f"min{of}", f"max{of}"
        if least in value:
            yield "not empty" if value[least] == 1 else f"at least {value[least]} {unit}"
        if value.get(most, _LONG) < _LONG:
            yield f"at most {value[most]} {unit}"
    for pattern in (value.get("pattern"), *value.get("patternProperties", ())):
        if pattern:
            yield f"matches `{pattern}`"
    for part in _parts(value):
        yield from _rules(part)


def _words(schema: Schema) -> str:
    """A section's docstring as one line that a Markdown table can hold."""
    return " ".join(schema["description"].split()).replace("|", "\\|")


def _summary(schema: Schema) -> str:
    """The docstring's first paragraph."""
    return _words({"description": schema["description"].partition("\n\n")[0]}).rstrip(".")


if __name__ == "__main__":
    sys.stdout.write(render_reference())
