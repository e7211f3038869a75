"""The reward server and clients that are slow, greedy, gone or many; real HTTP, a model that counts."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from ultramed_rl.rewards.server import Limits, make_app, make_server

PATIENCE_S = 20.0
HEAD = b"POST /get_reward HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"


@dataclass
class Counting:
    """Tokenizer and model in one: characters are tokens, a text's reward is their number."""

    vocab_size: int = 0x110000
    tokenised: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def encode_text(self, text: str) -> list[int]:
        self.tokenised.append(text)
        return [ord(character) for character in text]

    def score(self, groups: Sequence[Any]) -> Iterator[list[tuple[int, int, float]]]:
        self.reached.set()
        assert self.gate.wait(PATIENCE_S)
        yield [(i, 0, float(len(group.prompt) + 1)) for i, group in enumerate(groups)]


@dataclass
class Served:
    """A server under way. `end` is SIGTERM's way to end it, and gives the seconds that it took."""

    model: Counting
    port: int
    server: Any
    thread: threading.Thread

    def end(self) -> float:
        started = time.monotonic()
        self.server.should_exit = True
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return time.monotonic() - started

    def post(self, texts: Any) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.port}/get_reward", json={"query": texts}, timeout=PATIENCE_S
        )

    def connect(self, sent: bytes) -> socket.socket:
        """A client of whom so much is heard."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        client.sendall(sent)
        return client


@contextmanager
def serving(**limits: Any) -> Iterator[Served]:
    model, bounds = Counting(), Limits(**limits)
    server = make_server(make_app(model, model, None, bounds), "127.0.0.1", 0, bounds)
    logging.getLogger("uvicorn.error").addHandler(TRACES)  # uvicorn has just taken all others away
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    served = Served(model, server.servers[0].sockets[0].getsockname()[1], server, thread)
    try:
        yield served
    finally:
        model.gate.set()
        served.end()


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    """A server with small limits."""
    with serving(size=4000, tokens=50, queries=4, read_s=0.1, held=5000) as served:
        yield served


class Traces(logging.Handler):
    """Keeps what is logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(record.getMessage())


TRACES = Traces()


@pytest.fixture(autouse=True)
def _no_traceback() -> Iterator[None]:
    """Whatever clients do, the log has no traceback."""
    TRACES.found.clear()
    yield
    assert TRACES.found == []


def status(client: socket.socket) -> int:
    """Of what the server answers, or 0 where it only closes."""
    said = client.recv(4096)
    return int(said.split()[1]) if said else 0


@pytest.mark.parametrize(
    ("texts", "code", "number"),
    [
        (["a" * 50], 200, ""),
        (["ok", "a" * 51], 413, "50"),
        (["ok", "a" * 801], 413, "800"),
        (["aa"] * 5, 413, "4"),
        (["a" * 4000], 413, "4000"),
        (["a" * 4_000_000], 413, "4000"),
        ([], 422, "query"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_tokenised(
    hasty: Served, texts: list[str], code: int, number: str
) -> None:
    hasty.model.tokenised.clear()
    reply = hasty.post(texts)
    assert reply.status_code == code and number in reply.text
    assert (hasty.model.tokenised == []) == (code != 200 and max(map(len, texts), default=0) != 51)


def test_a_text_may_be_so_long_as_its_tokens_may_be() -> None:
    assert (Limits(tokens=8192).characters, Limits().characters) == (131_072, 1_048_576)
    assert Limits().size == 8_388_608


@pytest.mark.parametrize("head", [b"", b"POST /get", HEAD])
def test_a_head_that_does_not_come_is_not_waited_for(hasty: Served, head: bytes) -> None:
    started = time.monotonic()
    with hasty.connect(head) as client:
        client.settimeout(0.02)
        while time.monotonic() - started < PATIENCE_S:
            try:
                if client.recv(1) == b"":
                    break
            except TimeoutError:
                client.sendall(b"a")  # keeps a server that only looks for silence
            except ConnectionError:
                break
    assert time.monotonic() - started < 5.0


def test_a_second_head_that_does_not_come_is_not_waited_for(hasty: Served) -> None:
    body = b'{"query": ["ok"]}'
    with hasty.connect(HEAD + b"content-length: 17\r\n\r\n" + body) as client:
        assert status(client) == 200
        client.sendall(b"POST")
        assert status(client) == 0


def test_a_body_that_does_not_come_is_not_waited_for(hasty: Served) -> None:
    with hasty.connect(HEAD + b'content-length: 99\r\n\r\n{"query": ["') as client:
        assert status(client) == 408


@pytest.mark.parametrize("sent", [b"POST /get", HEAD + b"content-length: 99\r\n\r\n{", HEAD + b"a" * 70_000])
def test_a_client_that_leaves_is_forgotten(hasty: Served, sent: bytes) -> None:
    for _ in range(5):
        hasty.connect(sent).close()
    assert hasty.post(["abc"]).json()["rewards"] == [3.0]


def test_a_client_that_leaves_while_it_is_scored_is_forgotten() -> None:
    with serving() as served:
        served.model.gate.clear()
        with served.connect(HEAD + b'content-length: 17\r\n\r\n{"query": ["ok"]}'):
            assert served.model.reached.wait(PATIENCE_S)
        served.model.gate.set()
        assert served.post(["abc"]).json()["rewards"] == [3.0]


def test_slow_clients_do_not_keep_others_waiting() -> None:
    with serving(read_s=60.0, grace_s=0) as served, ExitStack() as clients:
        for _ in range(200):
            clients.enter_context(served.connect(HEAD + b"content-length: 99\r\n\r\n{"))
        assert served.post(["abc"]).json()["rewards"] == [3.0]


def test_what_waits_is_bounded(hasty: Served) -> None:
    """Two requests of 3,000 bytes under way are over 5,000."""
    hasty.model.gate.clear()
    hasty.model.reached.clear()
    body = b'{"query": ["ok"], "labels": "'.ljust(2998, b"x") + b'"}'
    assert len(body) == 3000
    with hasty.connect(HEAD + b"content-length: 3000\r\n\r\n" + body) as first:
        assert hasty.model.reached.wait(PATIENCE_S)
        with hasty.connect(HEAD + b"content-length: 3000\r\n\r\n" + body) as second:
            assert status(second) == 503
        hasty.model.gate.set()
        assert status(first) == 200
    assert hasty.post(["abc"]).status_code == 200


def test_connections_are_bounded() -> None:
    with serving(connections=5, grace_s=0) as served, ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(served.connect(HEAD + b"content-length: 99\r\n\r\n{"))
        assert served.post(["abc"]).status_code == 503


@pytest.mark.parametrize("sent", [b"", b"POST /get", HEAD + b"content-length: 99\r\n\r\n{"])
def test_slow_clients_do_not_keep_it_alive(sent: bytes) -> None:
    with serving(read_s=600.0, grace_s=0) as served, ExitStack() as clients:
        for _ in range(200):
            clients.enter_context(served.connect(sent))
        assert served.post(["abc"]).status_code == 200
        assert served.end() < 5.0


def test_a_model_at_work_does_not_keep_it_alive() -> None:
    with serving(grace_s=0) as served, ExitStack() as clients:
        served.model.gate.clear()
        asked = [
            clients.enter_context(served.connect(HEAD + b'content-length: 17\r\n\r\n{"query": ["ok"]}'))
            for _ in range(3)
        ]
        assert served.model.reached.wait(PATIENCE_S)
        assert served.end() < 5.0
        assert {status(client) for client in asked} <= {0, 503}
