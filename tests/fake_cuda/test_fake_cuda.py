"""What a training or scoring rank does on a GPU, on a fake one: it gets through, and waits for it where it must alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda.device import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

# All that the host may wait for in a step: one read, of the losses, the metrics and the gradient's norm together.
STEP = {"tolist actors/engine.py:Engine.step": 1}
_SCORING = {"tolist actors/scorer.py:score_groups": 3}  # each pass gives its numbers
# Three steps; their measure of what the GPU can is eight products, each waited for before and after.
_CHECK = {"tolist actors/engine.py:Engine.step": 3, "synchronize actors/trainer.py:_finish": 16}
# Eager attention, which alibi needs, gets its mask with a constant of the host, once a pass.
_MASKS = "blocking copy transformers/masking_utils.py:eager_mask"
# Where it waits for something else, or more often.
WAITS: dict[str, dict[str, int]] = {
    "own base": _SCORING,
    "score reference": _SCORING,
    "score reward": _SCORING,
    "shared score reference": _SCORING,
    "shared score reward": _SCORING,
    "padded bloom": STEP | {_MASKS: 2},
    "reward padded": STEP | {_MASKS: 2},
    "gpu_check": _CHECK,
    "gpu_check lora": _CHECK,
}


# What tells of a fault that steps.py injects: a word of the error, or a further wait.
FAULTS = {
    "a CPU tensor in the model": "aten.mul",
    "no enable_gqa": "enable_gqa",
    "a value read": "item",
    "a copy to the host": "to host",
    "a blocking copy": "blocking copy",
    "a boolean mask": "aten.index",
    "another type into a kernel": "aten.mm",
    "no gradient": "input_layernorm.weight",
}


# Two processes: a process has some seconds of imports.
@pytest.mark.parametrize(
    "groups", [("objectives", "packed"), ("padded", "others", "shared", "faults")], ids="+".join
)
def test_a_step_runs_on_a_gpu_and_waits_for_it_once(groups: tuple[str, ...]) -> None:
    found = outcomes(*groups)
    whole = {name: one for name, one in found.items() if name not in FAULTS}
    assert not {name: one["error"] for name, one in whole.items() if one["error"]}
    for name in whole.keys() & {"gpu_check", "gpu_check lora"}:  # its models are made on the GPU
        waits = whole[name]["waits"]
        whole[name]["waits"] = {k: v for k, v in waits.items() if not k.startswith("blocking copy")}
    assert {name: one["waits"] for name, one in whole.items()} == {n: WAITS.get(n, STEP) for n in whole}
    if "faults" in groups:
        assert found.keys() >= FAULTS.keys()
    for name in found.keys() & FAULTS.keys():
        told = found[name]["error"] or " ".join(found[name]["waits"].keys() - STEP.keys())
        assert FAULTS[name] in told, (name, found[name])


def outcomes(*groups: str) -> dict[str, dict[str, Any]]:
    """What became of the groups' cases, in a process of its own: torch takes "cuda" for its accelerator there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.fake_cuda.steps", *groups]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return {one["case"]: one for one in found}
