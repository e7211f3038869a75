"""SIGTERM in the midst of a run: it says so, and goes on to the same end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from tests.simulated.cases import Cases
from tests.simulated.outcome import check_same
from tests.simulated.ray import Call
from ultramed_rl.actors.work import Worker
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.tracking.heartbeat import Terminated


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_run_that_is_terminated_goes_on_to_the_same_end(known: Cases, tmp_path: Path, share: float) -> None:
    expected, whole = known.unbroken("streamed")
    at = int(share * len(whole.ray.begun))

    def fate(call: Call) -> str:
        if call.number == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return ""

    simulation = known.at("streamed", tmp_path)
    with pytest.raises(Terminated):
        simulation.but(fate=fate).run()
    status = json.loads((simulation.config.run.folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    simulation.run(resume=True)
    check_same(simulation.outcome(), expected, f"SIGTERM at call {at}")


@pytest.mark.parametrize(
    ("error", "asked"),
    [(RuntimeError(), [Worker.reload, Worker.offload]), (Terminated(), [Worker.reload])],
)
def test_an_interruption_waits_for_no_actor_in_the_midst_of_a_step(
    error: BaseException, asked: list[Callable[[Worker], None]]
) -> None:
    """After another error others need the devices."""
    calls: list[Callable[[Worker], None]] = []
    group = WorkerGroup("policy", lambda rank: None, 0, takes_turns=True)
    with mock.patch.object(group, "call_living", calls.append), pytest.raises(type(error)), group.on_device():
        raise error
    assert calls == asked
