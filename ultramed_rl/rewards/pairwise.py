"""Answers of one prompt against each other, by a language model that sees two at a time, in both orders.

A judge may like what stands first, whatever it says (arXiv 2306.05685, section 3.4): each two answers are shown in both orders, and
who wins must win in both. All else is a tie, and contradictory orders are counted.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from string import Template

from ultramed_rl.config.rewards import PairwiseTerm
from ultramed_rl.data.templates import read_template
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.judge import framed
from ultramed_rl.rewards.judge_client import Ask, JudgeClient, JudgeReply
from ultramed_rl.rewards.term import Scores
from ultramed_rl.rewards.tournament import knockout, round_robin

logger = logging.getLogger(__name__)
_OURS = Path(__file__).with_name("pairwise_prompt.txt")
_SIDE = (
    r"(?:answer|response|assistant)?[\s*_\"'\[({]*(?P<side>(?-i:[ABC])|tie|tied|draw|neither|equal)\b(?!['’])"
)
_NO_CHOICE = r"(?!\s*(?:or|and|/|,|-)\s*(?:(?:answer|response)\s+)?(?-i:[ABC])\b)"
_MARKED = re.compile(
    rf"(?:\b(?:verdict|winner|better|choice)\b(?:\s+(?:answer|response|one))?(?:\s+is\b)?[\s:=*_\"'>\[({{]*|\[\[\s*)"
    rf"{_SIDE}{_NO_CHOICE}",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"[\s*_\"'\[({{]*{_SIDE}{_NO_CHOICE}[\s*_\"'\]\)}}.]*", re.IGNORECASE)
_POINTS = {"A": 1.0, "B": 0.0}


@dataclass(frozen=True)
class Comparison:
    """Answer `i` against `j`, each the place of one: i's points where it was shown first, and where it was shown second; None
    for a verdict that could not be read."""

    i: int
    j: int
    shown_first: float | None
    shown_second: float | None

    @property
    def points(self) -> float | None:
        """Those of i: 1 or 0 where both orders agree, else a tie; None where one of them cannot be read."""
        if self.shown_first is None or self.shown_second is None:
            return None
        return self.shown_first if self.shown_first == self.shown_second else 0.5

    @property
    def contradictory(self) -> bool:
        """Whether each order has another winner."""
        return {self.shown_first, self.shown_second} == {0.0, 1.0}

    @property
    def first_wins(self) -> list[float]:
        """Of each order that has a winner, whether it is the answer shown first."""
        second = None if self.shown_second is None else 1.0 - self.shown_second
        return [points for points in (self.shown_first, second) if points in (0.0, 1.0)]


class PairwiseJudge:
    """Compares the answers of each prompt and gives each a score of 0 to 1; see `tournament.py`.

    A verdict that cannot be read is asked for again, `retries` times; then the comparison says nothing. Details of an answer:
    the share of its comparisons whose orders contradict each other (`NAME_contradictory`), of the verdicts with a winner those
    that went to whoever stood first (`NAME_first_wins`, 0.5 without bias), and of those against the data's own answer the
    points of the policy's (`NAME_over_reference`), which tell of self-preference where the judge is of the policy's family.
    """

    def __init__(self, config: PairwiseTerm) -> None:
        self.config, self.judge = config, JudgeClient(config)
        self.template = pairwise_template(config.template)
        self.tournament = {"round_robin": round_robin, "knockout": knockout}[config.tournament]

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """The score of each completion, 0 to 1; NaN where no verdict on it could be read.

        Raises:
            RuntimeError: as `JudgeClient.run`.
            ValueError: more than half of the comparisons have no readable verdict.
        """
        places: dict[str, list[int]] = {}
        for place, completion in enumerate(completions):
            places.setdefault(completion.prompt_id, []).append(place)
        asked = [
            (prompt, [completions[k] for k in places[prompt.prompt_id]])
            for prompt in prompts
            if prompt.prompt_id in places
        ]
        found = self.judge.run([partial(self._compare_all, *one) for one in asked])
        scores = Scores.empty(len(completions))
        for (prompt, _), (values, details, _) in zip(asked, found, strict=True):
            for place, value, detail in zip(places[prompt.prompt_id], values, details, strict=True):
                scores.values[place], scores.details[place] = value, detail
        self._check([comparison for *_, comparisons in found for comparison in comparisons])
        return scores

    def request(self, prompt: Prompt, first: str, second: str) -> str:
        """What the judge is asked about two answers."""
        return self.template.substitute(framed(prompt, answer_a=first, answer_b=second))

    async def _compare_all(
        self, prompt: Prompt, answers: Sequence[Completion], ask: Ask
    ) -> tuple[list[float], list[dict[str, float]], list[Comparison]]:
        """Each answer's score and details. Equal texts are compared as one."""
        texts = [answer.text.strip() for answer in answers]
        different = list(dict.fromkeys(texts))
        comparisons: list[Comparison] = []

        async def compare(i: int, j: int) -> float | None:
            orders = ((different[i], different[j]), (different[j], different[i]))
            found = await asyncio.gather(*(self._ask(ask, prompt, *order) for order in orders))
            second = None if found[1] is None else 1.0 - found[1]
            comparisons.append(Comparison(i, j, found[0], second))
            return comparisons[-1].points

        scores = await self.tournament(len(different), compare)
        sampled = {t for t, a in zip(texts, answers, strict=True) if a.finish_reason != "reference"}
        own = [text in sampled for text in different]
        details = [dict(self._details(k, comparisons, own)) for k in range(len(different))]
        places = [different.index(text) for text in texts]
        return [scores[k] for k in places], [details[k] for k in places], comparisons

    async def _ask(self, ask: Ask, prompt: Prompt, first: str, second: str) -> float | None:
        messages = (Message(role="user", content=self.request(prompt, first, second)),)
        return (await self.judge.until_read(ask, messages, read_verdict)).value

    def _details(
        self, place: int, comparisons: Sequence[Comparison], own: Sequence[bool]
    ) -> Iterator[tuple[str, float]]:
        mine = [c for c in comparisons if place in (c.i, c.j)]
        read = [(c, c.points) for c in mine if c.points is not None]
        if read:
            yield f"{self.config.name}_contradictory", fmean(c.contradictory for c, _ in read)
        if wins := [win for c in mine for win in c.first_wins]:
            yield f"{self.config.name}_first_wins", fmean(wins)
        against = [p if c.i == place else 1.0 - p for c, p in read if own[c.i] != own[c.j]]
        if own[place] and against:
            yield f"{self.config.name}_over_reference", fmean(against)

    def _check(self, comparisons: Sequence[Comparison]) -> None:
        without = sum(comparison.points is None for comparison in comparisons)
        said = f"{without} of {len(comparisons)} comparisons have no readable verdict"
        if 2 * without > len(comparisons):
            raise ValueError(
                f"judge {self.config.shown!r}: {said}; raise max_tokens, or ask in the template for a last line "
                "'Verdict: <A, B or tie>'"
            )
        if without:
            logger.warning("%s: %s", self.config.name, said)


def pairwise_template(path: str | None, key: str = "judge.template") -> Template:
    """The template of a file, or our own. Raises ValueError as `read_template`."""
    file = _OURS if path is None else Path(path)
    return read_template(file, ("question", "answer_a", "answer_b"), ("reference",), key)


def read_verdict(reply: JudgeReply) -> float | None:
    """The points of the answer shown first: "Verdict: A", "[[B]]", "The better answer is A", "Winner: tie"; None for none, or a
    choice of two. The last line with a mark decides; else all marks must agree; else the reply, or its last line, must be the
    verdict alone."""
    text = reply.text.strip()
    last = (text.splitlines() or [""])[-1]
    marked = list(_MARKED.finditer(last)) or list(_MARKED.finditer(text))
    alone = [m for m in (_ALONE.fullmatch(text), _ALONE.fullmatch(last)) if m]
    found = {_POINTS.get(match["side"], 0.5) for match in marked or alone[:1]}
    return found.pop() if len(found) == 1 else None
