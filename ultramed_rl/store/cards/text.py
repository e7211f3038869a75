"""What model and data cards have in common: the template, tables, fences, names without this machine's paths."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from huggingface_hub import CardData

DISCLAIMER = (
    "**For research only. Not a medical device.** Unless its authors say so, no clinician has checked it. It can be wrong "
    "about medicine in ways that sound right. It is not for diagnosis, treatment, triage or any other decision about a "
    "person's health without qualified professionals who answer for that decision."
)
# How long a step took says nothing of what it made, and would change from run to run.
_TIMES = ("seconds", "per_second", "mfu", "peak_memory", "time")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHOWN_PARTS = 3
_HUB_NAMES = {"offline://smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class Input:
    """Something that went in: its part, where it is, and its SHA-256 where it is a file or was made here."""

    part: str
    where: str
    digest: str = ""


@dataclass(frozen=True)
class EarlierStep:
    """A data stage before: its run's name, its step, and the models that it asked."""

    stage: str
    step: str
    models: tuple[str, ...] = ()


def render(template: str, front: CardData, sections: Mapping[str, Any], **values: Any) -> str:
    """A card from its template, of what the hub is told, the config's sections that decide, and the template's own values."""
    return _templates().get_template(template).render(front=front_matter(front), sections=sections, **values)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"cell": cell, "place": place}
    templates.globals |= {"DISCLAIMER": DISCLAIMER, "figures": figures, "settings": settings, "table": table}
    return templates


def front_matter(entries: CardData) -> str:
    """The YAML block at the top, without the licence, which is for the user to fill in."""
    # ASCII alone: PyYAML writes some Unicode line ends as they are, and reads them as spaces.
    return yaml.safe_dump(entries.to_dict(), sort_keys=False, width=10**6)


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, its cells escaped."""
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(value) for value in row)} |" for row in rows)])


def cell(value: object) -> str:
    """A value as one line that neither ends a cell nor is read as HTML."""
    if isinstance(value, float):
        value = f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`*\[\]\\])", r"\\\1", text)


def settings(sections: Mapping[str, Any]) -> str:
    """Sections of a config as a YAML block, without this machine's paths; its fence is longer than any in the text."""
    text = yaml.safe_dump(_without_roots(dict(sections)), sort_keys=False, allow_unicode=True)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def figures(metrics: Mapping[str, float]) -> str:
    """A table of finite figures, without times; a sentence where there are none."""
    rows = [
        (name.replace("_", " "), float(value))
        for name, value in metrics.items()
        if math.isfinite(value) and not any(part in name for part in _TIMES)
    ]
    return table(("figure", "value"), rows) if rows else "None."


def hub_id(where: str) -> str:
    """The hub's name of a model, or nothing where it is a directory."""
    return _HUB_NAMES.get(where) or (where if _HUB_ID.fullmatch(where) else "")


def model_name(where: str) -> str:
    """A model as a card names it."""
    return hub_id(where) or place(where)


def place(where: str) -> str:
    """A path or URI; of an absolute path its end alone: where a machine keeps its files is nobody's business."""
    if "://" in where or not where.startswith(("/", "~")):
        return where
    return "/".join(["...", *PurePosixPath(where).parts[-_SHOWN_PARTS:]])


def _without_roots(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_roots(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_roots(value) for value in node]
    return place(node) if isinstance(node, str) and "\n" not in node else node
