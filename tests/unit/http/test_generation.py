"""The factory's generator over HTTP, against an API that gets into trouble on purpose."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.fake_api import Limit, Said, answer_all, asked, fake_api, reply, troubled
from ultramed_rl.config.models import Endpoint
from ultramed_rl.http.chat import request_body
from ultramed_rl.http.generator import ApiGenerator
from ultramed_rl.records import ChatReply, ChatRequest, Message

SCHEMA = json.dumps(
    {"type": "object", "properties": {"asked": {"type": "string"}}, "required": ["asked"]}, sort_keys=True
)
REFUSAL = {"error": {"message": "no"}}


def request(key: str, schema: str = "", **fields: Any) -> ChatRequest:
    return ChatRequest(key, (Message(role="user", content=f"say {key}"),), schema=schema, **fields)


def endpoint(url: str, **fields: Any) -> Endpoint:
    return Endpoint.model_validate({"model": "m", "base_url": url, "retries": 2, "concurrency": 4, **fields})


def ask(url: str, folder: Path, *requests: ChatRequest, **fields: Any) -> list[ChatReply]:
    """Replies in the order of the requests."""
    found = {
        found.key: found for found in answer_all(ApiGenerator(endpoint(url, **fields), folder), requests)
    }
    return [found[request.key] for request in requests]


def in_turn(*said: Said) -> Callable[[dict[str, Any]], Said]:
    """One after the other, the last for ever."""
    left = list(said)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# -- many requests -----------------------------------------------------------------------------------------


def test_no_request_of_a_troubled_api_is_lost_or_doubled(tmp_path: Path) -> None:
    requests = [request(f"r{i}", SCHEMA) for i in range(1000)]
    fields = {"retries": 6, "concurrency": 64, "timeout_s": 1.0, "requests_per_minute": 24000.0}
    with fake_api(troubled(0.2, slow_s=2.0), Limit(400.0, 100.0)) as (url, api):
        generator = ApiGenerator(endpoint(url, **fields), tmp_path)
        first = answer_all(generator, requests)
        assert sorted(r.key for r in first) == sorted(r.key for r in requests)
        good = {r.key: r.text for r in first if not r.error}
        assert all(json.loads(text) == {"asked": f"say {key}"} for key, text in good.items())
        assert len(good) >= 950, Counter(r.error for r in first)
        assert all(not r.text for r in first if r.error)
        usage = generator.usage()
        assert (usage.requests, usage.errors) == (1000, 1000 - len(good))
        assert usage.tokens == sum(r.prompt_tokens + r.completion_tokens for r in first)
        assert api.most_busy <= 64 + 64, "those that the client gave up may still be busy, no others"

        before = Counter(api.seen)
        again = answer_all(ApiGenerator(endpoint(url, **fields), tmp_path), requests)
        assert {r.key: r.text for r in again if r.cached} == good
        assert {text.removeprefix("say ") for text in api.seen - before}.isdisjoint(good)


def test_no_more_are_asked_at_once_than_the_endpoint_takes(tmp_path: Path) -> None:
    with fake_api(lambda _: Said(reply("x").body, delay_s=0.001)) as (url, api):
        generator = ApiGenerator(endpoint(url, concurrency=3), tmp_path)
        assert len(answer_all(generator, (request(f"r{i}") for i in range(100)))) == 100
    assert api.most_busy == 3


def test_a_caller_that_stops_early_leaves_nothing_running(tmp_path: Path) -> None:
    def stop(reply: ChatReply) -> None:
        raise KeyError(reply.key)

    requests = [request(f"r{i}") for i in range(100)]
    with fake_api(lambda _: Said(reply("x").body, delay_s=0.02)) as (url, api):
        with pytest.raises(KeyError):
            answer_all(ApiGenerator(endpoint(url), tmp_path), requests, stop)
        time.sleep(0.2)
        seen = sum(api.seen.values())
        time.sleep(0.2)
        assert sum(api.seen.values()) == seen < 20
        assert len(answer_all(ApiGenerator(endpoint(url), tmp_path), requests)) == 100


# -- one request -------------------------------------------------------------------------------------------


def test_a_chat_is_sent_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k3y")
    chat = (Message(role="system", content="Be brief."), Message(role="user", content="Dose?"))
    asked_for = ChatRequest("a", chat, max_tokens=7, temperature=0.5, top_p=0.9, seed=3, schema=SCHEMA)
    with fake_api(lambda _: reply('{"asked": "é"}', usage=(11, 4))) as (url, api):
        found = ask(url, tmp_path, asked_for, api_key_env="MY_KEY", extra={"top_k": 5, "temperature": None})
    assert found == [ChatReply("a", '{"asked": "é"}', "", 11, 4)]
    (body,) = api.bodies
    assert body.pop("headers")["authorization"] == "Bearer k3y"
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(SCHEMA)}}
    assert body == {
        "model": "m",
        "messages": [dict(m) for m in chat],
        "max_tokens": 7,
        "top_p": 0.9,
        "seed": 3,
        "top_k": 5,
        "response_format": form,
    }


@pytest.mark.parametrize(("structured", "form"), [("json_object", {"type": "json_object"}), ("prompt", None)])
def test_a_schema_that_the_api_does_not_hold_to_stands_in_the_last_question(
    structured: str, form: Any
) -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r")]
    chat = ChatRequest("a", tuple(Message(role=r, content=c) for r, c in turns), schema=SCHEMA)
    body = request_body(endpoint("http://h", structured=structured), chat)
    assert body.get("response_format") == form
    assert [m["content"] for m in body["messages"]][:3] == ["s", "q", "a"]
    assert body["messages"][3]["content"].startswith("r\n\n") and SCHEMA in body["messages"][3]["content"]


def test_a_reply_that_does_not_fit_is_asked_again_with_what_is_wrong(tmp_path: Path) -> None:
    rule = in_turn(reply('{"asked": 3}'), reply('```json\n{"asked": "x",}\n```'))
    with fake_api(rule) as (url, api):
        (found,) = ask(url, tmp_path, request("a", SCHEMA))
    assert (found.text, found.error, found.attempts) == ('{"asked": "x"}', "", 2)
    assert (found.prompt_tokens, found.completion_tokens) == (20, 10)
    turns = [(m["role"], m["content"]) for m in api.bodies[1]["messages"]]
    assert turns[:2] == [("user", "say a"), ("assistant", '{"asked": 3}')]
    assert turns[2][0] == "user" and re.search(r"\$\.asked: 3 .*'string'", turns[2][1])


@pytest.mark.parametrize(
    ("said", "error", "attempts"),
    [
        (reply("half an ans", "length"), "truncated", 2),
        (reply("", "content_filter"), "filtered", 1),
        (reply(" \n"), "empty", 3),
        (reply(None), "empty", 3),
        (Said(REFUSAL, 400), r"failure: .*\b400 \(no\)", 1),
        (Said(REFUSAL, 500), r"failure: .*\b500 \(no\)", 3),
        (Said(b"<html>"), r"failure: .*\(<html>\)", 3),
        (Said([]), r"failure: .*\(\[\]\)", 3),
        (Said({"choices": []}), r"failure: .*\(\{\"choices\": \[\]\}\)", 3),
        (Said(reply("late").body, delay_s=9.0), "failure: APITimeoutError", 3),
    ],
)
def test_what_cannot_be_answered_ends_as_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said, error: str, attempts: int
) -> None:
    monkeypatch.setattr("ultramed_rl.http.session._UNWELL_S", 0.0)
    rule = lambda body: said if asked(body) == "say a" else reply("fine")
    with fake_api(rule) as (url, _):
        slow = 0.3 if said.delay_s else 60.0
        bad, good = ask(url, tmp_path, request("a"), request("b"), timeout_s=slow, concurrency=1)
    assert (bad.text, bad.attempts) == ("", attempts) and re.match(error, bad.error)
    assert (good.text, good.error) == ("fine", "")


def test_a_schema_misfit_ends_as_an_error_that_names_it(tmp_path: Path) -> None:
    with fake_api(lambda _: reply("{}")) as (url, api):
        (found,) = ask(url, tmp_path, request("a", SCHEMA), retries=1)
    assert found.error.startswith("misfit: $: 'asked' ") and len(api.bodies) == 2
    assert (found.prompt_tokens, found.completion_tokens) == (20, 10), "what was paid for counts"


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_the_server_asks_for_is_kept(tmp_path: Path, status: int) -> None:
    started = time.monotonic()
    with fake_api(in_turn(Said(REFUSAL, status, {"retry-after": "1"}), reply("x"))) as (url, _):
        (found,) = ask(url, tmp_path, request("a"))
    assert found.text == "x" and time.monotonic() - started >= 1.0


def test_tokens_that_nobody_counted_are_estimated(tmp_path: Path) -> None:
    with fake_api(lambda _: reply("x" * 41, usage=None)) as (url, _):
        (found,) = ask(url, tmp_path, request("a"))
    assert (found.prompt_tokens, found.completion_tokens) == (2, 11)  # "say a" is 5 characters


def test_half_characters_do_not_reach_a_file(tmp_path: Path) -> None:
    with fake_api(lambda _: reply("a\ud800b")) as (url, _):
        (found,) = ask(url, tmp_path, request("a"))
    assert found.text == "a\ufffdb"


def test_a_schema_that_is_none_is_the_callers_error(tmp_path: Path) -> None:
    with fake_api(lambda _: reply("{}")) as (url, api):
        for structured in ("json_schema", "prompt"):
            with pytest.raises(ValueError, match="schema='{': "):
                ask(url, tmp_path, request("a", "{"), structured=structured)
    assert not api.bodies


# -- an endpoint that serves nobody ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said(REFUSAL, 401), r".*\b401\b.*\bapi_key_env\b"),
        (Said(REFUSAL, 403), r".*\b403\b.*\bapi_key_env\b"),
        (Said(REFUSAL, 404), r".*\b404\b.*\bbase_url\b.*\bmodel='m'"),
        (Said({"error": {"message": "no", "code": "insufficient_quota"}}, 429), r".*\b402\b"),
    ],
)
def test_an_api_that_refuses_all_stops_the_run_and_not_each_record(
    tmp_path: Path, said: Said, message: str
) -> None:
    with (
        fake_api(lambda _: said) as (url, api),
        pytest.raises(RuntimeError, match=f"endpoint {url}: {message}"),
    ):
        ask(url, tmp_path, *(request(f"r{i}") for i in range(100)))
    assert len(api.bodies) <= 8


def test_nobody_there_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"http://127\.0\.0\.1:9/v1: .*APIConnectionError.*\btimeout_s\b"):
        ask("http://127.0.0.1:9/v1", tmp_path, request("a"), retries=1)


def test_one_forbidden_request_among_others_is_its_own_error(tmp_path: Path) -> None:
    rule = lambda body: Said(REFUSAL, 403) if asked(body) == "say b" else reply("x")
    with fake_api(rule) as (url, _):
        found = ask(url, tmp_path, *map(request, "abc"), concurrency=1)
    assert [bool(r.error) for r in found] == [False, True, False]


@pytest.mark.parametrize("status", [400, 500])
def test_twenty_failures_in_a_row_stop_the_run(tmp_path: Path, status: int) -> None:
    given: list[ChatReply] = []
    with fake_api(lambda _: Said(REFUSAL, status)) as (url, _):
        generator = ApiGenerator(endpoint(url, retries=0), tmp_path)
        with pytest.raises(RuntimeError, match=rf"{url}: .*\b{status}\b"):
            answer_all(generator, (request(f"r{i}") for i in range(500)), given.append)
    assert len(given) == 19


def test_refused_requests_that_are_bad_themselves_do_not_stop_the_run(tmp_path: Path) -> None:
    rule = lambda body: reply("x") if asked(body) == "say r0" else Said(REFUSAL, 400)
    with fake_api(rule) as (url, _):
        found = ask(url, tmp_path, *(request(f"r{i}") for i in range(60)), concurrency=1)
    assert sum(bool(r.error) for r in found) == 59


def test_the_key_is_in_no_error_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret-k3y")
    echo = {"error": {"message": "the key s3cret-k3y is bad"}}
    with fake_api(in_turn(reply("x"), Said(echo, 400), Said(echo, 401))) as (url, _):
        found = ask(url, tmp_path, request("a"), request("b"), api_key_env="MY_KEY", concurrency=1)
        with pytest.raises(RuntimeError, match=rf"{url}: .*\b401 .*\*\*\*") as caught:
            ask(url, tmp_path, request("c"), api_key_env="MY_KEY")
    assert "***" in found[1].error
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"s3cret" not in files + repr((found, caught.value)).encode()
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ValueError, match=r"endpoint\.api_key_env='MY_KEY': "):
        ApiGenerator(endpoint(url, api_key_env="MY_KEY"), tmp_path)


# -- the section -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": "ftp://x"}, r"base_url\n.*http://host:port"),
        ({"base_url": "http://me:pass@x"}, r"base_url\n.*type=secret_in_address"),
        ({"money_budget": 1.0}, "money_budget=1: .*prompt_price.*completion_price"),
        ({"extra": {"messages": []}}, r"extra\.messages="),
        ({"requests_per_minute": 0.0}, r"requests_per_minute\n.*type=greater_than\]"),
        ({"structured": "yaml"}, r"structured\n.*'json_schema'"),
        ({"api_key": "sk-1"}, r"api_key\n.*type=extra_forbidden\]"),
    ],
)
def test_endpoints_that_cannot_be_asked_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        endpoint(**{"url": "http://h/v1", **fields})


def test_an_endpoint_comes_back_from_its_mapping() -> None:
    section = endpoint("http://h/v1", extra={"chat_template_kwargs": {"enable_thinking": False}})
    assert Endpoint.model_validate(section.to_mapping()) == section
