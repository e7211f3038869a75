"""What of a model's reply can be used: the JSON that was asked for, repaired where only one reading is possible."""

from __future__ import annotations

import contextlib
import json
import re
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from ultramed_rl.http.client import Failure, parse_json

_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
# A string as a whole, so that nothing in it is touched; or a comma between a value and a closing bracket.
_TRAILING = re.compile(r'("(?:[^"\\]|\\.)*")|(?<=[^\s,:\[{]),(?=\s*[\]}])', re.DOTALL)
_REASONED = "</think>"
_TOO_DEEP = "not JSON (nested too deeply)"


class UnusableReply(Failure):
    """A reply that can't be used, and why: one line, fit to tell the model."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, passing=True, answered=True)


def read_reply(text: str, finish_reason: str | None, schema: str) -> str:
    """The reply as it can be used, of an API or an engine.

    Raises:
        UnusableReply: filtered, truncated, empty, or "misfit: ..." (not the JSON asked for, and why).
    """
    if finish_reason in ("content_filter", "length"):
        raise UnusableReply("filtered" if finish_reason == "content_filter" else "truncated")
    if not text.strip():
        raise UnusableReply("empty")
    try:
        return fit(text, schema) if schema else text
    except UnusableReply as misfit:
        raise UnusableReply(f"misfit: {misfit}") from None


def fit(text: str, schema: str) -> str:
    """The JSON in a reply, rewritten plainly.

    Raises:
        UnusableReply: there is none, it could be read in several ways, or it doesn't fit the schema.
        ValueError: the schema is none.
    """
    value = read_json(text)
    try:
        problem = best_match(validator(schema).iter_errors(value))
        if problem is None:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise UnusableReply(_TOO_DEEP) from None
    raise UnusableReply(f"{problem.json_path}: {' '.join(problem.message.split())[:200]}")


@lru_cache(maxsize=64)
def validator(schema: str) -> Draft202012Validator:
    """The schema, ready to check with. Raises ValueError where it is none."""
    try:
        read = json.loads(schema)
        Draft202012Validator.check_schema(read)
    except (ValueError, SchemaError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"schema={schema[:80]!r}: no JSON schema ({reason}); write one of draft 2020-12"
        ) from None
    return Draft202012Validator(read)


def read_json(text: str) -> Any:
    """The one JSON value in a reply.

    Passed over: reasoning before it (up to </think>, unless that stands in a string), a code fence, words around an
    object or array as long as they hold no bracket. Mended: commas after a last item, raw line breaks in strings.
    Everything else is refused, single quotes too: Python joins the strings of ['a' 'b'], and no one knows which was
    meant. A value that was cut off is never closed: it would be a shorter one.

    Raises:
        UnusableReply: there is no such value, or not only one.
    """
    with contextlib.suppress(UnusableReply):
        return _parse(text)
    around = _outermost(text)
    if around is not None and _REASONED in around:  # the mark can only stand in a string if this reads
        with contextlib.suppress(UnusableReply):
            return _parse_mended(around)
    text = text.rpartition(_REASONED)[2].strip()
    if text.startswith("<think>"):
        raise UnusableReply("not JSON (reasoning that doesn't end)")
    fenced = _FENCE.fullmatch(text)
    try:
        return _parse(fenced[1] if fenced else text)
    except UnusableReply as error:
        outermost = _outermost(text)
        if outermost is None:
            raise error
    return _parse_mended(outermost)


def _parse_mended(text: str) -> Any:
    with contextlib.suppress(UnusableReply):
        return _parse(text)
    return _parse(_TRAILING.sub(lambda match: match[1] or "", text))


def _outermost(text: str) -> str | None:
    """From the first opening bracket to the last closing one; None where a further one opens behind that."""
    opened = re.search(r"[\[{]", text)
    closed = max(text.rfind("]"), text.rfind("}"))
    if opened is None or closed < opened.start() or re.search(r"[\[{]", text[closed:]):
        return None
    return text[opened.start() : closed + 1]


def _parse(text: str) -> Any:
    """Strict JSON but for raw control characters in strings; no half characters, which no file can hold."""
    try:
        value = parse_json(text, raw_breaks=True)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UnusableReply(_TOO_DEEP) from None
    except ValueError as error:
        raise UnusableReply(str(error)) from None
    return value
