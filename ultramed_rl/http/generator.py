"""Chats answered by an OpenAI-compatible API: within budgets, and never paid for twice.

request --> may another be taken? --> known already? --> asked until its reply is usable --> kept with what it used

Replies and use are in one SQLite file, for many processes. A reply and its use are written together, as soon as the
reply is there: what is killed has lost only requests that were under way. The file is in WAL mode, which wants a local
disk. It holds no key.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from ultramed_rl.config.models import Endpoint
from ultramed_rl.http.chat import ChatSession, chat_client, largest_use
from ultramed_rl.http.client import Failure
from ultramed_rl.http.json_reply import UnusableReply
from ultramed_rl.http.session import ReplyRecord
from ultramed_rl.records import ChatReply, ChatRequest
from ultramed_rl.store.digests import digest_inputs

FILE = "api.sqlite"
_WAIT_S = 60.0  # for another process's write
_TABLES = (
    "CREATE TABLE IF NOT EXISTS replies (digest BLOB PRIMARY KEY, model TEXT, text TEXT, time REAL)",
    "CREATE TABLE IF NOT EXISTS usage (run TEXT, model TEXT, key TEXT, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, cost REAL, attempts INTEGER, seconds REAL, cached INTEGER, error TEXT, time REAL)",
    "CREATE TABLE IF NOT EXISTS totals (run TEXT, model TEXT, requests INTEGER, cached INTEGER, errors INTEGER, "
    "prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL, PRIMARY KEY (run, model))",
)
_ADD = """INSERT INTO totals VALUES (?, ?, 1, ?, ?, ?, ?, ?) ON CONFLICT (run, model) DO UPDATE SET
requests = requests + 1, cached = cached + excluded.cached, errors = errors + excluded.errors,
prompt_tokens = prompt_tokens + excluded.prompt_tokens,
completion_tokens = completion_tokens + excluded.completion_tokens, cost = cost + excluded.cost"""
_SUMS = """SELECT requests, cached, errors, prompt_tokens, completion_tokens, cost
FROM totals WHERE run = ? AND model = ?"""


class BudgetSpent(Exception):
    """No more is asked: which budget is used up, by how much, and what to do."""


class ApiGenerator:
    """A `Generator` (see `data.factory.step`) over HTTP, for one event loop. Use as a context: its end closes the
    folder's file.

    A reply that was had before, in any run with this folder, is given again for nothing. Not to be sent to another
    process: make one there, with the same folder.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        folder: Path,
        run: str = "",
        name: str = "endpoint",
        journal: Path | None = None,
    ) -> None:
        """
        Args:
            folder: of the known replies and the use, on a local disk; processes may share it.
            run: whose use the budgets count; another run has budgets of its own.
            name: how errors call the endpoint.
            journal: see `ReplyStore`.

        Raises:
            ValueError: the key's environment variable isn't set.
            RuntimeError: the folder's file cannot be opened.
        """
        self.endpoint = endpoint
        self._asking = ChatSession(endpoint, chat_client(endpoint, name))
        self._store = ReplyStore(folder, run, endpoint.model, journal)
        self._admission, self._freed = asyncio.Lock(), asyncio.Event()
        self._tokens, self._cost = 0, 0.0  # that requests under way may use

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    def exhausted(self, tokens: int = 0, cost: float = 0.0) -> str:
        """Which budget is used up (with so much besides), by how much, and what to do; empty while none is."""
        usage, budget, money = self.usage(), self.endpoint.token_budget, self.endpoint.money_budget
        if budget is not None and (used := usage.tokens + tokens) >= budget:
            return f"token_budget={budget}: {used} tokens are used; raise it to go on"
        if money is not None and (spent := usage.cost + cost) >= money:
            return f"money_budget={money:g}: {spent:.4g} are used; raise it to go on"
        return ""

    def usage(self) -> Usage:
        """What the run has asked of this model so far, earlier starts included."""
        return self._store.usage()

    async def close(self) -> None:
        """Close the connections; a later request opens them anew."""
        await self._asking.client.close()

    async def reply(self, request: ChatRequest) -> ChatReply:
        """The reply; its error is "truncated", "filtered", "empty", "misfit: ..." (not the JSON asked for, and why)
        or "failure: ..." (of the endpoint).

        While something is under way that may use up the rest of a budget, nothing more is taken. So a run goes over
        its budget by one request at most, and by what failed attempts at those under way use.

        Raises:
            BudgetSpent: nothing was asked.
            RuntimeError: the endpoint serves nobody: it refuses the key; from the start, the model or any
                connection; or 20 requests in a row.
            ValueError: the request's schema is none.
        """
        largest = largest_use(request)
        tokens, price = sum(largest), cost(self.endpoint, *largest)
        # One request at a time, in their order, waits for room: any that ends may have left some of what it might use.
        async with self._admission:
            while self.exhausted(self._tokens, self._cost):
                if reason := self.exhausted():
                    raise BudgetSpent(reason)
                self._freed.clear()
                await self._freed.wait()
            self._tokens += tokens
            self._cost += price
        try:
            return await self._known_or_asked(request)
        finally:
            self._tokens -= tokens
            self._cost = (
                self._cost - price if self._tokens else 0.0
            )  # no rounding is left where nothing is under way
            self._freed.set()

    async def _known_or_asked(self, request: ChatRequest) -> ChatReply:
        started = time.monotonic()
        extra = json.dumps(dict(self.endpoint.extra), sort_keys=True)
        decides = [replace(request, key=""), self.endpoint.model, extra]  # on the reply
        digest = bytes.fromhex(digest_inputs(decides))
        if (known := self._store.find(digest)) is not None:
            self._store.write(ReplyRecord(request.key, cached=True), digest)
            return ChatReply(request.key, known, attempts=0, cached=True)
        used, text = ReplyRecord(request.key, error="stopped"), ""
        try:
            text = await self._asking.ask_until_usable(request, used)
            used.error = ""
        except UnusableReply as misfit:
            used.error = str(misfit)
        except Failure as failure:
            if self._asking.serves_nobody(failure):
                raise failure.stopping(self._asking.server) from None
            used.error = f"failure: {failure}"
        finally:  # what was used is used, also where the run ends here
            used.cost = cost(self.endpoint, used.prompt_tokens, used.completion_tokens)
            used.seconds = round(time.monotonic() - started, 3)
            self._store.write(used, digest, text or None)
        tokens = (used.prompt_tokens, used.completion_tokens)
        return ChatReply(request.key, text, used.error, *tokens, attempts=used.attempts)


def cost(endpoint: Endpoint, prompt_tokens: int, completion_tokens: int) -> float:
    """What so many tokens cost, in the prices' currency."""
    return (endpoint.prompt_price * prompt_tokens + endpoint.completion_price * completion_tokens) / 1e6


@dataclass
class Usage:
    """What requests took: all that a run has asked of a model, restarts and other processes included, or a step's own. Token counts
    are the model's, so those of cached replies are 0."""

    requests: int = 0
    cached: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, reply: ChatReply) -> None:
        """One more reply; what it cost, replies don't say."""
        self.requests += 1
        self.errors += bool(reply.error)
        self.cached += reply.cached
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens


class ReplyStore:
    """Known replies of any run, and the use of one run of one model. One thread at a time may use it."""

    def __init__(self, folder: Path, run: str, model: str, journal: Path | None = None) -> None:
        """
        Args:
            journal: a file that gets every use and reply of the run too, a line each, for a machine that hasn't this
                folder. What it holds and the folder doesn't, comes from another machine and is taken over.

        Raises:
            RuntimeError: the file cannot be opened.
        """
        self.path, self.run, self.model, self.journal = folder / FILE, run, model, journal
        folder.mkdir(parents=True, exist_ok=True)
        with self._explained(), (folder / f"{FILE}.lock").open("w") as opening:
            # SQLite doesn't wait for who else is switching a new file to WAL.
            fcntl.flock(opening, fcntl.LOCK_EX)
            self._database = sqlite3.connect(self.path, timeout=_WAIT_S, check_same_thread=False)
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", *_TABLES):
                self._database.execute(statement)
            self._database.commit()
            self._take_over()

    def find(self, digest: bytes) -> str | None:
        """The reply to a request of this digest, or None."""
        with self._explained():
            row = self._database.execute("SELECT text FROM replies WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else str(row[0])

    def write(self, record: ReplyRecord, digest: bytes, text: str | None = None) -> None:
        """Add what a request has used and, with `text`, its reply; the first reply to a request stays."""
        self._insert(record, digest, text)
        if self.journal is not None:
            line = {"model": self.model, "digest": digest.hex(), "text": text, **asdict(record)}
            with self.journal.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line))  # a killed writer's half line ends here

    def usage(self) -> Usage:
        """The sums of this run and model."""
        with self._explained():
            row = self._database.execute(_SUMS, (self.run, self.model)).fetchone()
        return Usage(*row or ())

    def close(self) -> None:
        """Close the file. What was written stays without this."""
        self._database.close()

    def _take_over(self) -> None:
        """Where the run has asked more elsewhere than here, count its use anew, by its journal."""
        if self.journal is None or not self.journal.is_file():
            return
        lines: list[dict[str, Any]] = []
        for line in self.journal.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError):
                lines.append(json.loads(line))
        own = [line for line in lines if line["model"] == self.model]
        if len(own) <= self.usage().requests:
            return
        with self._database as database:
            for table in ("usage", "totals"):
                database.execute(f"DELETE FROM {table} WHERE run = ? AND model = ?", (self.run, self.model))
        for used in own:
            record = ReplyRecord(**{field.name: used[field.name] for field in fields(ReplyRecord)})
            self._insert(record, bytes.fromhex(used["digest"]), used["text"])

    def _insert(self, used: ReplyRecord, digest: bytes, text: str | None) -> None:
        now = time.time()
        with self._explained(), self._database as database:
            row = (self.run, self.model, *astuple(used), now)
            database.execute(f"INSERT INTO usage VALUES ({'?, ' * 10}?)", row)
            sums = (used.cached, bool(used.error), used.prompt_tokens, used.completion_tokens, used.cost)
            database.execute(_ADD, (self.run, self.model, *sums))
            if text is not None:
                kept = (digest, self.model, text, now)
                database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", kept)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RuntimeError(
                f"{self.path}: {error}; is its disk full, or not a local one? If the file is broken, remove it: "
                "its replies are asked for again"
            ) from error
