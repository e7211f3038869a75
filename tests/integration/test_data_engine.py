"""The data factory on our own engines: real vLLM, a tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ultramed_rl.config import EngineConfig, parse_config
from ultramed_rl.http.session import running
from ultramed_rl.records import ChatReply, ChatRequest, Message
from ultramed_rl.workers.chats import EngineGenerator

VERDICT = json.dumps(
    {
        "type": "object",
        "properties": {"verdict": {"enum": ["yes", "no", "perhaps"]}, "score": {"enum": [1, 2, 3, 4, 5]}},
        "required": ["verdict", "score"],
        "additionalProperties": False,
    }
)


def request(key: str, text: str, max_tokens: int, schema: str = "", seed: int = 7) -> ChatRequest:
    return ChatRequest(key, (Message(role="user", content=text),), max_tokens, 1.0, 1.0, seed, schema)


def answer(generator: EngineGenerator, requests: Sequence[ChatRequest]) -> dict[str, ChatReply]:
    async def ask() -> list[ChatReply]:
        return await asyncio.gather(*map(generator.reply, requests))

    with running(generator.close) as start:
        replies: list[ChatReply] = start(ask()).result()
    return {reply.key: reply for reply in replies}


@pytest.mark.usefixtures("ray_cluster")
def test_chats_are_answered_once_each_and_held_to_their_schema(tiny_root: Path) -> None:
    rollout = {"engines": 1, "max_num_seqs": 4, "kv_cache_gib": 0.1, "enforce_eager": True}
    devices = {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8, "cpus_per_node": 2}
    settings = {
        "policy": {"path": str(tiny_root / "policy"), "max_length": 256},
        "cluster": {**devices, "rollout": rollout},
    }
    judged = [request(f"judge {n}", f"Is {n} a prime?", 64, VERDICT, seed=n) for n in range(20)]
    with EngineGenerator(parse_config(settings, kind=EngineConfig)) as generator:
        asked = [*judged, request("cut", "Go on.", 8), request("long", "x" * 240, 32)]
        replies = answer(generator, asked)
        again = answer(generator, judged[::-1])
    assert replies.keys() == {one.key for one in asked}, "a request was lost"
    for one in judged:
        assert not replies[one.key].error, replies[one.key]
        value = json.loads(replies[one.key].text)
        assert value["verdict"] in ("yes", "no", "perhaps") and value["score"] in range(1, 6)
    assert {key: reply.text for key, reply in again.items()} == {
        one.key: replies[one.key].text for one in judged
    }, "an answer depends on what is computed beside it"
    assert len({reply.text for reply in again.values()}) > 1
    assert replies["cut"] == ChatReply("cut", "", "truncated", replies["cut"].prompt_tokens, 8)
    assert replies["long"].error.startswith("too_long: the chat has ")
