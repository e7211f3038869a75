"""Every key of every config has bounds: walked over, so that none is forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ultramed_rl.config.base import Section, sections_in
from ultramed_rl.config.factory import EngineConfig
from ultramed_rl.config.recipe import RecipeConfig
from ultramed_rl.kinds import KINDS

Wrap = Any
_KEY = "the value of a key that is looked at itself"


def sections() -> list[type[Section]]:
    """Every section that a config may have, the configs included."""
    found: list[type[Section]] = []
    left: list[type[Section]] = [*(kind.config_class for kind in KINDS.values()), RecipeConfig, EngineConfig]
    while left:
        model = left.pop()
        if model not in found:
            found.append(model)
            left += [
                inner for field in model.model_fields.values() for inner in sections_in(field.annotation)
            ]
    return sorted(found, key=lambda model: model.__name__)


def leaves(
    annotation: Any, metadata: list[Any], wrap: Wrap = lambda x: x
) -> Iterator[tuple[Any, list[Any], Wrap]]:
    """The plain types in an annotation, the limits of each, and how a value of it is put into the key's."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [
            limit
            for part in parts[1:]
            for limit in (part.metadata if isinstance(part, FieldInfo) else [part])
        ]
        yield from leaves(parts[0], [*inner, *metadata], wrap)
    elif origin is list:
        yield from leaves(parts[0], [], lambda x: wrap([x]))
    elif origin is dict:
        yield from leaves(parts[0], [], lambda x: wrap({x: _KEY}))
        yield from leaves(parts[1], [], lambda x: wrap({"a": x}))
    elif parts and origin is not Literal:
        for part in parts:
            yield from leaves(part, metadata, wrap)
    elif annotation in (int, float, str, bool):
        yield annotation, metadata, wrap


def refuses(model: type[Section], key: str, value: Any) -> bool:
    """Whether a section finds fault with a key's value, whatever else it misses."""
    try:
        model.model_validate({key: value})
    except ValidationError as error:
        found = [problem["loc"] for problem in error.errors() if problem["loc"][:1] == (key,)]
        return any(place[-1] == "[key]" for place in found) if _KEY in str(value) else bool(found)
    return False


KEYS = [
    pytest.param(model, key, kind, metadata, wrap, id=f"{model.__name__}.{key}-{kind.__name__}")
    for model in sections()
    for key, field in model.model_fields.items()
    for kind, metadata, wrap in leaves(field.annotation, list(field.metadata))
]
WRONG: dict[type, list[Any]] = {
    int: [True, False, 1.0, "1", 10**30, -(10**30)],
    float: [True, False, "1", math.inf, -math.inf, math.nan, 1e300, -1e300, 10**400],
    str: [True, 5, "x" * 100_001],
    bool: [0, 1, 0.0, "true", "yes"],
}


def test_there_are_keys_to_walk_over() -> None:
    assert len(KEYS) > 250 and {param.values[2] for param in KEYS} == {int, float, str, bool}


@pytest.mark.parametrize(("model", "key", "kind", "metadata", "wrap"), KEYS)
def test_every_key_is_bounded_and_takes_no_other_type(
    model: type[Section], key: str, kind: type, metadata: list[Any], wrap: Wrap
) -> None:
    for value in WRONG[kind]:
        assert refuses(model, key, wrap(value)), (
            f"{value!r:.40} is accepted: give the key a kind of config/limits.py"
        )


@pytest.mark.parametrize(
    ("model", "key", "kind", "metadata", "wrap"), [param for param in KEYS if param.values[2] in (int, float)]
)
def test_of_two_bounds_the_closer_one_counts(
    model: type[Section], key: str, kind: type, metadata: list[Any], wrap: Wrap
) -> None:
    """A key narrows its kind's bounds; pydantic would let the last one win."""

    def beside(value: Any, way: int) -> Any:
        return value + way if kind is int else math.nextafter(value, way * math.inf)

    for limit in metadata:
        match limit:
            case Ge(ge=value):
                outside = beside(value, -1)
            case Le(le=value):
                outside = beside(value, 1)
            case Gt(gt=value) | Lt(lt=value):
                outside = value
            case _:
                continue
        assert refuses(model, key, wrap(kind(outside))), outside


def at(kind: str, *keys: str) -> type[Section]:
    """The section under a key."""
    model: type[Section] = KINDS[kind].config_class
    for key in keys:
        (model,) = sections_in(model.model_fields[key].annotation)
    return model


@pytest.mark.parametrize(
    ("model", "key", "accepted", "refused"),
    [
        (at("online", "training"), "learning_rate", [1e-9, 1.0], [0.0, 1.1, -1e-9]),
        (at("online", "sampling"), "temperature", [0.1, 2.0], [0.0, 2.1, 5]),
        (at("evaluate", "sampling"), "temperature", [0, 2], [-0.1, 5]),
        (at("online", "sampling"), "n", [2, 1024], [1, 1025, 10**8]),
        (at("online", "sampling"), "top_p", [1e-6, 1], [0, 1.1]),
        (at("online", "run"), "seed", [0, 2**63 - 1], [-1, 2**63, 2**64]),
        (at("evaluate", "benchmarks", "general"), "seed", [0, 2**32 - 1], [-1, 2**32]),
        (at("online", "pairs"), "min_margin", [0, 10**6], [-0.1, 1e7, math.inf]),
        (at("online", "cluster"), "nodes", [1, 4096], [0, 4097, 10**9]),
        (at("online", "cluster"), "device_memory_gib", [0.5, 65_536], [0, 1e308]),
        (at("online", "cluster", "policy"), "zero_stage", [0, 3], [-1, 4, True, 1.0]),
        (at("online", "cluster", "faults"), "hang_s", [0.1, 31 * 86_400], [0, 1e10]),
        (
            at("online", "run"),
            "name",
            ["a" * 200, "A.b_c-1"],
            ["a" * 201, "", ".a", "a b", "a/b", "é", "{{x}}", "a\n"],
        ),
        (
            at("online", "run"),
            "directory",
            ["runs", "s3://bucket/runs"],
            ["", " ", "a\0", "x" * 256, "{{x}}", "~nobody-x"],
        ),
        (at("online", "tracking"), "tags", [["a" * 64]], [["a" * 65], [""], "a"]),
    ],
)
def test_bounds_by_kind(model: type[Section], key: str, accepted: list[Any], refused: list[Any]) -> None:
    assert [value for value in accepted if refuses(model, key, value)] == []
    assert [value for value in refused if not refuses(model, key, value)] == []
