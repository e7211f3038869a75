"""All attempts at one request: until its reply can be used, or nothing more may be tried."""

from __future__ import annotations

from dataclasses import dataclass

from ultramed_rl.data.factory.api.body import correction
from ultramed_rl.data.factory.api.chat import ChatSession, ChatTrail
from ultramed_rl.data.factory.api.structured import Misfit, fit, validator
from ultramed_rl.http.client import Failure
from ultramed_rl.records import ChatRequest

_IN_A_ROW = 20  # requests that fail without an answer between them: it isn't the requests
_UNKNOWN = {401, 402}  # who asks isn't let in, whatever it asks
_ABSENT = {301, 302, 303, 307, 308, 403, 404}  # or only this request isn't allowed


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
            answer = await asking.send(asked, trail)
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
