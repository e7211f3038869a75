"""All attempts at one request: until its reply can be used, or nothing more may be tried.

The JSON in a reply is repaired where only one reading is possible, and refused otherwise.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from ultramed_rl.http.chat import ChatSession, ChatTrail, correction
from ultramed_rl.http.client import Failure
from ultramed_rl.http.strict_json import parse_json
from ultramed_rl.records import ChatRequest

_IN_A_ROW = 20  # requests that fail without an answer between them: it isn't the requests
_UNKNOWN = {401, 402}  # who asks isn't let in, whatever it asks
_ABSENT = {301, 302, 303, 307, 308, 403, 404}  # or only this request isn't allowed
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
# A string as a whole, so that nothing in it is touched; or a comma between a value and a closing bracket.
_TRAILING = re.compile(r'("(?:[^"\\]|\\.)*")|(?<=[^\s,:\[{]),(?=\s*[\]}])', re.DOTALL)
_REASONED = "</think>"
_TOO_DEEP = "not JSON (nested too deeply)"


@dataclass(frozen=True)
class Outcome:
    """A text that can be used, or an error: its kind, and after a colon what exactly."""

    text: str = ""
    error: str = ""


class Watch:
    """Tells a request that went wrong from an endpoint that serves nobody."""

    def __init__(self) -> None:
        self._answered, self._in_a_row = False, 0

    def saw_answer(self) -> None:
        self._answered, self._in_a_row = True, 0

    def serves_nobody(self, failure: Failure) -> bool:
        """Whether, with this failure, it is no use to ask further."""
        if failure.status in _UNKNOWN:
            return True
        if not self._answered and (failure.unreachable or failure.status in _ABSENT):
            return True
        # A refused request may be a bad one. But where none was ever answered, it is what all have in common.
        self._in_a_row += failure.passing or not self._answered
        return self._in_a_row >= _IN_A_ROW


async def usable_reply(asking: ChatSession, request: ChatRequest, trail: ChatTrail, watch: Watch) -> Outcome:
    """The reply to a request. `trail` is told of every attempt.

    A reply that was cut off, or is empty, is asked for again as it was: cut off, once. One that isn't the JSON
    asked for is asked for with the reply and what is wrong with it.

    Raises:
        Failure: one that says that the endpoint serves nobody.
        ValueError: the schema is none.
    """
    if request.schema:
        validator(request.schema)  # a bad one is the caller's error, not each reply's
    asked, cut = request, 0
    while True:
        try:
            answer = await asking.ask(asked, trail)
        except Failure as failure:
            if watch.serves_nobody(failure):
                raise
            return Outcome(error=f"failure: {failure}")
        watch.saw_answer()
        try:
            return Outcome(read_reply(answer.text, answer.finish_reason, request.schema))
        except Misfit as misfit:
            error = str(misfit)
        cut += error == "truncated"
        if error == "filtered" or cut == 2 or not asking.may_retry(trail):
            return Outcome(error=error)
        if error.startswith("misfit: "):
            asked = correction(request, answer.text, error.removeprefix("misfit: "))


def read_reply(text: str, finish_reason: str | None, schema: str) -> str:
    """The reply as it can be used, of an API or an engine. Raises Misfit with the outcome's error."""
    if finish_reason == "content_filter":
        raise Misfit("filtered")
    if finish_reason == "length":
        raise Misfit("truncated")
    if not text.strip():
        raise Misfit("empty")
    try:
        return fit(text, schema) if schema else text
    except Misfit as misfit:
        raise Misfit(f"misfit: {misfit}") from None


class Misfit(Exception):
    """A reply that isn't the JSON that was asked for, and why: one line, fit to tell the model."""


def fit(text: str, schema: str) -> str:
    """The JSON in a reply, rewritten plainly.

    Raises:
        Misfit: there is none, it could be read in several ways, or it doesn't fit the schema.
        ValueError: the schema is none.
    """
    value = read_json(text)
    try:
        problem = best_match(validator(schema).iter_errors(value))
        if problem is None:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise Misfit(_TOO_DEEP) from None
    raise Misfit(f"{problem.json_path}: {' '.join(problem.message.split())[:200]}")


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

    Passed over: reasoning before it (up to </think>, unless that stands in a string), a code fence, words around an object or array as long as
    they hold no bracket. Mended: commas after a last item, raw line breaks in strings. Everything else is
    refused, single quotes too: Python joins the strings of ['a' 'b'], and no one knows which was meant. A value
    that was cut off is never closed: it would be a shorter one.

    Raises:
        Misfit: there is no such value, or not only one.
    """
    with contextlib.suppress(Misfit):
        return _parse(text)
    around = _outermost(text)
    if around is not None and _REASONED in around:  # the mark can only stand in a string if this reads
        with contextlib.suppress(Misfit):
            return _parse_mended(around)
    text = text.rpartition(_REASONED)[2].strip()
    if text.startswith("<think>"):
        raise Misfit("not JSON (reasoning that doesn't end)")
    fenced = _FENCE.fullmatch(text)
    try:
        return _parse(fenced[1] if fenced else text)
    except Misfit as error:
        first = error
    outermost = _outermost(text)
    if outermost is None:
        raise first
    return _parse_mended(outermost)


def _parse_mended(text: str) -> Any:
    with contextlib.suppress(Misfit):
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
        raise Misfit(_TOO_DEEP) from None
    except ValueError as error:
        raise Misfit(str(error)) from None
    return value
