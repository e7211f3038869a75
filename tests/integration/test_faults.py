"""Actors that are killed or stopped in the middle of their work: only what they held is done again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.learning import learn
from tests.tiny import tiny_run
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.work import TrainingPlace, WorkBatch
from ultramed_rl.config import parse_config
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, SamplingRequest
from ultramed_rl.scheduling.pool import RanksLost
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.scorers import Scorers

# Times are short so that hangs are found soon; a worker that starts may take a minute here.
FAULTS = {"attempts": 4, "restarts": 6, "hang_s": 45.0, "start_s": 300.0}
CHANGES: dict[str, Any] = {
    "policy__max_length": 448,
    "sampling__max_new_tokens": 320,
    "cluster__faults": FAULTS,
    "cluster__policy": {"ranks": 1, "zero_stage": 0},
    "cluster__rollout": {"engines": 2, "max_num_seqs": 8, "kv_cache_gib": 0.1, "enforce_eager": True},
}


@pytest.fixture(scope="module")
def workers(tiny_root: Path) -> Iterator[OnlineWorkers]:
    import ray

    config = parse_config(tiny_run(tiny_root, **CHANGES))
    tokenizer = ChatTokenizer(config.policy.path)
    workers = OnlineWorkers(config, tokenizer, Scorers(config.reward, tokenizer))
    workers.begin_rollout(config.policy.path, 0)
    workers.start_learners(config.policy.path, 0, config.policy.path, [str(tiny_root / "reward")])
    yield workers
    workers.stop()
    ray.shutdown()


def requests(workers: OnlineWorkers, count: int, tokens: int) -> list[SamplingRequest]:
    found = []
    for i in range(count):
        messages = ({"role": "user", "content": f"Question {i}?"},)
        prompt = Prompt(f"p{i}", messages, tuple(workers.tokenizer.encode_chat(messages)))
        found.append(SamplingRequest(prompt, 2, 1.0, 1.0, tokens, seed=100 + 2 * i))
    return found


def process_of(actor: Any) -> int:
    """The process of an actor that has nothing to do."""
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def kill_at_work(pid: int) -> None:
    """SIGKILL, from a thread, as soon as the actor takes a turn: Ray names its process by the method."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while b".work" not in Path(f"/proc/{pid}/cmdline").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def said(completions: list[Completion]) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(c.prompt_id, c.sample, c.token_ids) for c in completions]


def check_engines(workers: OnlineWorkers, asked: list[SamplingRequest], version: int) -> None:
    """Every engine by itself gives the same answers, with the same logprobs, as this policy."""
    import ray

    turn = WorkBatch([(request.prompt.prompt_id, request) for request in asked], seconds=300.0)
    reports = ray.get([actor.work.remote(turn) for actor in workers.rollout.actors])
    first, second = ([c for _, found in sorted(report.done) for c in found] for report in reports)
    assert {c.policy_version for c in (*first, *second)} == {version}
    assert len(first) == 2 * len(asked) and said(first) == said(second)
    assert [c.logprob for c in first] == pytest.approx([c.logprob for c in second], abs=1e-3)


def answers(
    workers: OnlineWorkers, asked: list[SamplingRequest], version: int = 0
) -> list[tuple[str, int, Any]]:
    return said(workers.generate(asked, version, lambda _: None))


def test_what_a_killed_engine_held_is_answered_by_the_others_and_the_same(workers: OnlineWorkers) -> None:
    asked = requests(workers, 24, 256)
    unbroken = answers(workers, asked)
    victim = process_of(workers.rollout.actors[0])
    kill_at_work(victim)
    assert answers(workers, asked) == unbroken
    assert workers.engines.restarts == 1 and not Path(f"/proc/{victim}").exists()
    workers.scheduler.replace_dead(workers.engines)
    assert len(workers.rollout) == 2 and workers.rollout.call(RolloutWorker.version) == [0, 0]


def test_killed_reward_and_reference_models_give_the_same_numbers(workers: OnlineWorkers) -> None:
    asked = requests(workers, 6, 24)
    completions = workers.generate(asked, 0, lambda _: None)
    prompts = [request.prompt for request in asked]
    pairs = pairs_of(asked, completions)
    before = workers.score(prompts, completions, lambda _: None)
    weighed = list(workers.reference_logprobs(pairs, lambda _: None))
    os.kill(process_of(workers.scorers.groups[0].actors[0]), signal.SIGKILL)
    os.kill(process_of(workers.reference.actors[0]), signal.SIGKILL)
    after = workers.score(prompts, completions, lambda _: None)
    assert [s.reward for s in after] == pytest.approx([s.reward for s in before], abs=1e-4)
    again = {r.group_id: r.logprobs for r in workers.reference_logprobs(pairs, lambda _: None)}
    assert again.keys() == {r.group_id for r in weighed} and len(weighed) == len(pairs)
    for one in weighed:
        assert again[one.group_id] == pytest.approx(one.logprobs, abs=1e-3)


def test_a_lost_policy_starts_again_and_its_weights_reach_a_new_engine(
    workers: OnlineWorkers, tmp_path: Path
) -> None:
    asked = requests(workers, 4, 24)
    completions = workers.generate(asked, 0, lambda _: None)
    pairs = pairs_of(asked, completions)
    references = by_pair(workers, pairs)
    os.kill(process_of(workers.policy.actors[0]), signal.SIGKILL)
    with pytest.raises(RanksLost, match="policy: a rank died"):
        learn(workers, pairs, references, 0)
    workers.restart_policy(workers.config.policy.path, 0)
    assert learn(workers, pairs, references, 0)
    workers.policy.save(tmp_path / "checkpoint")
    os.kill(
        process_of(workers.rollout.actors[0]), signal.SIGKILL
    )  # before the sync, which has to find it out
    workers.sync(1, str(tmp_path / "checkpoint"))
    assert workers.rollout.call(RolloutWorker.version) == [1, 1]
    check_engines(workers, asked, 1)
    assert answers(workers, asked, 1) != said(completions), "the engines have the old weights"


def test_a_policy_that_hangs_in_training_is_ended(
    workers: OnlineWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(workers, 4, 24)
    pairs = pairs_of(asked, workers.generate(asked, 1, lambda _: None))
    references = by_pair(workers, pairs)
    victim = process_of(workers.policy.actors[0])
    os.kill(victim, signal.SIGSTOP)
    monkeypatch.setattr(workers.policy, "timeout_s", 5.0)
    place = TrainingPlace(0, 1, 0)
    with pytest.raises(RanksLost, match="policy: no sign of life for 5 s"):
        workers.policy.wait(workers.policy.start_step(pairs, references, place, 0))
    workers.restart_policy(workers.config.policy.path, 0)
    assert not Path(f"/proc/{victim}").exists()
    victim = process_of(workers.policy.actors[0])
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(RanksLost, match="no sign of life"):
        list(workers.policy.generate(PolicyWorker.train, [(workers.config.training, place)]).follow())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{victim}").exists():  # ended by a task of its own
        assert time.monotonic() < deadline, "a frozen process was left behind"
        time.sleep(0.1)


@pytest.mark.slow
def test_an_engine_that_dies_or_hangs_in_a_sync(
    workers: OnlineWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.restart_policy(workers.config.policy.path, 0)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    workers.policy.save(checkpoint)
    connect, strikes = workers.weight_sync.connect, [signal.SIGKILL]

    def connect_and_strike() -> None:
        """All engines were alive a moment ago."""
        connect()
        if strikes:
            os.kill(process_of(workers.rollout.actors[0]), strikes.pop())

    monkeypatch.setattr(workers.weight_sync, "connect", connect_and_strike)
    workers.sync(2, str(checkpoint))
    assert not strikes and workers.rollout.call(RolloutWorker.version) == [2, 2]

    strikes.append(signal.SIGSTOP)
    for group in (workers.policy, workers.rollout):
        monkeypatch.setattr(group, "timeout_s", 15.0)
    ranks, restarts = workers.policy.actors, workers.engines.restarts
    workers.sync(3, str(checkpoint))
    assert not strikes and workers.rollout.call(RolloutWorker.version) == [3, 3]
    assert workers.policy.actors == ranks and workers.engines.restarts == restarts + 1
    check_engines(workers, requests(workers, 4, 24), 3)


def pairs_of(asked: list[SamplingRequest], completions: list[Completion]) -> list[PreferenceGroup]:
    prompts = {r.prompt.prompt_id: r.prompt for r in asked}
    both = zip(completions[::2], completions[1::2], strict=True)
    return [PreferenceGroup(prompts[a.prompt_id], (a, b), (1.0, 0.0)) for a, b in both]


def by_pair(workers: OnlineWorkers, pairs: list[PreferenceGroup]) -> list[Any]:
    found = {r.group_id: r for r in workers.reference_logprobs(pairs, lambda _: None)}
    return [found[pair.group_id] for pair in pairs]
