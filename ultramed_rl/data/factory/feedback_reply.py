"""A judge's reply on a record's candidates: the schema it is asked to fit, and what it is read for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.config.factory_pairs import Feedback
from ultramed_rl.data.factory.asking import Miss, read_object, read_text
from ultramed_rl.data.factory.judgements import Order, Verdict


def feedback_schema(count: int, config: Feedback) -> str:
    """The JSON schema of a reply on `count` candidates. That a ranking holds each once, no schema says."""
    number = {"type": "integer", "minimum": 1, "maximum": count}
    score = {"type": "integer", "minimum": config.low, "maximum": config.high}
    names = [aspect.name for aspect in config.aspects]
    parts = {
        "number": number,
        "evaluation": {"type": "string"},
        "scores": _closed({name: score for name in names}),
        "overall": score,
    }
    size = {"type": "array", "minItems": count, "maxItems": count}
    return json.dumps(
        _closed({"evaluations": {**size, "items": _closed(parts)}, "ranking": {**size, "items": number}})
    )


@dataclass(frozen=True)
class Reading:
    """A reply that can be used: verdicts in the candidates' own order, and the order in which they were shown."""

    verdicts: tuple[Verdict, ...]
    order: Order


def read_reply(text: str, shown: Sequence[int], config: Feedback) -> Reading | Miss:
    """The verdicts in a judge's reply, moved back from the order in which the candidates were shown; or its fault:
    unreadable_reply, bad_evaluations, bad_ranking, bad_score."""
    reply, count = read_object(text), len(shown)
    if reply is None:
        return Miss("unreadable_reply", "it is not a JSON object of the form asked for")
    items, ranking = _items(reply.get("evaluations")), _permutation(reply.get("ranking"), count)
    if ranking is None:
        return Miss("bad_ranking", f"the ranking does not hold each of the numbers 1 to {count} exactly once")
    numbers = _permutation([item.get("number") for item in items], count)
    if numbers is None:
        return Miss("bad_evaluations", f"the answers 1 to {count} are not each evaluated exactly once")
    found: dict[int, Verdict] = {}
    for number, item in zip(numbers, items, strict=True):
        scores = _scores(item, config)
        if scores is None:
            return Miss("bad_score", f"the scores of answer {number} are not whole numbers {_scale(config)}")
        *aspects, overall = scores
        by_name = {aspect.name: score for aspect, score in zip(config.aspects, aspects, strict=True)}
        rank = ranking.index(number) + 1
        found[shown[number - 1]] = Verdict(read_text(item.get("evaluation")), by_name, overall, rank)
    order = Order(tuple(shown), tuple(shown[number - 1] for number in ranking))
    return Reading(tuple(found[place] for place in range(count)), order)


def _items(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where it is something else or holds anything else."""
    whole = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return value if whole else []


def _permutation(value: Any, count: int) -> list[int] | None:
    """A list of each of the numbers 1 to `count`, once; else None. True is no number."""
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        return None
    return value if sorted(value) == list(range(1, count + 1)) else None


def _scores(item: Mapping[str, Any], config: Feedback) -> list[int] | None:
    """The aspects' scores and the overall one, all on the scale; else None."""
    own = item.get("scores")
    named = own if isinstance(own, dict) else {}
    found: list[Any] = [*(named.get(aspect.name) for aspect in config.aspects), item.get("overall")]
    fits = all(type(score) is int and config.low <= score <= config.high for score in found)
    return found if fits else None


def _scale(config: Feedback) -> str:
    names = ", ".join(aspect.name for aspect in config.aspects)
    return f"from {config.low} to {config.high} for {names} and overall"


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object with all of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
