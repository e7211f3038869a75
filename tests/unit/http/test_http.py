"""Servers that are slow, broken or hostile: what they do to whoever asks them, in all three protocols' clients."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import gzip
import json
import logging
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus

import pytest
from pydantic import TypeAdapter

from tests.fake_api import FakeApi, Said, answer_all, fake_api, reply
from tests.unit.rewards.test_http import Bytes
from ultramed_rl.config.models import Endpoint
from ultramed_rl.config.rewards import RewardTerm
from ultramed_rl.http.client import MOST_BYTES, Failure, HttpClient, Server, retry_after
from ultramed_rl.http.generator import ApiGenerator
from ultramed_rl.http.session import LONGEST_ASKED_S, Rate, Session
from ultramed_rl.records import ChatRequest, Completion, Message, Prompt
from ultramed_rl.rewards import make_term

SECRET = 's3cr3t/+k=y "-0123456789'
Asking = Callable[..., str]


def score(answers: int = 2, **section: Any) -> list[float]:
    """Rewards of some answers, of the term that the section's type names."""
    term = make_term(TypeAdapter(RewardTerm).validate_python({"retries": 0, **section}), Bytes())
    prompt = Prompt("p", (Message(role="user", content="hi?"),), (104, 105))
    return term.score([prompt], [Completion("p", i, "yes", (121,), "stop", 0.0, 0) for i in range(answers)])


def ask_rewards(url: str, _: Path, env: str | None = None, **fields: Any) -> str:
    """What a run says that cannot go on: of the reward server, the judge or the generator."""
    with pytest.raises(RuntimeError) as caught:
        score(type="http", url=f"{url}/get_reward", token_env=env, **fields)
    return str(caught.value)


def ask_judge(url: str, _: Path, env: str | None = None, **fields: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        score(1, type="judge", model="j", base_url=url, api_key_env=env, **fields)
    return str(caught.value)


def ask_generator(url: str, folder: Path, env: str | None = None, **fields: Any) -> str:
    fields = {"model": "m", "base_url": url, "retries": 0, "api_key_env": env, **fields}
    with ApiGenerator(Endpoint.model_validate(fields), folder) as generator:
        try:
            (found,) = answer_all(generator, [ChatRequest("k", (Message(role="user", content="hi?"),))])
        except RuntimeError as error:
            return str(error)
    assert found.error.startswith("failure: ") and not found.text
    return f"{url} {found.error}"


ASKING = {"reward": ask_rewards, "judge": ask_judge, "generator": ask_generator}
every_client = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, FakeApi]]:
    """One server for all; a test sets its rule."""
    with fake_api(lambda _: reply("x")) as (url, api):
        yield url, api


@pytest.fixture
def answering(server: tuple[str, FakeApi]) -> Callable[[Said], tuple[str, FakeApi]]:
    """The server, with one answer to everything and nothing seen yet."""

    def set_to(said: Said) -> tuple[str, FakeApi]:
        url, api = server
        api.rule, api.sent = (lambda _: said), 0
        api.bodies.clear()
        return url, api

    return set_to


Answering = Callable[[Said], tuple[str, FakeApi]]


# -- time, size, place --------------------------------------------------------------------------------------


@every_client
def test_a_byte_now_and_then_does_not_keep_a_request_alive(
    ask: Asking, answering: Answering, tmp_path: Path
) -> None:
    url, api = answering(Said(b"{", headers={"content-length": "100000"}, drip=b" ", drip_s=0.02))
    started = time.monotonic()
    said = ask(url, tmp_path, timeout_s=0.2)
    assert 0.2 <= time.monotonic() - started < 60.0, "the reply would last 2,000 s"
    assert url in said and "timeout_s=0.2" in said and len(api.bodies) == 1


@every_client
def test_an_endless_reply_is_left_at_the_limit(ask: Asking, answering: Answering, tmp_path: Path) -> None:
    url, api = answering(Said(b"[", headers={"content-length": str(10**10)}, drip=b"1," * 2**17))
    tracemalloc.start()
    said = ask(url, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert url in said and str(MOST_BYTES) in said and len(api.bodies) == 1
    assert api.sent < MOST_BYTES + 2**24 and peak < 4 * MOST_BYTES


@every_client
def test_a_packed_reply_is_not_unpacked(ask: Asking, answering: Answering, tmp_path: Path) -> None:
    fine = {**reply("7").body, "rewards": [1.0, 2.0]}
    packed = gzip.compress(json.dumps(fine).encode())
    url, api = answering(Said(packed, headers={"content-encoding": "gzip"}))
    assert url in ask(url, tmp_path)
    assert api.bodies[0]["headers"]["accept-encoding"] == "identity"


@every_client
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_sent_elsewhere(ask: Asking, answering: Answering, tmp_path: Path, status: int) -> None:
    with fake_api(lambda _: reply("7")) as (elsewhere, other):
        url, api = answering(Said(b"", status, {"location": f"{elsewhere}/get_reward"}))
        said = ask(url, tmp_path, retries=5)
    assert not other.bodies and len(api.bodies) == 1
    assert url in said and f"status {status}" in said and elsewhere in said


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_gets_the_configured_address_alone(
    server: tuple[str, FakeApi], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    url, api = server
    api.rule = lambda _: Said({"rewards": [1.0, 2.0]})
    api.bodies.clear()
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, url.replace("http://", "http://me:pw@").removesuffix("/v1"))
    section = {"type": "http", "url": "http://rewards.invalid/get_reward"}
    assert score(**section) == [1.0, 2.0]
    headers = api.bodies[0]["headers"]
    assert headers["host"] == "rewards.invalid"
    assert headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:pw").decode()
    monkeypatch.setenv("no_proxy", "rewards.invalid")
    with pytest.raises(RuntimeError, match=r"rewards\.invalid"):
        score(**section)
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv(variable, "socks5://me:pw@127.0.0.1:1")
    with pytest.raises(ValueError, match="http_proxy") as caught:
        score(**section)
    assert "pw" not in str(caught.value)


def test_passwords_of_other_hosts_stay_in_netrc(
    answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password of-another-service\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    url, api = answering(Said({"rewards": [1.0, 2.0]}))
    assert score(type="http", url=f"{url}/get_reward") == [1.0, 2.0]
    assert "authorization" not in api.bodies[0]["headers"]


# -- replies ------------------------------------------------------------------------------------------------

BAD_JSON = {
    "html": b"<html>",
    "nothing": b"",
    "not_utf8": b"\xff\xfe\x00",
    "cut": b'{"rewards": [1.0',
    "deep": b"[" * 100_000,
    "nan": b'{"rewards": [NaN, 1.0]}',
    "infinity": b'{"rewards": [1.0, -Infinity]}',
    "overflow": b'{"rewards": [1e999, 1.0]}',
    "400_digits": b'{"rewards": [%s, 1.0]}' % (b"9" * 400),
    "5000_digits": b'{"rewards": [%s, 1.0]}' % (b"9" * 5000),
    "twice": b'{"rewards": [1.0, 2.0], "rewards": [3.0, 4.0]}',
}
BAD_REWARDS = {
    "few": {"rewards": [1.0]},
    "many": {"rewards": [1.0, 2.0, 3.0]},
    "none": {"scores": [1.0, 2.0]},
    "one": {"rewards": 1.0},
    "null": {"rewards": None},
    "list": [1.0, 2.0],
    "text": {"rewards": [1.0, "2.0"]},
    "bool": {"rewards": [1.0, True]},
    "nested": {"rewards": [[1.0], [2.0]]},
    "by_key": {"rewards": {"0": 1.0, "1": 2.0}},
}
BAD_CHATS = {
    "none": {"rewards": [1.0, 2.0]},
    "list": [],
    "no_choice": {"choices": []},
    "no_message": {"choices": [{}]},
    "parts": {"choices": [{"message": {"content": [{"text": "7"}]}}]},
    "number": {"choices": [{"message": {"content": 7}}]},
}


@pytest.mark.parametrize("name", [*BAD_JSON, *BAD_REWARDS])
def test_rewards_that_are_none_are_the_servers_fault(answering: Answering, tmp_path: Path, name: str) -> None:
    url, api = answering(Said({**BAD_JSON, **BAD_REWARDS}[name]))
    said = ask_rewards(url, tmp_path)
    assert f"reward server {url}/get_reward" in said and "\n" not in said and len(api.bodies) == 1


@pytest.mark.parametrize("ask", [ask_judge, ask_generator])
@pytest.mark.parametrize("name", [*BAD_JSON, *BAD_CHATS])
def test_chats_that_are_none_are_the_servers_fault(
    ask: Asking, answering: Answering, tmp_path: Path, name: str
) -> None:
    url, api = answering(Said({**BAD_JSON, **BAD_CHATS}[name]))
    said = ask(url, tmp_path)
    assert url in said and "\n" not in said and len(api.bodies) == 1


@pytest.mark.parametrize("count", [-1, 10**40, True, 1.5, "7", None, [3]])
def test_counts_that_are_none_are_estimated(answering: Answering, tmp_path: Path, count: Any) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": count}
    url, _ = answering(Said({**reply("x" * 40).body, "usage": usage}))
    with ApiGenerator(Endpoint(model="m", base_url=url, prompt_price=1.0), tmp_path) as generator:
        (found,) = answer_all(generator, [ChatRequest("k", (Message(role="user", content="four"),))])
    assert (found.prompt_tokens, found.completion_tokens) == (1, 10)


# -- what a server repeats ----------------------------------------------------------------------------------

FORMS = {
    "plain": SECRET,
    "url": quote(SECRET, safe=""),
    "url_lower": re.sub("%..", lambda found: found[0].lower(), quote(SECRET, safe="")),
    "every_byte": "".join(f"%{ord(c):02X}" for c in SECRET),
    "url_twice": quote(quote(SECRET, safe=""), safe=""),
    "json": json.dumps(SECRET)[1:-1],
    "json_slashes": json.dumps(SECRET)[1:-1].replace("/", "\\/"),
    "json_every": "".join(f"\\u{ord(c):04x}" for c in SECRET),
    "html": SECRET.replace('"', "&quot;"),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "basic": base64.b64encode(f"user:{SECRET}".encode()).decode(),
    "basic_long": base64.b64encode(f"users:{SECRET}!".encode()).decode(),
    "url_base64": base64.urlsafe_b64encode(f"use:{SECRET}??".encode()).decode(),
}


def readings(text: str) -> Iterator[str]:
    """A text, and all that somebody might read out of it."""
    yield from (text, unquote_plus(text), unquote_plus(unquote_plus(text)), text.replace("&quot;", '"'))
    yield text.replace("\\/", "/").replace('\\"', '"')
    yield text.encode("latin-1", "replace").decode("unicode_escape", "replace")
    for run in re.findall(r"[A-Za-z0-9+/_-]{8,}", text):
        for start in range(4):
            bare = run[start:].translate(str.maketrans("-_", "+/"))
            yield base64.b64decode(bare[: len(bare) // 4 * 4]).decode("latin-1")


@every_client
@pytest.mark.parametrize("status", [200, 302, 400, 401, 500])
@pytest.mark.parametrize("form", FORMS)
def test_a_server_cannot_have_the_secret_repeated(
    ask: Asking,
    answering: Answering,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    status: int,
) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    words = f"no such key: {FORMS[form]} is it"
    body = words.encode() if form.startswith("json") else {"error": {"message": words}}
    url, api = answering(Said(body, status, {"location": f"http://elsewhere/?token={FORMS[form]}"}))
    said = ask(url, tmp_path, "MY_SECRET")
    assert api.bodies[0]["headers"]["authorization"] == f"Bearer {SECRET}"
    assert "***" in said
    for reading in readings(said):
        assert not any(SECRET[i : i + 7] in reading for i in range(len(SECRET) - 6)), reading
    for file in tmp_path.iterdir():
        assert b"s3cr3t" not in file.read_bytes()


def test_a_secret_in_an_answer_does_not_reach_the_records(
    answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret, text in ((SECRET, "It is *** indeed."), ("is", "It is is indeed.")):
        monkeypatch.setenv("MY_SECRET", secret)
        url, _ = answering(reply(f"It is {secret} indeed."))
        endpoint = Endpoint(model=f"m{len(secret)}", base_url=url, api_key_env="MY_SECRET")
        with ApiGenerator(endpoint, tmp_path) as generator:
            (found,) = answer_all(generator, [ChatRequest("k", (Message(role="user", content="hi?"),))])
        assert found.text == text


def test_control_characters_do_not_reach_a_terminal(answering: Answering, tmp_path: Path) -> None:
    url, _ = answering(Said({"error": {"message": "\x1b[2Jcleared\x07\u202e\x00 and\nmore"}}, 400))
    assert ask_rewards(url, tmp_path).isprintable()


@pytest.mark.parametrize("value", ["two\nlines", "schlüssel", "a\x00b"])
def test_a_secret_that_no_header_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    if "\x00" in value:
        monkeypatch.setattr("os.environ", {"MY_SECRET": value})
    else:
        monkeypatch.setenv("MY_SECRET", value)
    with pytest.raises(ValueError, match=r"http\.token_env='MY_SECRET'") as caught:
        score(type="http", url="http://h", token_env="MY_SECRET")
    assert value[:3] not in str(caught.value)


# -- waits --------------------------------------------------------------------------------------------------


@every_client
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_asked_for_is_kept_and_told_once(
    ask: Asking,
    answering: Answering,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr("ultramed_rl.http.session._UNWELL_S", 0.0)
    url, api = answering(Said({"error": "busy"}, status, {"retry-after": "0.25"}))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        ask(url, tmp_path, retries=1)
    assert time.monotonic() - started >= 0.25
    assert len(api.bodies) == 2
    (record,) = caplog.records
    assert (
        record.levelno == logging.WARNING
        and url in record.getMessage()
        and str(status) in record.getMessage()
    )


def test_a_wait_is_read_as_number_or_date() -> None:
    now = 1_700_000_000.0
    date = email.utils.formatdate(now + 90, usegmt=True)
    assert retry_after({"retry-after": "7"}, now) == 7.0
    assert retry_after({"retry-after": "0.25"}, now) == 0.25
    assert retry_after({"retry-after": date}, now) == 90.0
    assert retry_after({"retry-after": date.removesuffix(" GMT")}, now) == 90.0
    assert retry_after({"retry-after": date}, now + 100) == 0.0
    for none in ("", "soon", "-3", "inf", "nan", "9" * 400, "1_0", "Mon, 01 Jan 99999 00:00:00 GMT", "0x10"):
        assert retry_after({"retry-after": none}, now) == 0.0
    assert retry_after({}, now) == 0.0


def waits(asked: float = 0.0, *, answered: bool) -> list[float]:
    """Seconds before the eighth try, where every request before was answered, or none."""

    session = Session(HttpClient(Server("s", "http://localhost", 1.0, 9, 1)))
    for _ in range(100):
        session.note(answered)
    failure = Failure("busy", passing=True, wait=asked)
    failure.attempts = 7
    return [session.delay(failure) for _ in range(200)]


def test_waits_grow_only_while_the_server_is_unwell() -> None:
    """One request's bad luck isn't everyone's trouble; a server that fails all is given time."""
    assert max(waits(answered=True)) <= 1.0
    assert 15.0 < max(waits(answered=False)) <= 30.0


def test_no_wait_is_longer_than_the_limit() -> None:
    assert LONGEST_ASKED_S == 600.0
    assert min(waits(10.0, answered=True)) >= 10.0
    assert min(waits(1e12, answered=True)) >= 600.0 and max(waits(1e12, answered=True)) <= 601.0


def seconds(per_minute: float | None, *amounts: float, given_back: float = 0.0) -> float:
    async def take() -> float:
        rate = Rate(per_minute)
        started = time.monotonic()
        for amount in amounts:
            await rate.take(amount)
            rate.give_back(given_back)
        return time.monotonic() - started

    return asyncio.run(take())


def test_a_rate_is_kept_beyond_its_burst() -> None:
    """100 a second, of which a quarter second's 25 go at once: 25 more take a quarter second, at least."""
    assert seconds(6000.0, *[1.0] * 50) >= 0.25 - 1e-6
    assert seconds(6000.0, *[10.0] * 5) >= 0.15 - 1e-6  # the last one waits for 15 of its 25
    assert seconds(None, *[1e9] * 50) < 10.0


def test_an_amount_over_the_burst_leaves_a_debt() -> None:
    """75 of 25: the next 1 waits for 51."""
    assert seconds(6000.0, 75.0, 1.0) >= 0.51 - 1e-6


def test_what_was_not_used_can_be_given_back() -> None:
    assert seconds(60.0, *[100.0] * 5, given_back=100.0) < 10.0  # without it: 400 s
