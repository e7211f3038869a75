"""What a generator over HTTP remembers: replies and their use, over budgets, restarts, kills and processes."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_api import Said, answer_all, asked, fake_api, reply
from tests.unit.http.test_generation import ask, endpoint, in_turn, request
from ultramed_rl.http.generator import FILE, ApiGenerator
from ultramed_rl.records import ChatReply, ChatRequest, Message

ROOT = Path(__file__).parents[3]

# -- budgets -----------------------------------------------------------------------------------------------


def budgeted(url: str, folder: Path, run: str = "", **fields: Any) -> tuple[ApiGenerator, int]:
    """The generator after 50 requests of 15 tokens (10 and 5; their largest use is the same), and how many it took."""
    generator = ApiGenerator(endpoint(url, **fields), folder, run)
    chats = [ChatRequest(str(i), (Message(role="user", content=f"{i:040}"),), 5) for i in range(50)]
    given = [r.key for r in answer_all(generator, chats)]
    assert sorted(map(int, given)) == list(range(len(given))), "they are asked in their order"
    return generator, len(given)


@pytest.mark.parametrize(
    ("limit", "taken"),
    [
        ({"token_budget": 100}, 7),  # 6 x 15 = 90 leave something, 7 x 15 = 105 don't
        ({"token_budget": 105}, 7),
        ({"token_budget": 106}, 8),
        ({"money_budget": 2e-4, "prompt_price": 2.0, "completion_price": 4.0}, 5),  # 40 millionths each
        # 13.5 millionths each, of sums that floats round
        ({"money_budget": 3e-4, "prompt_price": 0.7, "completion_price": 1.3}, 23),
        ({}, 50),
    ],
)
def test_a_budget_ends_the_run_and_holds_over_restarts(
    tmp_path: Path, limit: dict[str, Any], taken: int
) -> None:
    with fake_api(lambda _: reply("x")) as (url, api):
        generator, found = budgeted(url, tmp_path, **limit)
        assert found == taken == len(api.bodies)
        assert bool(generator.exhausted()) == bool(limit)
        if limit:
            assert budgeted(url, tmp_path, **limit)[1] == 0
            name, value = next(iter(limit.items()))
            assert generator.exhausted().startswith(f"{name}={value:g}: ")
            # Another run has a budget of its own; what is known already costs it nothing.
            assert budgeted(url, tmp_path, "another", **limit)[1] == 2 * taken == len(api.bodies)


def test_known_replies_cost_nothing(tmp_path: Path) -> None:
    with fake_api(lambda _: reply("x")) as (url, api):
        first, _ = budgeted(url, tmp_path, prompt_price=1e6, completion_price=1e6)
        assert (first.usage().tokens, first.usage().cost) == (750, 750.0)
        second, taken = budgeted(url, tmp_path, "b", token_budget=1)
        assert (taken, second.usage().cached, second.usage().tokens, len(api.bodies)) == (50, 50, 0, 50)


def test_what_decides_on_the_reply_decides_on_the_cache(tmp_path: Path) -> None:
    base = request("a")
    chat = (Message(role="system", content="x"), *base.messages)
    others = [
        request("b", max_tokens=9),
        request("b", temperature=0.1),
        request("b", top_p=0.5),
        request("b", seed=1),
        ChatRequest("b", chat),
    ]
    with fake_api(lambda _: reply("x")) as (url, api):
        ask(url, tmp_path, base)
        known = ChatRequest("other key", base.messages)
        assert ask(url, tmp_path, known) == [ChatReply("other key", "x", attempts=0, cached=True)]
        for number, other in enumerate(others, 2):
            assert not ask(url, tmp_path, ChatRequest("b", *_fields(other)))[0].cached
            assert len(api.bodies) == number
        assert not ask(url, tmp_path, base, model="m2")[0].cached
        assert not ask(url, tmp_path, base, extra={"top_k": 1})[0].cached


def _fields(request: ChatRequest) -> tuple[Any, ...]:
    r = request
    return (r.messages, r.max_tokens, r.temperature, r.top_p, r.seed, r.schema)


def test_an_error_is_not_remembered_as_a_reply(tmp_path: Path) -> None:
    with fake_api(in_turn(reply("x", "length"), reply("x", "length"), reply("y"))) as (url, _):
        assert ask(url, tmp_path, request("a"))[0].error == "truncated"
        assert ask(url, tmp_path, request("a"))[0].text == "y"


# -- kills and many processes ------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from tests.fake_api import answer_all
from tests.unit.http.test_generation import endpoint, request
from ultramed_rl.http.generator import FILE, ApiGenerator
generator = ApiGenerator(endpoint(sys.argv[1], concurrency=8), Path(sys.argv[2]))
requests = (request(f"r{i}") for i in range(int(sys.argv[3])))
answer_all(generator, requests, lambda reply: print(reply.key, reply.text, flush=True))
"""


def child(url: str, folder: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, url, str(folder), str(count)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / FILE) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute(sql).fetchall()


def test_a_hard_kill_loses_no_reply_that_was_given(tmp_path: Path) -> None:
    count = 0

    def number(_: dict[str, Any]) -> Said:
        nonlocal count
        count += 1
        return reply(f"answer {count}")

    with fake_api(number) as (url, api):
        given: dict[str, str] = {}
        for wanted in (20, 60, 90):
            process = child(url, tmp_path, 150)
            assert process.stdout is not None
            for line in process.stdout:
                key, text = line.strip().split(" ", 1)
                assert given.setdefault(key, text) == text, "a reply was paid for twice"
                if len(given) >= wanted:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            process.communicate()
        found = ask(url, tmp_path, *(request(f"r{i}") for i in range(150)))
    texts = {r.key: r.text for r in found}
    assert len(texts) == 150 and given.items() <= texts.items()
    assert all(r.cached for r in found if r.key in given)
    assert len(api.bodies) <= 150 + 3 * 16, "more than what was under way at a kill was asked again"
    assert rows(tmp_path, "SELECT count(*) FROM replies") == [(150,)]


def test_processes_share_replies_and_sums(tmp_path: Path) -> None:
    with fake_api(lambda body: reply(asked(body))) as (url, api):
        children = [child(url, tmp_path, 80) for _ in range(3)]
        printed = [process.communicate()[0].splitlines() for process in children]
    assert all(sorted(lines) == sorted(f"r{i} say r{i}" for i in range(80)) for lines in printed)
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT text) FROM replies") == [(80, 80)]
    ((requests, cached, tokens),) = rows(
        tmp_path, "SELECT requests, cached, prompt_tokens + completion_tokens FROM totals"
    )
    assert requests == 240 and requests - cached == len(api.bodies) and tokens == 15 * len(api.bodies)
    assert rows(tmp_path, "SELECT count(*), sum(cached), sum(attempts) FROM usage") == [
        (240, cached, len(api.bodies))
    ]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to be looked at" * 99)
    with pytest.raises(RuntimeError, match=f"{re.escape(str(tmp_path / FILE))}: "):
        ApiGenerator(endpoint("http://h/v1"), tmp_path)
