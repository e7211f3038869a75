"""The data factory's engines, simulated: every chat is answered once, whatever befalls an engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simulated.ray import Call, SimulatedRay
from tests.simulated.run import FAULTS, WORKERS, simulated
from tests.tiny import make_policy
from ultramed_rl.actors.work import WorkBatch
from ultramed_rl.config import EngineConfig, parse_config
from ultramed_rl.config.factory_steps import Asking
from ultramed_rl.data.factory.runner import StepResult, run_step
from ultramed_rl.data.factory.step import Ask, End, Keep, Row, user
from ultramed_rl.store.record_log import RecordLog
from ultramed_rl.workers.chats import EngineGenerator

RECORDS = 60


@dataclass(frozen=True)
class Talks:
    """Asks of record n one, two or three questions."""

    async def __call__(self, row: Row, ask: Ask) -> End:
        config = Asking(max_tokens=12, temperature=1.0, top_p=1.0)
        replies = [await ask(config, [user(f"{row['id']}?")]) for _ in range(1 + row["n"] % 3)]
        return Keep(tuple({"id": row["id"], "text": reply.text} for reply in replies))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("model") / "policy")


def carry(model: Path, folder: Path, ray: SimulatedRay, workers: int, restarts: int = 6) -> StepResult:
    rollout = {"engines": 2, "max_num_seqs": 4, "kv_cache_gib": 0.1, "enforce_eager": True}
    devices = {"device": "cpu", "devices_per_node": 2, "device_memory_gib": 8}
    faults = {**FAULTS, "restarts": restarts}
    settings = {
        "policy": {"path": str(model), "max_length": 128, "precision": "float32"},
        "cluster": {**devices, "rollout": rollout, "faults": faults},
    }
    rows = ({"id": f"r{n}", "n": n} for n in range(RECORDS))
    with (
        simulated(ray),
        EngineGenerator(parse_config(settings, kind=EngineConfig)) as generator,
        RecordLog(folder) as log,
    ):
        result = run_step(Talks(), rows, generator, log, workers=workers)
        log.finish()
    return result


def asked(ray: SimulatedRay) -> Counter[str]:
    """How often each request was given to an engine."""
    batches = (argument for call in ray.begun or () for argument in call.arguments)
    return Counter(key for batch in batches if isinstance(batch, WorkBatch) for key, _ in batch.requests)


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_every_chat_is_answered_once_and_the_same_however_many_are_asked_at_once(
    model: Path, tmp_path: Path, workers: int
) -> None:
    ray, alone = SimulatedRay(WORKERS), SimulatedRay(WORKERS)
    result = carry(model, tmp_path / "some", ray, workers)
    assert not result.stopped and result.tally.done == RECORDS and result.tally.kept > RECORDS / 2
    assert result.tally.failures.keys() <= {"unanswered_empty", "unanswered_truncated"}
    assert set(asked(ray).values()) == {1} and asked(ray).total() == result.usage.requests
    carry(model, tmp_path / "alone", alone, 1)
    for name in ("rows.jsonl", "failures.jsonl"):
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert workers == 1 or ray.time < alone.time


def test_an_engine_that_dies_is_replaced_and_only_what_it_held_is_asked_again(
    model: Path, tmp_path: Path
) -> None:
    died = []

    def fate(call: Call) -> str:
        if call.method == "work" and call.rank == 1 and not died:
            died.append(call)
            return "dies late"
        return ""

    ray = SimulatedRay(WORKERS, fate)
    carry(model, tmp_path / "broken", ray, 20)
    carry(model, tmp_path / "whole", SimulatedRay(WORKERS), 20)
    assert died
    assert (tmp_path / "broken" / "rows.jsonl").read_bytes() == (
        tmp_path / "whole" / "rows.jsonl"
    ).read_bytes()


def test_a_run_without_engines_left_ends_with_their_error(model: Path, tmp_path: Path) -> None:
    fate = lambda call: "dies" if call.method == "work" else ""
    with pytest.raises(RuntimeError, match=r"cluster\.faults\.restarts=1"):
        carry(model, tmp_path, SimulatedRay(WORKERS, fate), 20, restarts=1)
