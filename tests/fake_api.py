"""A server that is none: it answers by rule, within a rate limit, and gets into trouble on purpose."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultramed_rl.http.generator import ApiGenerator
    from ultramed_rl.records import ChatReply, ChatRequest


@dataclass(frozen=True)
class Said:
    """What the server answers to one request: a status, headers and a body, after a delay in seconds; and then,
    for as long as the client listens, `drip` again and again."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip: bytes = b""
    drip_s: float = 0.0


Rule = Callable[[dict[str, Any]], Said]


def reply(text: str | None, finish_reason: str = "stop", usage: tuple[int, int] | None = (10, 5)) -> Said:
    """A chat completion; `usage` as (prompt, completion) tokens."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    if usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        body["usage"] = dict(zip(names, (*usage, sum(usage)), strict=True))
    return Said(body)


def asked(body: dict[str, Any]) -> str:
    """The first message's text, or what a reward server is asked first."""
    return str(body["messages"][0]["content"] if "messages" in body else body["query"][0])


def troubled(share: float, slow_s: float) -> Rule:
    """Answers {"asked": the first message}, but for a share of requests that meets trouble of seven kinds."""
    dice = random.Random(7)
    error = {"error": {"message": "trouble"}}
    kinds = [
        Said(error, 429),
        Said(error, 429, {"retry-after": "1"}),
        Said(error, 503, {"retry-after": "1"}),
        Said(error, 500),
        Said(error, 500, delay_s=slow_s),
        reply('{"asked": "cut o', "length"),
        reply("{'asked': It is hard to say}"),
    ]

    def rule(body: dict[str, Any]) -> Said:
        trouble = dice.random() < share
        return dice.choice(kinds) if trouble else reply(json.dumps({"asked": asked(body)}))

    return rule


class Limit:
    """Whether one more request is within `per_second`, counted evenly, `burst` of them at once."""

    def __init__(self, per_second: float, burst: float) -> None:
        self.per_second, self.size = per_second, burst
        self.level, self.seen = burst, time.monotonic()

    def admits(self) -> bool:
        now = time.monotonic()
        self.level = min(self.size, self.level + (now - self.seen) * self.per_second)
        self.seen = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


def burst_of(per_second: float) -> float:
    """Requests at once, of half a second."""
    return max(1.0, per_second / 2)


class FakeApi:
    """Answers by `rule`, given each request's body with its headers under "headers". `sent`: bytes that dripped."""

    def __init__(self, rule: Rule, limit: Limit | None = None) -> None:
        self.rule, self.limit = rule, limit
        self.bodies: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.over_limit = self.sent = 0
        self.busy = self.most_busy = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                body = await _read(reader)
                self.busy += 1
                self.most_busy = max(self.busy, self.most_busy)
                try:
                    said = self.answer(body)
                    await asyncio.sleep(said.delay_s)
                finally:
                    self.busy -= 1
                writer.write(_rendered(said))
                await writer.drain()
                while said.drip:
                    await asyncio.sleep(said.drip_s)
                    writer.write(said.drip)
                    await writer.drain()
                    self.sent += len(said.drip)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or the server is to end
        finally:
            writer.close()

    def answer(self, body: dict[str, Any]) -> Said:
        if self.limit is not None and not self.limit.admits():
            self.over_limit += 1
            return Said({"error": {"message": "slow down"}}, 429)
        self.bodies.append(body)
        self.seen[asked(body)] += 1
        return self.rule(body)


def _rendered(said: Said) -> bytes:
    payload = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(payload)), **said.headers}
    lines = [f"HTTP/1.1 {said.status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + payload


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    body: dict[str, Any] = json.loads(await reader.readexactly(int(headers["content-length"])))
    return {**body, "headers": headers}


@contextmanager
def fake_api(rule: Rule, limit: Limit | None = None) -> Iterator[tuple[str, FakeApi]]:
    """The base URL of such an API, in a thread, for as long as the context lasts."""
    api, loop = FakeApi(rule, limit), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.start_server(api.serve, "127.0.0.1", 0)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", api
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def answer_all(
    generator: ApiGenerator,
    requests: Iterable[ChatRequest],
    told: Callable[[ChatReply], object] = lambda reply: None,
) -> list[ChatReply]:
    """The replies in the order in which they are done, until the generator's budget is spent; as many requests at a
    time as a stage asks. `told` is told of each reply."""
    from ultramed_rl.http.generator import BudgetSpent
    from ultramed_rl.http.session import running

    source, replies = iter(requests), list[Any]()

    async def work() -> None:
        for request in source:
            try:
                replies.append(await generator.reply(request))
            except BudgetSpent:
                return
            told(replies[-1])

    async def work_all() -> None:
        await asyncio.gather(*(work() for _ in range(2 * generator.endpoint.concurrency)))

    with running(generator.close) as start:
        start(work_all()).result()
    return replies


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _main(per_second: float, share: float, slow_s: float) -> None:
    """Print the base URL, serve until standard input ends, print what was asked."""
    api = FakeApi(troubled(share, slow_s), Limit(per_second, burst_of(per_second)))
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps({"admitted": len(api.bodies), "over_limit": api.over_limit}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*map(float, sys.argv[1:])))
