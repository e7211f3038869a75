"""Replies that were had already, and what every request has used: one SQLite file, for many processes.

A reply and its use are written together, as soon as the reply is there: what is killed has lost only requests
that were under way. The file is in WAL mode, which wants a local disk. It holds no key.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class ReplyRecord:
    """What one request has used; `cost` in the prices' currency, `seconds` from taken to done."""

    key: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    attempts: int = 0
    seconds: float = 0.0
    cached: bool = False
    error: str = ""


@dataclass(frozen=True)
class ApiUsage:
    """What a run has asked of a model so far, restarts and other processes included."""

    requests: int = 0
    cached: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ReplyStore:
    """Known replies of any run, and the use of one run of one model. Threads may share it."""

    def __init__(self, folder: Path, run: str, model: str, journal: Path | None = None) -> None:
        """
        Args:
            journal: a file that gets every use and reply of the run too, a line each, for a machine that hasn't this folder.
                What it holds and the folder doesn't, comes from another machine and is taken over.

        Raises:
            RuntimeError: the file cannot be opened.
        """
        self.path, self.run, self.model, self.journal = folder / FILE, run, model, journal
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        with self._explained(), (folder / f"{FILE}.lock").open("w") as opening:
            # SQLite doesn't wait for who else is switching a new file to WAL.
            fcntl.flock(opening, fcntl.LOCK_EX)
            self._database = sqlite3.connect(self.path, timeout=_WAIT_S, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            for table in _TABLES:
                self._database.execute(table)
            self._database.commit()
            self._take_over()

    def find(self, digest: bytes) -> str | None:
        """The reply to a request of this digest, or None."""
        with self._explained(), self._lock:
            row = self._database.execute("SELECT text FROM replies WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else str(row[0])

    def write(self, record: ReplyRecord, digest: bytes, text: str | None = None) -> None:
        """Add what a request has used and, with `text`, its reply; the first reply to a request stays."""
        self._insert(record, digest, text)
        if self.journal is not None:
            line = {"model": self.model, "digest": digest.hex(), "text": text, **asdict(record)}
            with self._lock, self.journal.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line))  # a killed writer's half line ends here

    def _take_over(self) -> None:
        """Where the run has asked more elsewhere than here, count its use anew, by its journal."""
        own = [line for line in _read_journal(self.journal) if line["model"] == self.model]
        if len(own) <= self.usage().requests:
            return
        with self._database as database:
            for table in ("usage", "totals"):
                database.execute(f"DELETE FROM {table} WHERE run = ? AND model = ?", (self.run, self.model))
        for line in own:
            record = ReplyRecord(**{field.name: line[field.name] for field in fields(ReplyRecord)})
            self._insert(record, bytes.fromhex(line["digest"]), line["text"])

    def _insert(self, record: ReplyRecord, digest: bytes, text: str | None) -> None:
        e, now = record, time.time()
        tokens = (e.prompt_tokens, e.completion_tokens)
        used = (*tokens, e.cost, e.attempts, e.seconds, e.cached, e.error, now)
        with self._explained(), self._lock, self._database as database:
            database.execute(
                f"INSERT INTO usage VALUES ({'?, ' * 10}?)", (self.run, self.model, e.key, *used)
            )
            database.execute(_ADD, (self.run, self.model, e.cached, bool(e.error), *tokens, e.cost))
            if text is not None:
                kept = (digest, self.model, text, now)
                database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", kept)

    def usage(self) -> ApiUsage:
        """The sums of this run and model."""
        with self._explained(), self._lock:
            row = self._database.execute(_SUMS, (self.run, self.model)).fetchone()
        return ApiUsage() if row is None else ApiUsage(*row)

    def close(self) -> None:
        """Close the file. What was written stays without this."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RuntimeError(
                f"{self.path}: {error}; is its disk full, or not a local one? If the file is broken, remove it: "
                "its replies are asked for again"
            ) from error


def _read_journal(path: Path | None) -> list[dict[str, Any]]:
    """Its whole lines."""
    if path is None or not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines
