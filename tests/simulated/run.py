"""A run of the real `online.run` over simulated actors, and what it comes to."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from tests.simulated.disk import Disk, Killed, watched_disk
from tests.simulated.engine import SimulatedEngine
from tests.simulated.outcome import Outcome, read_outcome
from tests.simulated.ray import Call, SimulatedRay
from tests.simulated.scorers import SimulatedReference, SimulatedReward
from tests.simulated.trainers import SimulatedRewardTrainer, SimulatedTrainer
from tests.tiny import tiny_run
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.scorer import ReferenceWorker, RewardWorker
from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.cluster import connection, group, transport
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.online import run as online_run
from ultramed_rl.tracking import heartbeat

WORKERS: dict[type, type] = {
    RolloutWorker: SimulatedEngine,
    PolicyWorker: SimulatedTrainer,
    RewardTrainWorker: SimulatedRewardTrainer,
    ReferenceWorker: SimulatedReference,
    RewardWorker: SimulatedReward,
}
FAULTS = {"hang_s": 20.0, "start_s": 30.0, "attempts": 4, "restarts": 6}


class _Group:
    """A placement group whose bundles are there at once."""

    bundle_count = 1

    def wait(self, timeout: float) -> bool:
        return True


@contextmanager
def simulated(ray: SimulatedRay) -> Iterator[None]:
    """Within, cluster/ finds this Ray in the place of the real one."""
    with ExitStack() as stack:
        for module in (connection, group, transport):
            stack.enter_context(mock.patch.object(module, "ray", ray))
        stack.enter_context(mock.patch.object(transport, "time", ray))
        stack.enter_context(mock.patch.object(group, "_end_process", mock.MagicMock()))
        stack.enter_context(mock.patch.object(connection, "placement_group", lambda *_, **__: _Group()))
        stack.enter_context(mock.patch.object(connection, "remove_placement_group", lambda _: None))
        # Models are files that no one changes: each is looked at once.
        readers = (
            "online.run.chat_tokenizer",
            "models.reading.ChatTokenizer",
            "workers.judges.ChatTokenizer",
        )
        for name in [f"ultramed_rl.{reader}" for reader in readers]:
            stack.enter_context(mock.patch(name, _tokenizer))
        for name, look in LOOKS.items():
            stack.enter_context(mock.patch(name, look))
        stack.enter_context(mock.patch("os.fsync"))  # a driver is killed here, no machine
        stack.enter_context(mock.patch.object(heartbeat, "_EVERY_S", 3600.0))
        yield


def _once(look: Callable[..., Any]) -> Callable[..., Any]:
    """The same, called once with the same arguments."""
    known: dict[str, Any] = {}

    def found(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, named))
        if key not in known:
            known[key] = look(*arguments, **named)
        return known[key]

    return found


LOOKS = {
    name: _once(pkgutil.resolve_name(name))
    for name in (
        "ultramed_rl.models.checks.check_policy_model",
        "ultramed_rl.models.checks.check_sampled_model",
        "ultramed_rl.models.checks.check_reward_model",
        "ultramed_rl.workers.scorers.check_reward_model",
        "ultramed_rl.cluster.memory.read_architecture",
    )
}


def _tokenizer(model: Any, **_: Any) -> ChatTokenizer:
    return _load_tokenizer(model if isinstance(model, str) else model.path)


@cache
def _load_tokenizer(path: str) -> ChatTokenizer:
    return ChatTokenizer(path)


@dataclass(frozen=True)
class Ended:
    """How an attempt at a run ended."""

    ray: SimulatedRay
    disk: Disk
    killed: bool


@dataclass(frozen=True)
class Simulation:
    """A config to run over simulated workers, in a folder that outlives it.

    Attributes:
        models: where `policy/`, `reward/` and `questions.jsonl` are.
        fate: what befalls a worker's call.
        refuse: the error with which engines refuse a prompt, or "".
    """

    models: Path
    path: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    fate: Callable[[Call], str] = lambda call: ""
    refuse: Callable[[str], str] = lambda key: ""

    @property
    def config(self) -> RunConfig:
        settings = tiny_run(
            self.models, **{"run__directory": str(self.path), "cluster__faults": FAULTS, **self.changes}
        )
        return parse_config({section: keys for section, keys in settings.items() if keys is not None})

    def run(self, *, resume: bool = False, kill_at: int | None = None) -> Ended:
        """Until its end, or until the driver is killed at a change of the disk.

        Raises:
            Exception: what ended the run.
        """
        ray = SimulatedRay(WORKERS, self.fate, self.refuse)
        killed = False
        with watched_disk(self.path, kill_at) as disk, simulated(ray):
            try:
                online_run.run(self.config, resume=resume)
            except Killed:
                killed = True
        return Ended(ray, disk, killed)

    def outcome(self) -> Outcome:
        return read_outcome(self.config.run.folder)

    def but(self, **changes: Any) -> Simulation:
        """The same with other attributes."""
        return replace(self, **changes)
