"""JSON as RFC 8259 has it, of a writer that isn't trusted."""

from __future__ import annotations

import json
import math
from typing import Any

_MOST_DIGITS = 300  # of a whole number: more is no float


def parse_json(text: str | bytes, *, raw_breaks: bool = False) -> Any:
    """The value.

    Args:
        raw_breaks: whether strings may hold control characters as they are.

    Raises:
        ValueError: no JSON, or what readers take in different ways: a key twice in an object, NaN, a number beyond
            what a float holds, nesting beyond what Python reads.
    """
    try:
        return json.loads(
            text,
            strict=not raw_breaks,
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos} of {len(text)})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is beyond what a float holds")
    return number


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
