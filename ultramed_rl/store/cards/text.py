"""What model and data cards have in common: front matter, tables, fences, the disclaimer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

DISCLAIMER = (
    "**For research only. Not a medical device.** Unless its authors say so, no clinician has checked it. It can be wrong "
    "about medicine in ways that sound right. It is not for diagnosis, treatment, triage or any other decision about a "
    "person's health without qualified professionals who answer for that decision."
)
LICENCE = (
    "Not filled in: the tool cannot know it. Before you publish, replace `license: unknown` at the top and this "
    "paragraph. What you may choose is bound by the licences and terms of everything that is named above as a source."
)
_LICENCE_LINE = "license: unknown  # fill in before you publish, see the last section but one\n"
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


def front_matter(entries: Mapping[str, Any]) -> str:
    """The YAML block at the top; entries that are empty are left out, the licence is for the user to fill in."""
    given = {key: value for key, value in entries.items() if value}
    # ASCII alone: PyYAML writes some Unicode line ends as they are, and reads them as spaces.
    text = yaml.safe_dump(given, sort_keys=False, width=10**6)
    return f"---\n{text}{_LICENCE_LINE}---"


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, its cells escaped."""
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(value) for value in row)} |" for row in rows)])


def cell(value: object) -> str:
    """A value as one line that neither ends a cell nor is read as HTML."""
    text = _number(value) if isinstance(value, float) else str(value)
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`*\[\]\\])", r"\\\1", text)


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def settings(sections: Mapping[str, Any]) -> str:
    """Sections of a config as a YAML block, without this machine's paths."""
    return fenced(yaml.safe_dump(_without_roots(dict(sections)), sort_keys=False, allow_unicode=True), "yaml")


def figures(metrics: Mapping[str, float]) -> str:
    """A table of finite figures, without times; a sentence where there are none."""
    rows = [
        (name.replace("_", " "), float(value))
        for name, value in metrics.items()
        if math.isfinite(value) and not any(part in name for part in _TIMES)
    ]
    return table(("figure", "value"), rows) if rows else "None."


def inputs_table(inputs: Sequence[Input]) -> str:
    """What went in, by its digest."""
    rows = [(item.part, place(item.where), item.digest or "-") for item in inputs]
    note = (
        ""
        if all(item.digest for item in inputs)
        else "\n\nA dash: not made or kept by this tool; known by its name alone."
    )
    return table(("part", "from", "SHA-256"), rows) + note


def versions_table(versions: Mapping[str, str]) -> str:
    """Packages by version."""
    return table(("package", "version"), versions.items()) if versions else "Not recorded."


def hub_id(where: str) -> str:
    """The hub's name of a model, or nothing where it is a directory."""
    return _HUB_NAMES.get(where) or (where if _HUB_ID.fullmatch(where) else "")


def model_name(where: str) -> str:
    """A model as a card names it."""
    return hub_id(where) or place(where)


def data_ids(uris: Iterable[str]) -> list[str]:
    """The hub's names of data sets among URIs, each once."""
    names = (uri.removeprefix("hf://").partition(":")[0] for uri in uris if uri.startswith("hf://"))
    return list(dict.fromkeys(names))


def place(where: str) -> str:
    """A path or URI; of an absolute path its end alone: where a machine keeps its files is nobody's business."""
    if "://" in where or not where.startswith(("/", "~")):
        return where
    return "/".join(["...", *PurePosixPath(where).parts[-_SHOWN_PARTS:]])


def _number(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def _without_roots(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_roots(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_roots(value) for value in node]
    return place(node) if isinstance(node, str) and "\n" not in node else node
