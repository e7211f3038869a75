"""After a sync an engine answers exactly as one freshly started from the saved checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.learning import learn
from tests.tiny import make_policy, tiny_run
from ultramed_rl.config import parse_config
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import (
    Completion,
    PreferenceGroup,
    Prompt,
    SamplingRequest,
    WeighedCompletion,
    WeighedRequest,
)
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.scorers import Scorers

pytestmark = pytest.mark.usefixtures("ray_cluster")


def requests(tokenizer: ChatTokenizer) -> list[SamplingRequest]:
    prompts = []
    for i in range(5):
        messages = ({"role": "user", "content": f"Question {i}?"},)
        prompts.append(Prompt(f"p{i}", messages, tuple(tokenizer.encode_chat(messages))))
    return [SamplingRequest(p, 3, 1.0, 1.0, 12, seed=100 + i) for i, p in enumerate(prompts)]


def pairs_of(asked: list[SamplingRequest], answers: list[Completion]) -> list[PreferenceGroup]:
    by_prompt = {r.prompt.prompt_id: r.prompt for r in asked}
    return [
        PreferenceGroup(by_prompt[a.prompt_id], (a, b), (1.0, 0.0))
        for a, b in zip(answers[::3], answers[1::3], strict=True)
    ]


@pytest.mark.parametrize(
    "tied", [pytest.param(True, id="tied"), pytest.param(False, id="untied", marks=pytest.mark.slow)]
)
def test_synced_engine_equals_a_fresh_one(tiny_root: Path, tmp_path: Path, tied: bool) -> None:
    policy = make_policy(tmp_path / "policy", tie_word_embeddings=tied)
    settings = tiny_run(tiny_root, policy__path=str(policy), cluster__policy={"ranks": 1, "zero_stage": 0})
    config = parse_config(settings)
    tokenizer = ChatTokenizer(str(policy))
    asked = requests(tokenizer)

    workers = OnlineWorkers(config, tokenizer, Scorers(config.reward, tokenizer))
    workers.start_rollout(str(policy), 0)
    workers.start_learners(str(policy), 0, str(policy), [str(tiny_root / "reward")])
    before = workers.generate(asked, 0, lambda _: None)
    again = workers.generate(asked, 0, lambda _: None)
    weighed = workers.generate([WeighedRequest(**vars(r)) for r in asked], 0, lambda _: None)
    pairs = pairs_of(asked, before)
    found = {r.group_id: r for r in workers.reference_logprobs(pairs, lambda _: None)}
    references = [found[pair.group_id] for pair in pairs]
    for version in (1, 2):
        assert learn(workers, pairs, references, version)
        workers.policy.save(tmp_path / f"checkpoint-{version}")
        workers.sync(version, str(tmp_path / f"checkpoint-{version}"))
    synced = workers.generate(asked, 2, lambda _: None)
    workers.stop()

    fresh_workers = OnlineWorkers(config, tokenizer, Scorers(config.reward, tokenizer))
    fresh_workers.start_rollout(str(tmp_path / "checkpoint-2"), 2)
    fresh = fresh_workers.generate(asked, 2, lambda _: None)
    fresh_workers.stop()

    assert before == again, "the same engine must repeat itself"
    assert [c.token_ids for c in weighed] == [c.token_ids for c in before]
    for completion in weighed:
        assert isinstance(completion, WeighedCompletion)
        assert len(completion.choices) == len(completion.token_ids) - (completion.finish_reason == "stop")
        for choice in completion.choices:
            # Of bytes that are no characters several have the same text.
            assert choice.text in choice.logprobs and len(choice.logprobs) <= 21
            assert sum(map(math.exp, choice.logprobs.values())) <= 1.0 + 1e-4
    assert [c.token_ids for c in synced] != [c.token_ids for c in before], "training changed nothing"
    assert [c.token_ids for c in synced] == [c.token_ids for c in fresh]
    assert [c.logprob for c in synced] == pytest.approx([c.logprob for c in fresh], abs=1e-4)
    # The engine's logprobs are the policy's own: what rollout samples is what the learner sees.
    for pair, reference in zip(pairs, references, strict=True):
        assert [c.logprob for c in pair.completions] == pytest.approx(reference.logprobs, abs=1e-3)
