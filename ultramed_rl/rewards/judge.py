"""A language model's grade of each answer, asked for over an OpenAI-compatible API."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from string import Template
from typing import TYPE_CHECKING

from ultramed_rl.config.rewards import JudgeTerm, Scale
from ultramed_rl.evaluation.numbers import NUMBER, to_float
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.term import read_secret, with_prompts

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)
_OURS = Path(__file__).with_name("judge_prompt.txt")
_FIELDS = {"question", "answer", "reference", "low", "high"}
_TAG = re.compile(r"<(?=/?\s*(?:question|answer|reference_answer)\b)", re.IGNORECASE)
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


class Judge:
    """Asks for a grade per answer, `samples` times, and gives their mean on a scale of 0 to 1.

    A reply without a readable grade is asked for again, `retries` times; then that sample is left out, and an
    answer without any sample gets NaN. `unparsed` counts such answers over the object's life.
    """

    def __init__(self, config: JudgeTerm) -> None:
        self.config = config
        # Never OpenAI's own variable by default: a key isn't sent to an address that it wasn't meant for.
        self._key = read_secret(config.api_key_env, "judge.api_key_env") or "none"
        self.template = _read_template(config.template)
        self.unparsed = 0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """The grade of each completion, 0 to 1; NaN where none could be read.

        Raises:
            RuntimeError: the API cannot be reached or refuses.
            ValueError: more than half of the answers have no readable grade.
        """
        from openai import OpenAI

        config = self.config
        asked = [self.request(*pair) for pair in with_prompts(prompts, completions)]
        client = OpenAI(
            api_key=self._key,
            base_url=config.base_url,
            timeout=config.timeout_s,
            max_retries=config.retries,
        )
        drawn = [text for text in asked for _ in range(config.samples)]
        with client, ThreadPoolExecutor(config.concurrency) as pool:
            replies = list(pool.map(lambda text: self._grade(client, text), drawn))
        count = config.samples
        groups = [replies[start : start + count] for start in range(0, len(replies), count)]
        rewards = [self._mean([grade for grade, _ in group]) for group in groups]
        self._check(rewards, [reply for grade, reply in replies if grade is None])
        return rewards

    def request(self, prompt: Prompt, completion: Completion) -> str:
        """What the judge is asked about one answer."""
        scale = self.config.scale
        reference = ""
        if prompt.answer:
            reference = f"\n<reference_answer>\n{_without_tags(prompt.answer)}\n</reference_answer>\n"
        return self.template.substitute(
            question=_without_tags(_question(prompt)),
            answer=_without_tags(completion.text),
            reference=reference,
            low=f"{scale.low:g}",
            high=f"{scale.high:g}",
        )

    def _grade(self, client: OpenAI, text: str) -> tuple[float | None, str]:
        """A grade on the judge's own scale, or None; and the last reply."""
        reply = ""
        for _ in range(self.config.retries + 1):
            reply = self._ask(client, text)
            grade = parse_grade(reply, self.config.scale)
            if grade is not None:
                return grade, reply
        return None, reply

    def _ask(self, client: OpenAI, text: str) -> str:
        from openai import OpenAIError

        config = self.config
        try:
            response = client.chat.completions.create(
                model=config.model,
                messages=[{"role": "user", "content": text}],
                temperature=config.temperature,
                max_tokens=config.max_tokens,
            )
            return response.choices[0].message.content or ""
        except OpenAIError as error:
            raise self._failure(error) from None
        except (AttributeError, IndexError, TypeError, ValueError):
            raise RuntimeError(
                f"judge {config.base_url}: its reply is no chat completion; is base_url that of an "
                "OpenAI-compatible API, as http://host:8000/v1?"
            ) from None

    def _failure(self, error: Exception) -> RuntimeError:
        status = getattr(error, "status_code", None)
        cure = {
            401: "set api_key_env to the variable that holds its key",
            403: "set api_key_env to the variable that holds its key",
            404: f"check base_url and model={self.config.model!r}",
            None: "is it running? Or raise timeout_s or retries",
        }.get(status, "see the server's log")
        reason = " ".join(str(error).split())[:200]
        shown = "" if status is None else f"status {status}, "
        return RuntimeError(f"judge {self.config.base_url}: {shown}{type(error).__name__} ({reason}); {cure}")

    def _mean(self, grades: Sequence[float | None]) -> float:
        scale = self.config.scale
        read = [(grade - scale.low) / (scale.high - scale.low) for grade in grades if grade is not None]
        return fmean(read) if read else math.nan

    def _check(self, rewards: Sequence[float], unreadable: Sequence[str]) -> None:
        without = sum(map(math.isnan, rewards))
        self.unparsed += without
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


def parse_grade(reply: str, scale: Scale) -> float | None:
    """The grade in a reply: "7", "7/10", "Score: 7", {"score": 7}, "[[7]]"; None for none or a choice of two.

    A marked grade on the last line decides; else all marked grades must agree; else the reply, or its last
    line, must be the grade alone. Grades outside the scale, or out of another maximum, count as none.
    """
    text = reply.rpartition("</think>")[2].strip()
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


def _question(prompt: Prompt) -> str:
    """A lone question as it is; of a longer chat, every turn after its role."""
    if len(prompt.messages) == 1:
        return prompt.messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


def _without_tags(text: str) -> str:
    """The text with our own tags made harmless, so that an answer cannot close its frame."""
    return _TAG.sub("‹", text)


def _read_template(path: str | None) -> Template:
    file = _OURS if path is None else Path(path)
    try:
        template = Template(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"judge.template={path!r}: cannot be read ({error}); give a text file") from None
    names = set(template.get_identifiers())
    if not template.is_valid() or names - _FIELDS or not {"question", "answer"} <= names:
        raise ValueError(
            f"judge.template={path!r}: holds {sorted(names)}; it needs $question and $answer, and may hold "
            "$reference, $low and $high; write a dollar sign as $$"
        )
    return template
