"""A language model behind an OpenAI-compatible API that is asked many questions at a time, and its grade of each answer."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Generic, TypeVar

from ultramed_rl.config.models import Endpoint
from ultramed_rl.config.rewards import ApiModel, JudgeTerm, Scale
from ultramed_rl.data.templates import read_template, without_tags
from ultramed_rl.evaluation.reading.text import NUMBER, to_float
from ultramed_rl.http.chat import ChatSession, chat_client
from ultramed_rl.http.client import Failure
from ultramed_rl.http.session import running
from ultramed_rl.records import ChatRequest, Completion, Message, Prompt
from ultramed_rl.rewards.term import with_prompts
from ultramed_rl.thoughts import after_thoughts

logger = logging.getLogger(__name__)
T = TypeVar("T")
_OURS = Path(__file__).with_name("judge_prompt.txt")
_NEEDED, _OPTIONAL = ("question", "answer"), ("reference", "low", "high")
_NUMBER = rf"(?P<grade>{NUMBER.pattern})(?!\s*(?:-|–|,|to|or|and)\s*\d)"
_GRADE = rf"{_NUMBER}(?:\s*(?:/|out\s+of)\s*(?P<most>\d+(?:\.\d+)?))?"
# NUMBER refuses "7/10" as a ratio: here it is the usual way to write a grade.
_SLASHED = r"(?<![\w.,/-])(?P<slashed>\d+(?:\.\d+)?)\s*/\s*(?P<of>\d+(?:\.\d+)?)(?![\w/])(?!\.\d)"
_EITHER = rf"(?:{_SLASHED}|{_GRADE})"
_MARKED = re.compile(
    r"\b(?:grade|score|rating)\b(?:\s*[(\[][^)\]\n]{0,20}[)\]])?(?:\s+(?:is|of|would\s+be)\b)?"
    rf"[\s:=*_\"'>\[{{(]*(?:\\boxed\{{)?{_EITHER}",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"[\s*_\"'\[(]*{_EITHER}[\s*_\"'\]).]*", re.I)


@dataclass(frozen=True)
class Reply(Generic[T]):
    """The last text that came, and what was read in it: None for nothing."""

    value: T | None
    text: str


class ApiClient:
    """A judge behind an OpenAI-compatible API: each prompt as one user message, `concurrency` at a time.

    A request that fails is sent again, `retries` times. Opens no connection before it asks.
    """

    def __init__(self, config: ApiModel) -> None:
        """Raises ValueError where the key's environment variable isn't set."""
        self.config = config
        shared = {"model", "base_url", "api_key_env", "concurrency", "timeout_s", "retries"}
        self.endpoint = Endpoint(**config.model_dump(include=shared))
        self._client = chat_client(self.endpoint, "judge")

    def ask_for(
        self,
        prompts: Sequence[str],
        read: Callable[[str], T | None],
        advance: Callable[[int], None] | None = None,
    ) -> list[Reply[T]]:
        """What `read` finds in the reply to each prompt, in their order.

        A prompt whose reply holds nothing to read is asked again, `retries` times.

        Args:
            read: runs in another thread, one reply at a time.
            advance: told of each prompt that is done, in their order, from the calling thread.

        Raises:
            RuntimeError: the API cannot be reached, refuses, or doesn't speak the protocol.
        """
        replies: list[Reply[T]] = []
        with running(self._client.close) as start:
            asking = ChatSession(self.endpoint, self._client)
            for future in [start(self._until_read(asking, prompt, read)) for prompt in prompts]:
                replies.append(future.result())
                if advance is not None:
                    advance(1)
        return replies

    async def _until_read(
        self, asking: ChatSession, prompt: str, read: Callable[[str], T | None]
    ) -> Reply[T]:
        config, text = self.config, ""
        turns = (Message(role="user", content=prompt),)
        request = ChatRequest("", turns, config.max_tokens, config.temperature)
        for _ in range(config.retries + 1):
            try:
                text = (await asking.ask(request)).text
            except Failure as failure:
                raise failure.stopping(self._client.server) from None
            value = read(text)
            if value is not None:
                return Reply(value, text)
        return Reply(None, text)


class Judge:
    """Asks for a grade per answer, `samples` times, and gives their mean on a scale of 0 to 1.

    A reply without a readable grade is asked for again, `retries` times; then that sample is left out, and an
    answer without any sample gets NaN.
    """

    def __init__(self, config: JudgeTerm) -> None:
        self.config = config
        self.api = ApiClient(config)
        self.template = judge_template(config.template)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """The grade of each completion, 0 to 1; NaN where none could be read.

        Raises:
            RuntimeError: the API cannot be reached or refuses.
            ValueError: more than half of the answers have no readable grade.
        """
        count, scale = self.config.samples, self.config.scale
        asked = [self.request(*pair) for pair in with_prompts(prompts, completions)]
        drawn = [text for text in asked for _ in range(count)]
        replies = self.api.ask_for(drawn, lambda reply: parse_grade(reply, scale))
        groups = [replies[start : start + count] for start in range(0, len(replies), count)]
        rewards = []
        for group in groups:
            grades = [reply.value for reply in group if reply.value is not None]
            shares = [(grade - scale.low) / (scale.high - scale.low) for grade in grades]
            rewards.append(fmean(shares) if shares else math.nan)
        self._check(rewards, [reply.text for reply in replies if reply.value is None])
        return rewards

    def request(self, prompt: Prompt, completion: Completion) -> str:
        """What the judge is asked about one answer: to a lone question, or to a chat, every turn after its role."""
        scale, reference, turns = self.config.scale, "", prompt.messages
        question = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        if prompt.answer:
            reference = f"\n<reference_answer>\n{_harmless(prompt.answer)}\n</reference_answer>\n"
        return self.template.substitute(
            question=_harmless(turns[0]["content"] if len(turns) == 1 else question),
            answer=_harmless(completion.text),
            reference=reference,
            low=f"{scale.low:g}",
            high=f"{scale.high:g}",
        )

    def _check(self, rewards: Sequence[float], unreadable: Sequence[str]) -> None:
        without = sum(map(math.isnan, rewards))
        if 2 * without > len(rewards):
            raise ValueError(
                f"judge {self.config.model!r}: {without} of {len(rewards)} answers have no readable "
                f"grade, as in {unreadable[0][-200:]!r}; raise judge.max_tokens, or ask in the template for "
                "a last line 'Grade: <number>'"
            )
        if without:
            logger.warning(
                "%s: %d of %d answers have no readable grade", self.config.name, without, len(rewards)
            )


def judge_template(path: str | None, key: str = "judge.template") -> Template:
    """The template of a file, or our own. Raises ValueError as `read_template`."""
    file = _OURS if path is None else Path(path)
    return read_template(file, _NEEDED, _OPTIONAL, key)


def parse_grade(reply: str, scale: Scale) -> float | None:
    """The grade in a reply: "7", "7/10", "Score: 7", {"score": 7}, "[[7]]"; None for none or a choice of two.

    A marked grade on the last line decides; else all marked grades must agree; else the reply, or its last
    line, must be the grade alone. Grades outside the scale, or out of another maximum, count as none.
    """
    text = after_thoughts(reply)
    lines = text.splitlines() or [""]
    marked = list(_MARKED.finditer(lines[-1])) or list(_MARKED.finditer(text))
    alone = [m for m in (_ALONE.fullmatch(text), _ALONE.fullmatch(lines[-1])) if m]
    grades = {_value(match, scale) for match in marked or alone[:1]}
    return grades.pop() if len(grades) == 1 else None


def _value(match: re.Match[str], scale: Scale) -> float | None:
    grade = to_float(match["slashed"] or match["grade"])
    most = match["of"] or match["most"]
    if grade is None or (most is not None and float(most) != scale.high):
        return None
    return grade if scale.low <= grade <= scale.high else None


def _harmless(text: str) -> str:
    return without_tags(text, "question", "answer", "reference_answer")
