"""A step with every kind of end, what it must come to, and generators that answer it in every order."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ultramed_rl.data.factory.runner import StepResult, run_step
from ultramed_rl.data.factory.step import Ask, Drop, End, Fail, Generator, Keep, Row, send
from ultramed_rl.http.generator import BudgetSpent
from ultramed_rl.records import ChatReply, ChatRequest, Message
from ultramed_rl.store.record_log import RecordLog


def request(text: str) -> ChatRequest:
    return ChatRequest("", (Message(role="user", content=text),))


def answer(asked: ChatRequest) -> ChatReply:
    """To the same question always the same: its text, or an error to every thirteenth."""
    text = asked.messages[0]["content"]
    if int(text.split()[0]) % 13 == 12:
        return ChatReply(asked.key, "", error="status 500", prompt_tokens=2)
    return ChatReply(asked.key, f"re {text}", prompt_tokens=2, completion_tokens=3)


class NumberedStep:
    """By a record's number n: n % 5 is 0: dropped; 1: kept as it is; 2: one question, 3: two, 4: three."""

    async def __call__(self, row: Row, ask: Ask) -> End:
        n = row["n"]
        if n % 5 == 0:
            return Drop("easy")
        if n % 5 == 1:
            return Keep((dict(row),))
        texts = []
        for turn in range(n % 5 - 1):
            texts.append((await send(request(f"{n} after {turn}" if turn else f"{n} first"))).text)
            if n % 11 == 3:
                raise KeyError(n)
            if n % 17 == 2:
                return Fail("no_json", texts[-1])
        return Keep(tuple({"n": n, "text": text} for text in texts))


def rows_of(count: int) -> Iterator[dict[str, object]]:
    return ({"id": f"r{n}", "n": n} for n in range(count))


def expected(count: int) -> tuple[list[dict[str, object]], list[tuple[str, str]]]:
    """Rows and failures of records 0 to count - 1, from the rules as written above alone."""
    rows: list[dict[str, object]] = []
    failures: list[tuple[str, str]] = []
    for n in range(count):
        if n % 5 == 1:
            rows.append({"id": f"r{n}", "n": n})
        elif n % 5 and n % 13 == 12:
            failures.append((f"r{n}", "unanswered"))
        elif n % 5 and n % 11 == 3:
            failures.append((f"r{n}", "KeyError"))
        elif n % 5 and n % 17 == 2:
            failures.append((f"r{n}", "no_json"))
        elif n % 5:
            asked = [f"{n} first", f"{n} after 1", f"{n} after 2"][: n % 5 - 1]
            rows += [{"n": n, "text": f"re {text}"} for text in asked]
    return rows, failures


@dataclass
class Budget:
    """How many requests are answered before the end, and which were."""

    left: int = 10**9
    asked: list[str] = field(default_factory=list)
    held: int = 0
    most_held: int = 0

    def take(self, taken: ChatRequest) -> None:
        if not self.left:
            raise BudgetSpent("left=0: all is used")
        self.left -= 1
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        self.asked.append(taken.key)

    def answer(self, asked: ChatRequest) -> ChatReply:
        self.held -= 1
        return answer(asked)


class AtOnce:
    """Answers without waiting, as a cache does."""

    def __init__(self, size: int = 1, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()

    async def reply(self, request: ChatRequest) -> ChatReply:
        self.budget.take(request)
        return self.budget.answer(request)

    async def close(self) -> None:
        pass


class Window(AtOnce):
    """Answers up to `size` requests at a time, in any order."""

    def __init__(self, size: int, budget: Budget | None = None, seed: int = 0) -> None:
        super().__init__(size, budget)
        self.slots, self.random = asyncio.Semaphore(size), random.Random(seed)

    async def reply(self, request: ChatRequest) -> ChatReply:
        self.budget.take(request)
        async with self.slots:
            for _ in range(self.random.randrange(8)):
                await asyncio.sleep(0)
        return self.budget.answer(request)


class Waves(AtOnce):
    """Answers all that is asked, the last first, when nobody asks more."""

    def __init__(self, size: int, budget: Budget | None = None) -> None:
        super().__init__(size, budget)
        self.waiting: list[tuple[ChatRequest, asyncio.Future[ChatReply]]] = []

    async def reply(self, request: ChatRequest) -> ChatReply:
        self.budget.take(request)
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_later(0.001, self._answer)
        self.waiting.append((request, loop.create_future()))
        return await self.waiting[-1][1]

    def _answer(self) -> None:
        while self.waiting:
            asked, reply = self.waiting.pop()
            reply.set_result(self.budget.answer(asked))


GENERATORS: dict[str, type[AtOnce]] = {"at_once": AtOnce, "window": Window, "waves": Waves}


def run(folder: Path, generator: Generator, count: int, workers: int, part: int = 3) -> StepResult:
    with RecordLog(folder, batch=part) as log:
        result = run_step(NumberedStep(), rows_of(count), generator, log, workers=workers)
        if not result.stopped:
            log.finish()
    return result


def found(folder: Path) -> tuple[list[dict[str, object]], list[tuple[str, str]]]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    failures = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    return rows, [(failure["key"], failure["reason"]) for failure in failures]
