"""A failure, a stall and a verdict are told to those who asked for it, once, and never stop a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tenacity

from tests.tiny import tiny_run
from tests.unit.tracking.test_tracking import verdict_of
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.store import RunDirectory
from ultramed_rl.tracking import Tracker

HOOK = "MY_WEBHOOK"
PATH = "/services/s3cr3t"


class Chat(BaseHTTPRequestHandler):
    """Takes what is posted, and answers with the class's status."""

    status, posted = 200, list[tuple[str, str]]()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).posted.append((self.path, json.loads(body)["text"]))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Chat]]:
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda *_, **__: lambda _: 0.0)
    Chat.status, Chat.posted = 200, []
    server = HTTPServer(("127.0.0.1", 0), Chat)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(HOOK, f"http://127.0.0.1:{server.server_port}{PATH}")
    yield Chat
    server.shutdown()
    thread.join()


def config(root: Path, **changes: object) -> RunConfig:
    wanted = {"tracking__wandb": "disabled", "tracking__webhook_env": HOOK, **changes}
    return parse_config(tiny_run(root, **wanted))


def test_a_failure_a_stall_and_a_verdict_are_told_once_each(tmp_path: Path, chat: type[Chat]) -> None:
    settings = config(tmp_path)
    fell, rose = verdict_of(0.5, 1.0, near=-0.1), verdict_of(0.5, 1.0, near=0.1)
    with (
        pytest.raises(RuntimeError),
        RunDirectory.open(settings, resume=False) as store,
        Tracker(store, settings) as tracked,
    ):
        tracked.alert("stall", "nothing has finished for 60 s")
        tracked.judge(rose)  # good news waits for the end
        tracked.judge(fell)
        tracked.judge(fell, last=True)
        raise RuntimeError("a policy rank is gone")
    assert chat.posted == [
        (PATH, "stall: tiny\nnothing has finished for 60 s"),
        (PATH, f"verdict: tiny\n{fell}"),
        (PATH, "failure: tiny\na policy rank is gone"),
    ]


def test_the_last_verdict_is_told_and_an_interruption_is_none_of_them(
    tmp_path: Path, chat: type[Chat]
) -> None:
    settings, rose = config(tmp_path), verdict_of(0.5, 1.0, near=0.1)
    with (
        pytest.raises(KeyboardInterrupt),
        RunDirectory.open(settings, resume=False) as store,
        Tracker(store, settings) as tracked,
    ):
        tracked.judge(rose, last=True)
        raise KeyboardInterrupt
    assert chat.posted == [(PATH, f"verdict: tiny\n{rose}")]


def test_what_nobody_asked_for_is_not_told(tmp_path: Path, chat: type[Chat]) -> None:
    settings = config(tmp_path, tracking__alert=["failure"])
    with RunDirectory.open(settings, resume=False) as store, Tracker(store, settings) as tracked:
        tracked.alert("stall", "nothing has finished for 60 s")
        tracked.judge(verdict_of(0.5, 1.0), last=True)
    assert chat.posted == []


def test_a_webhook_that_refuses_is_one_warning_without_its_address(
    tmp_path: Path, chat: type[Chat], recwarn: pytest.WarningsRecorder
) -> None:
    chat.status = 404
    settings = config(tmp_path)
    with RunDirectory.open(settings, resume=False) as store, Tracker(store, settings) as tracked:
        for minutes in (1, 2):
            tracked.alert("stall", f"nothing has finished for {minutes} min")
    (warning,) = [str(w.message) for w in recwarn if "webhook" in str(w.message)]
    assert "404" in warning and PATH not in warning and len(chat.posted) == 3, (
        "tried three times, then left alone"
    )


@pytest.mark.parametrize("value", ["", "file:///etc/passwd", "s3cr3t"])
def test_a_webhook_that_is_none_stops_a_run_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(HOOK, value)
    settings = config(tmp_path)
    with (
        RunDirectory.open(settings, resume=False) as store,
        pytest.raises(ValueError, match=r"tracking\.webhook_env") as refused,
    ):
        Tracker(store, settings)
    assert "s3cr3t" not in str(refused.value) and "passwd" not in str(refused.value)
