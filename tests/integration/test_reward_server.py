"""The reward server over real HTTP: our own client, OpenRLHF's request, and what is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ultramed_rl.actors.scorer import RewardWorker
from ultramed_rl.config.rewards import HttpTerm
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards import make_term
from ultramed_rl.rewards.server import Limits, choose_token, load_served, make_app, serve_reward

TOKEN = "a-test-token"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app on a free loopback port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def served(tiny_root: Path) -> tuple[Any, Any, Limits]:
    return load_served(str(tiny_root / "reward"), "cpu", "float32", 512, False)


@pytest.fixture(scope="module")
def url(served: tuple[Any, Any, Limits]) -> Iterator[str]:
    model, tokenizer, limits = served
    with serving(make_app(model, tokenizer, TOKEN, limits)) as address:
        yield address


def post(url: str, body: Any, token: str | None = TOKEN) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(f"{url}/get_reward", json=body, headers=headers, timeout=60)


def sampled(tokenizer: ChatTokenizer) -> tuple[list[Prompt], list[Completion]]:
    """Prompts and answers, the last of each prompt cut off."""
    prompts, completions = [], []
    for name, question in (("p", "What is aspirin?"), ("q", "Dose of valium?"), ("r", "Émile's café?")):
        messages = (Message(role="user", content=question),)
        prompts.append(Prompt(name, messages, tuple(tokenizer.encode_chat(messages))))
        for sample, text in enumerate(("A drug.", "10 mg, say the books", "I don't", "")):
            tokens = tokenizer.encode_text(text)
            cut = sample == 2
            ended = tuple(tokens if cut else [*tokens, tokenizer.end_id])
            completions.append(Completion(name, sample, text, ended, "length" if cut else "stop", 0.0, 0))
    return prompts, completions[::-1]


def expected(tiny_root: Path, prompts: list[Prompt], completions: list[Completion]) -> list[float]:
    """The loop's own way to the same rewards."""
    worker = RewardWorker(0, "cpu", "float32", 100_000)
    worker.load(str(tiny_root / "reward"))
    by_id = {p.prompt_id: p for p in prompts}
    groups = [AnswerGroup(by_id[c.prompt_id].token_ids, [c.token_ids]) for c in completions]
    found = {group: reward for numbers in worker.score(groups) for group, _, reward in numbers}
    return [found[i] for i in range(len(completions))]


@pytest.mark.parametrize("own_template", [False, True])
def test_our_client_gets_the_reward_workers_scores(
    url: str, tiny_root: Path, monkeypatch: pytest.MonkeyPatch, own_template: bool
) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    tokenizer = ChatTokenizer(str(tiny_root / "policy"))
    prompts, completions = sampled(tokenizer)
    config = HttpTerm(
        url=f"{url}/get_reward",
        token_env="MY_TOKEN",
        batch_size=2,
        tokenizer=str(tiny_root / "reward") if own_template else None,
    )
    found = make_term(config, tokenizer).score(prompts, completions)
    assert found == pytest.approx(expected(tiny_root, prompts, completions), abs=1e-4)
    assert len(set(found)) == len(found) == 12


def test_a_wrong_token_is_refused(url: str, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ChatTokenizer(str(tiny_root / "policy"))
    monkeypatch.setenv("MY_TOKEN", "wrong")
    term = make_term(HttpTerm(url=f"{url}/get_reward", token_env="MY_TOKEN"), tokenizer)
    with pytest.raises(RuntimeError, match="status 401"):
        term.score(*sampled(tokenizer))
    body = {"query": ["xy"]}
    assert [post(url, body, token).status_code for token in (None, "", "a-test-toke", TOKEN)] == [401] * 3 + [
        200
    ]
    for header in ("Basic !!", "Basic YTpi", f"Digest {TOKEN}", TOKEN):
        reply = httpx.post(f"{url}/get_reward", json=body, headers={"Authorization": header})
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"


def test_openrlhfs_request_and_reply(url: str) -> None:
    """The shape of openrlhf 0.11.2's `_fetch_rewards_via_http`; the token rides in its URL."""
    import aiohttp

    async def fetch(queries: list[str]) -> Any:
        payload = {"query": queries, "prompts": ["p"] * len(queries), "labels": [None] * len(queries)}
        address = url.replace("http://", f"http://openrlhf:{TOKEN}@") + "/get_reward"
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
            session.post(address, json=payload) as response,
        ):
            response.raise_for_status()
            return await response.json()

    async def many() -> list[Any]:
        return await asyncio.gather(*[fetch([f"query {i}"]) for i in range(24)])

    singles = asyncio.run(many())
    together = asyncio.run(fetch([f"query {i}" for i in range(24)]))
    assert set(together) == {"rewards", "scores", "extra_logs"}
    assert together["rewards"] == together["scores"] and together["extra_logs"] == {}
    assert [reply["rewards"][0] for reply in singles] == pytest.approx(together["rewards"], abs=1e-4)
    assert len(set(together["rewards"])) == 24


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"query": []}, 422, "query"),
        ({"query": "text"}, 422, "query"),
        ({"query": [1]}, 422, "query.0"),
        ({"prompts": ["x"]}, 422, "query"),
        ([], 422, "body"),
        ({"query": ["ok", ""]}, 422, "query 1: 0 tokens"),
        ({"query": ["x"]}, 422, "query 0: 1 tokens"),
        ({"query": ["x" * 2049]}, 413, "2049 tokens; the model reads 2048"),
        ({"query": ["x"] * 1025}, 413, "at most 1024"),
    ],
)
def test_requests_that_are_refused(url: str, body: Any, status: int, detail: str) -> None:
    reply = post(url, body)
    assert reply.status_code == status and detail in reply.json()["detail"]


def test_a_body_over_the_limit_is_refused(served: tuple[Any, Any, Limits]) -> None:
    model, tokenizer, _ = served
    with serving(make_app(model, tokenizer, None, Limits(size=1000))) as url:
        assert post(url, {"query": ["x" * 100]}, None).status_code == 200
        assert post(url, {"query": ["x" * 1000]}, None).status_code == 413


def test_a_failing_model_fails_one_request_and_nan_is_null(served: tuple[Any, Any, Limits]) -> None:
    class Moody:
        vocab_size = 259
        failing = True

        def score(self, groups: Any) -> Any:
            if self.failing:
                raise RuntimeError("out of memory")
            yield [(i, 0, float("nan") if i else 0.5) for i in range(len(groups))]

    model = Moody()
    with serving(make_app(model, served[1], None)) as url:
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert post(url, {"query": ["aa", "bb"]}, None).status_code == 500
        model.failing = False
        assert post(url, {"query": ["aa", "bb"]}, None).json()["rewards"] == [0.5, None]


def test_an_open_address_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("T", raising=False)
    for host in ("0.0.0.0", "", "::", "10.0.0.5", "example.org"):
        with pytest.raises(ValueError, match="--no-token"):
            serve_reward("nowhere", host=host, no_token=True)
        assert choose_token(host, "T", False)[1]
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert choose_token(host, "T", True) == (None, False)
    assert choose_token("127.0.0.1", "T", False)[0] != choose_token("127.0.0.1", "T", False)[0]
    monkeypatch.setenv("T", " mine \n")
    assert choose_token("127.0.0.1", "T", False) == ("mine", False)


def test_a_policy_is_no_reward_model(tiny_root: Path) -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM without a trained head"):
        serve_reward(str(tiny_root / "policy"), device="cpu")


def test_the_command_line_refuses_what_cannot_be() -> None:
    from typer.testing import CliRunner

    from ultramed_rl.cli import app

    for arguments, message in (
        (["--no-token", "--host", "0.0.0.0"], "other machines"),
        (["--device", "tpu"], "'cuda'"),
    ):
        result = CliRunner().invoke(app, ["serve-reward", "nowhere", *arguments])
        assert result.exit_code == 2 and message in result.output
