"""The grade that a language model gives each answer, and how it is read."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from string import Template

from ultramed_rl.config.rewards import JudgeTerm, Scale
from ultramed_rl.data.templates import read_template, shown_chat, without_tags
from ultramed_rl.evaluation.reading.text import NUMBER, to_float
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.judge_client import AlikeVerdicts, JudgeClient, JudgeReply
from ultramed_rl.rewards.term import with_prompts

logger = logging.getLogger(__name__)
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
_AROUND = " \n*_\"'[({"  # what a token may hold around its digit
_PLACES = 16  # last tokens of a reply, among which its grade is weighed


class Judge:
    """Asks for a grade per answer, `samples` times, and gives their mean on a scale of 0 to 1.

    A reply without a readable grade is asked for again, `retries` times; then that sample is left out, and an
    answer without any sample gets NaN.
    """

    def __init__(self, config: JudgeTerm) -> None:
        self.config = config
        self.judge = JudgeClient(config, weighs=config.grade == "expected")
        self.template = judge_template(config.template)
        self._alike = AlikeVerdicts(config.shown)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """The grade of each completion, 0 to 1; NaN where none could be read.

        Raises:
            RuntimeError: as `JudgeClient.run`.
            ValueError: more than half of the answers have no readable grade.
        """
        count, scale = self.config.samples, self.config.scale
        asked = [self.request(*pair) for pair in with_prompts(prompts, completions)]
        drawn = [text for text in asked for _ in range(count)]
        read = expected_grade if self.judge.weighs else lambda reply, scale: parse_grade(reply.text, scale)
        replies = self.judge.ask_for(drawn, lambda reply: read(reply, scale))
        groups = [replies[start : start + count] for start in range(0, len(replies), count)]
        rewards = []
        for group in groups:
            grades = [reply.value for reply in group if reply.value is not None]
            shares = [(grade - scale.low) / (scale.high - scale.low) for grade in grades]
            rewards.append(fmean(shares) if shares else math.nan)
        self._check(rewards, [reply.text for reply in replies if reply.value is None])
        self._alike.see(f"{reply.value:.3g}" for reply in replies if reply.value is not None)
        return rewards

    def request(self, prompt: Prompt, completion: Completion) -> str:
        """What the judge is asked about one answer."""
        scale = self.config.scale
        return self.template.substitute(
            **framed(prompt, answer=completion.text), low=f"{scale.low:g}", high=f"{scale.high:g}"
        )

    def _check(self, rewards: Sequence[float], unreadable: Sequence[str]) -> None:
        without = sum(map(math.isnan, rewards))
        if 2 * without > len(rewards):
            or_else = " (grade=expected also wants an API that gives logprobs)" if self.judge.weighs else ""
            raise ValueError(
                f"judge {self.config.shown!r}: {without} of {len(rewards)} answers have no readable "
                f"grade, as in {unreadable[0][-200:]!r}; raise judge.max_tokens, or ask in the template for "
                f"a last line 'Grade: <number>'{or_else}"
            )
        if without:
            logger.warning(
                "%s: %d of %d answers have no readable grade", self.config.name, without, len(rewards)
            )


def judge_template(path: str | None, key: str = "judge.template") -> Template:
    """The template of a file, or our own. Raises ValueError as `read_template`."""
    file = _OURS if path is None else Path(path)
    return read_template(file, _NEEDED, _OPTIONAL, key)


def framed(prompt: Prompt, **answers: str) -> dict[str, str]:
    """The fields of a judge's template: a lone question, or of a chat every turn after its role; the reference answer where
    there is one; and answers by their fields. No text can close the frame that it is shown in."""
    reference = ""
    if prompt.answer:
        reference = f"\n<reference_answer>\n{_harmless(prompt.answer)}\n</reference_answer>\n"
    return {
        "question": _harmless(shown_chat(prompt.messages)),
        "reference": reference,
        **{name: _harmless(text) for name, text in answers.items()},
    }


def parse_grade(reply: str, scale: Scale) -> float | None:
    """The grade in a reply: "7", "7/10", "Score: 7", {"score": 7}, "[[7]]"; None for none or a choice of two.

    A marked grade on the last line decides; else all marked grades must agree; else the reply, or its last
    line, must be the grade alone. Grades outside the scale, or out of another maximum, count as none.
    """
    grades = {_value(match, scale) for match in _matches(reply)}
    return grades.pop() if len(grades) == 1 else None


def expected_grade(reply: JudgeReply, scale: Scale) -> float | None:
    """The mean of the grades that might stand in the place of the one that a reply states, by their probability there, those
    outside the scale left out (G-Eval, arXiv 2303.16634); None where no whole grade of one digit can be read."""
    choices = reply.choices[-_PLACES:]
    text = "".join(choice.text for choice in choices)
    grade = parse_grade(text, scale) if reply.text else None  # nothing is said where a thought has no end
    if grade is None or grade % 1:
        return None
    match = _matches(text)[-1]
    place = match.start("slashed" if match["slashed"] else "grade")
    ends = accumulate(len(choice.text) for choice in choices)
    chosen = next(choice for choice, end in zip(choices, ends, strict=True) if end > place)
    weights: dict[int, float] = {}
    for token, logprob in chosen.logprobs.items():
        bare = token.strip(_AROUND)
        if len(bare) == 1 and bare in "0123456789" and scale.low <= int(bare) <= scale.high:
            weights[int(bare)] = weights.get(int(bare), 0.0) + math.exp(logprob)
    total = sum(weights.values())
    return sum(value * weight for value, weight in weights.items()) / total if total else None


def _matches(reply: str) -> list[re.Match[str]]:
    """Where a reply says its grade."""
    end = len(reply.rstrip())
    start = min(end, len(reply) - len(reply.lstrip()))
    last = end - len((reply[start:end].splitlines() or [""])[-1])
    marked = list(_MARKED.finditer(reply, last, end)) or list(_MARKED.finditer(reply, start, end))
    alone = [m for m in (_ALONE.fullmatch(reply, start, end), _ALONE.fullmatch(reply, last, end)) if m]
    return marked or alone[:1]


def _value(match: re.Match[str], scale: Scale) -> float | None:
    grade = to_float(match["slashed"] or match["grade"])
    most = match["of"] or match["most"]
    if grade is None or (most is not None and float(most) != scale.high):
        return None
    return grade if scale.low <= grade <= scale.high else None


def _harmless(text: str) -> str:
    return without_tags(text, "question", "answer", "answer_a", "answer_b", "reference_answer")
