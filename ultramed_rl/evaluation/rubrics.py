"""Rubrics: criteria with points, of which a judge says whether an answer meets them. Pure.

A column's value --> criteria --> what a judge is asked --> its verdicts --> points earned over points to be earned
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ultramed_rl.data.templates import read_template, shown_chat, without_tags
from ultramed_rl.http.json_reply import UnusableReply, read_json
from ultramed_rl.records import Message

_OURS = Path(__file__).with_name("rubric_prompt.txt")
_FIELDS = ("question", "answer", "criteria")
_TEXTS, _POINTS = ("criterion", "description", "text"), ("points", "weight")
_VERDICT = r"(?P<no>not\s+met|unmet|no|false)|(?P<yes>met|yes|true)"
# Small judges say it in a sentence: "The criterion is met, because ..."; "is met in part" is no verdict.
_STATED = (
    rf"(?P<stated>(?:the|this)\s+(?:criterion|statement|answer)\s+is\W+)?(?:{_VERDICT})\b"
    r"(?(stated)(?=\s*(?:[^\w\s]|$|because\b|since\b|as\b)))"
)
_LINE = re.compile(
    rf"^\W*(?:criterion\s*)?(?P<number>\d{{1,3}})\W{{1,6}}{_STATED}", re.IGNORECASE | re.MULTILINE
)
_ALONE = re.compile(rf"\W*{_STATED}(?(stated)|\W*$)", re.IGNORECASE)


@dataclass(frozen=True)
class Criterion:
    """What an answer may meet, and the points that it earns or loses by that."""

    text: str
    points: float = 1.0
    tags: tuple[str, ...] = ()


def read_rubric(value: Any) -> tuple[Criterion, ...]:
    """The criteria in a column: HealthBench's `[{criterion, points, tags}]`, open-instruct's `{"rubrics": [{description, weight}]}`, or
    a list of texts, each for one point; also as JSON.

    Raises:
        ValueError: another form, a criterion without points, or nothing to earn.
    """
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, Mapping):
        value = value.get("rubrics", value.get("rubric"))
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.60} is no list of criteria")
    criteria = tuple(map(_criterion, value))
    if not any(criterion.points > 0 for criterion in criteria):
        raise ValueError(
            f"none of its {len(criteria)} criteria has positive points, so that there is nothing to earn"
        )
    return criteria


def _criterion(item: Any) -> Criterion:
    named = item if isinstance(item, Mapping) else {"criterion": item, "points": 1.0}
    text = next((named[name] for name in _TEXTS if named.get(name)), None)
    points = next((named[name] for name in _POINTS if named.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"criterion {item!r:.60} has no text ({', '.join(_TEXTS)})")
    if isinstance(points, bool) or not isinstance(points, int | float) or not math.isfinite(points):
        raise ValueError(f"criterion {text[:60]!r} has no points ({' or '.join(_POINTS)})")
    tags = named.get("tags") or ()
    return Criterion(text.strip(), float(points), (tags,) if isinstance(tags, str) else tuple(map(str, tags)))


def earned_share(criteria: Sequence[Criterion], met: Sequence[bool]) -> float:
    """Points of the criteria that are met over all positive points, at most 1; NaN where no points are positive. It is
    HealthBench's score of one answer, below 0 where what is lost weighs more than what is earned."""
    possible = math.fsum(c.points for c in criteria if c.points > 0)
    earned = math.fsum(c.points for c, is_met in zip(criteria, met, strict=True) if is_met)
    return earned / possible if possible else math.nan


# -- the judge ---------------------------------------------------------------------------------------------


def rubric_template(path: str | None, key: str = "rubric.template") -> Template:
    """The template of a file, or our own. Raises ValueError as `read_template`."""
    return read_template(_OURS if path is None else Path(path), _FIELDS, (), key)


def rubric_prompt(
    messages: Sequence[Message], answer: str, criteria: Sequence[Criterion], template: Template
) -> str:
    """What a judge is asked about one answer: to a lone question, or to a chat, every turn after its role. It is not told the
    points, which say what is wanted."""
    numbered = "\n".join(f"{number}: {' '.join(c.text.split())}" for number, c in enumerate(criteria, 1))
    texts = (shown_chat(messages), answer, numbered)
    named = zip(_FIELDS, texts, strict=True)
    return template.substitute({name: without_tags(text, *_FIELDS) for name, text in named})


def read_verdicts(reply: str) -> dict[int, bool] | None:
    """By a criterion's number, from 1, whether it is met: lines "1: met", a lone "not met" or "The criterion is met, ...",
    or HealthBench's {"criteria_met": true}. A number with two verdicts has none; None of a reply without any."""
    with suppress(UnusableReply):
        value = read_json(reply)
        if isinstance(value, dict) and isinstance(value.get("criteria_met"), bool):
            return {1: value["criteria_met"]}
    if alone := _ALONE.match(reply):
        return {1: bool(alone["yes"])}
    found: dict[int, set[bool]] = {}
    for line in _LINE.finditer(reply):
        found.setdefault(int(line["number"]), set()).add(bool(line["yes"]))
    return {number: said.pop() for number, said in found.items() if len(said) == 1} or None
