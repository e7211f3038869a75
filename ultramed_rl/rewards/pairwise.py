"""Answers of one prompt against each other, by a language model that sees two at a time, in both orders.

Who wins must win in both (`Duel`). All else is a tie, and contradictory orders are counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any

from ultramed_rl.config.rewards import PairwiseTerm
from ultramed_rl.data.templates import read_template
from ultramed_rl.evaluation.chat_scores import Duel
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.judge import framed
from ultramed_rl.rewards.judge_client import AlikeVerdicts, AskJudge, JudgeClient, JudgeReply, Reply
from ultramed_rl.rewards.term import Scores

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
_WORDS = {1.0: "A", 0.0: "B", 0.5: "tie"}

Duels = dict[tuple[int, int], Duel]  # by the places of two answers
# The points of an answer against another, both by their places: 1 it is better, 0 it is worse, 0.5 neither, None nobody can say.
Compare = Callable[[int, int], Awaitable[float | None]]


class PairwiseJudge:
    """Compares the answers of each prompt and gives each a score of 0 to 1.

    A verdict that cannot be read is asked for again, `retries` times; then the comparison says nothing. Details of an answer:
    the share of its comparisons whose orders contradict each other (`NAME_contradictory`), of the verdicts with a winner those
    that went to whoever stood first (`NAME_first_wins`, 0.5 without bias), and of those against the data's own answer the
    points of the policy's (`NAME_over_reference`), which tell of self-preference where the judge is of the policy's family.
    """

    def __init__(self, config: PairwiseTerm) -> None:
        self.config, self.judge = config, JudgeClient(config)
        self._alike = AlikeVerdicts(config.shown)
        self._unread = ""  # the last reply without a verdict
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
        self._check([duel for *_, duels in found for duel in duels.values()])
        return scores

    def request(self, prompt: Prompt, first: str, second: str) -> str:
        """What the judge is asked about two answers."""
        return self.template.substitute(framed(prompt, answer_a=first, answer_b=second))

    async def compare(self, prompt: Prompt, answer: str, other: str, ask: AskJudge) -> tuple[Duel, list[str]]:
        """An answer beside another, and what the judge said in both orders."""

        def reply(*order: str) -> Coroutine[Any, Any, Reply[float]]:
            messages = (Message(role="user", content=self.request(prompt, *order)),)
            return self.judge.until_read(ask, messages, read_verdict)

        first, second = await asyncio.gather(reply(answer, other), reply(other, answer))
        self._alike.see(_WORDS[reply.value] for reply in (first, second) if reply.value is not None)
        self._unread = next((reply.text for reply in (first, second) if reply.value is None), self._unread)
        swapped = None if second.value is None else 1.0 - second.value
        return Duel(first.value, swapped), [first.text, second.text]

    async def _compare_all(
        self, prompt: Prompt, answers: Sequence[Completion], ask: AskJudge
    ) -> tuple[list[float], list[dict[str, float]], Duels]:
        """Each answer's score and details. Equal texts are compared as one."""
        texts = [answer.text.strip() for answer in answers]
        different = list(dict.fromkeys(texts))
        duels: Duels = {}

        async def compare(i: int, j: int) -> float | None:
            duels[i, j], _ = await self.compare(prompt, different[i], different[j], ask)
            return duels[i, j].points

        scores = await self.tournament(len(different), compare)
        sampled = {t for t, a in zip(texts, answers, strict=True) if a.finish_reason != "reference"}
        own = [text in sampled for text in different]
        details = [dict(self._details(k, duels, own)) for k in range(len(different))]
        places = [different.index(text) for text in texts]
        return [scores[k] for k in places], [details[k] for k in places], duels

    def _details(self, place: int, duels: Duels, own: Sequence[bool]) -> Iterator[tuple[str, float]]:
        mine = {pair: duel for pair, duel in duels.items() if place in pair}
        if read := [duel.contradictory for duel in mine.values() if duel.points is not None]:
            yield f"{self.config.name}_contradictory", fmean(read)
        if wins := [win for duel in mine.values() for win in duel.first_wins]:
            yield f"{self.config.name}_first_wins", fmean(wins)
        against = [
            points if i == place else 1.0 - points
            for (i, j), duel in mine.items()
            if own[i] != own[j] and (points := duel.points) is not None
        ]
        if own[place] and against:
            yield f"{self.config.name}_over_reference", fmean(against)

    def _check(self, duels: Sequence[Duel]) -> None:
        without = sum(duel.points is None for duel in duels)
        said = f"{without} of {len(duels)} comparisons have no readable verdict"
        if 2 * without > len(duels):
            raise ValueError(
                f"judge {self.config.shown!r}: {said}, as in {self._unread[-200:]!r}; raise max_tokens, or ask in the template for a last line "
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


# -- scores of n answers out of comparisons of two -----------------------------------------------------------
# 0 to 1, in the order of the answers; one alone has 0.5, and NaN whoever was in no comparison that could be read.


async def round_robin(count: int, compare: Compare) -> list[float]:
    """Each against each, n (n - 1) / 2 comparisons: an answer's mean points."""
    if count == 1:
        return [0.5]
    pairs = list(combinations(range(count), 2))
    points: list[list[float]] = [[] for _ in range(count)]
    found = await asyncio.gather(*(compare(i, j) for i, j in pairs))
    for (i, j), point in zip(pairs, found, strict=True):
        if point is not None:
            points[i].append(point)
            points[j].append(1.0 - point)
    return [fmean(own) if own else math.nan for own in points]


async def knockout(count: int, compare: Compare) -> list[float]:
    """The best in n - 1 comparisons: neighbours are compared, and whoever won goes on. The last has 1, losers of the first stage
    have 0, others stand between by how far they came. The one of a tie, or where nobody can say, that doesn't go on has the
    score of the one that does."""
    if count < 3:
        return await round_robin(count, compare)
    read: set[int] = set()
    came: dict[int, int] = {}  # stages that one has passed, of those that went out
    tied: dict[int, int] = {}  # with whom, that went on
    left, stage = list(range(count)), 0
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        found = await asyncio.gather(*(compare(i, j) for i, j in pairs))
        following = []
        for (i, j), points in zip(pairs, found, strict=True):
            read.update(() if points is None else (i, j))
            winner, other = (j, i) if points == 0.0 else (i, j)
            following.append(winner)
            if points in (0.0, 1.0):
                came[other] = stage
            else:
                tied[other] = winner
        left = following + left[2 * len(pairs) :]
        stage += 1
    came[left[0]] = stage

    def passed(i: int) -> int:
        return came[i] if i in came else passed(tied[i])

    return [passed(i) / stage if i in read else math.nan for i in range(count)]
