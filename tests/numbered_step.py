"""A step with every kind of end, what it must come to, and generators that answer it in every order."""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ultramed_rl.data.factory.runner import StepResult, run_step
from ultramed_rl.data.factory.step import Ask, Drop, End, Fail, Keep, Row, send
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
    """Rows and dead letters of records 0 to count - 1, from the rules as written above alone."""
    rows: list[dict[str, object]] = []
    letters: list[tuple[str, str]] = []
    for n in range(count):
        if n % 5 == 1:
            rows.append({"id": f"r{n}", "n": n})
        elif n % 5 and n % 13 == 12:
            letters.append((f"r{n}", "unanswered"))
        elif n % 5 and n % 11 == 3:
            letters.append((f"r{n}", "KeyError"))
        elif n % 5 and n % 17 == 2:
            letters.append((f"r{n}", "no_json"))
        elif n % 5:
            asked = [f"{n} first", f"{n} after 1", f"{n} after 2"][: n % 5 - 1]
            rows += [{"n": n, "text": f"re {text}"} for text in asked]
    return rows, letters


@dataclass
class Budget:
    """How many requests are answered before the end, and which were."""

    left: int = 10**9
    asked: list[str] = field(default_factory=list)
    held: int = 0
    most_held: int = 0

    def take(self, requests: Iterator[ChatRequest]) -> ChatRequest | None:
        if not self.left:
            return None
        taken = next(requests, None)
        if taken is not None:
            self.left -= 1
            self.note(taken)
        return taken

    def note(self, taken: ChatRequest) -> None:
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        self.asked.append(taken.key)

    def answer(self, asked: ChatRequest) -> ChatReply:
        self.held -= 1
        return answer(asked)


class Batches:
    """Takes `size` requests, in the thread that reads, before it answers any; in any order."""

    def __init__(self, size: int, budget: Budget | None = None, seed: int = 0) -> None:
        self.size, self.budget, self.random = size, budget or Budget(), random.Random(seed)

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        source = iter(requests)
        while batch := self._batch(source):
            self.random.shuffle(batch)
            yield from map(self.budget.answer, batch)

    def _batch(self, source: Iterator[ChatRequest]) -> list[ChatRequest]:
        batch: list[ChatRequest] = []
        while len(batch) < self.size and (taken := self.budget.take(source)):
            batch.append(taken)
        return batch


class Window:
    """Holds up to `size` requests and answers any of them, in the thread that reads."""

    def __init__(self, size: int, budget: Budget | None = None, seed: int = 0) -> None:
        self.size, self.budget, self.random = size, budget or Budget(), random.Random(seed)

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        source, held = iter(requests), list[ChatRequest]()
        while True:
            while len(held) < self.size and (taken := self.budget.take(source)):
                held.append(taken)
            if not held:
                return
            yield self.budget.answer(held.pop(self.random.randrange(len(held))))


class Threads:
    """Every one of `size` threads takes a request and answers it; the reader waits for any."""

    def __init__(self, size: int, budget: Budget | None = None, batch: int = 1) -> None:
        self.size, self.budget, self.batch = size, budget or Budget(), batch
        self.lock = threading.Lock()

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        done: queue.SimpleQueue[ChatReply | None] = queue.SimpleQueue()
        source = iter(requests)
        threads = [threading.Thread(target=self._work, args=(source, done)) for _ in range(self.size)]
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            reply = done.get()
            running -= reply is None
            if reply is not None:
                yield reply

    def _work(self, source: Iterator[ChatRequest], done: queue.SimpleQueue[ChatReply | None]) -> None:
        taken = self._take(source)
        while taken:
            for one in taken:
                with self.lock:
                    reply = self.budget.answer(one)
                done.put(reply)
            taken = self._take(source)
        done.put(None)

    def _take(self, source: Iterator[ChatRequest]) -> list[ChatRequest]:
        found: list[ChatRequest] = []
        while len(found) < self.batch and self._reserve() and (one := self._next(source)):
            found.append(one)
        return found

    def _reserve(self) -> bool:
        with self.lock:
            allowed = self.budget.left > 0
            self.budget.left -= allowed
        return allowed

    def _next(self, source: Iterator[ChatRequest]) -> ChatRequest | None:
        one = next(source, None)
        with self.lock:
            if one is None:
                self.budget.left += 1
            else:
                self.budget.note(one)
        return one


GENERATORS: dict[str, Callable[[int, Budget], Batches | Window | Threads]] = {
    "batches": Batches,
    "window": Window,
    "threads": Threads,
}


def run(
    folder: Path, generator: Batches | Window | Threads, count: int, in_flight: int, part: int = 3
) -> StepResult:
    with RecordLog(folder, batch=part) as log:
        result = run_step(
            NumberedStep(), rows_of(count), generator, log, key=lambda row: row["id"], in_flight=in_flight
        )
        if result.complete:
            log.finish()
    return result


def found(folder: Path) -> tuple[list[dict[str, object]], list[tuple[str, str]]]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    letters = [json.loads(line) for line in (folder / "dead_letters.jsonl").read_text().splitlines()]
    return rows, [(letter["key"], letter["reason"]) for letter in letters]
