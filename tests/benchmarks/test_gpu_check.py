"""The GPU check where there is no GPU: it runs to its end and says of each part why it was left out; and its parts on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from benchmarks import gpu_check, gpu_parts
from benchmarks.exactness import FAMILIES, Distance, compare
from benchmarks.gpu_check import PARTS, run, why_not
from benchmarks.gpu_parts import SHAPES, attention, planned, score, train
from tests.benchmarks.shapes import TINY
from tests.unit.models.test_kernels import torch_varlen, varlen
from ultramed_rl.config.cluster import ATTENTION
from ultramed_rl.config.models import LoRA
from ultramed_rl.learning.packing import AnswerGroup

ROOT = Path(__file__).parents[2]
NO_GPU = {"gpus": [], "versions": dict.fromkeys(("torch", "transformers", "pydantic", "peft"), "1")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: launch/gpu_check.sh measures here")
def test_without_a_gpu_every_part_says_why_it_was_left_out() -> None:
    command = ["bash", "launch/gpu_check.sh", "--minutes", "1"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    line = json.loads(last)
    assert line["parts"].keys() == PARTS.keys() and line["gpus"] == [] and "torch" in line["versions"]
    for name, result in line["parts"].items():
        assert "GPU" in result["skipped"], name
        assert any(row.startswith(name) and result["skipped"] in row for row in table)


def test_a_part_wants_its_gpus_and_packages() -> None:
    alone = NO_GPU | {"gpus": [{"name": "H100", "gib": 80}]}
    assert why_not(PARTS["exactness"], alone) is None
    assert "2" in (why_not(PARTS["zero-3 1.5B"], alone) or "")
    assert "vllm" in (why_not(PARTS["rollout 1.5B"], alone) or "")
    assert "torch" in (why_not(PARTS["exactness"], {"gpus": [], "versions": {}}) or "")


def test_each_part_calls_what_there_is() -> None:
    for part in PARTS.values():
        function, *arguments = part.call
        assert callable(getattr(gpu_parts, function))
        sizes = [a for a in arguments if isinstance(a, str) and a.endswith("B")]
        assert all(size in SHAPES for size in sizes)


def test_a_part_that_hangs_fails_or_does_not_fit_is_that_part_alone() -> None:
    def python(code: str, seconds: float = 30.0) -> gpu_check.Result:
        return run([sys.executable, "-c", code], seconds)

    assert python("print('words'); print('{\"figures\": {\"a\": 1}}')") == {"figures": {"a": 1}}
    assert "0 s" in python("import time; time.sleep(60)", 0.4)["skipped"]
    assert python("raise ValueError('seven')") == {"failed": "ValueError: seven"}
    full = "class OutOfMemoryError(Exception): pass\nraise OutOfMemoryError('20 GiB')"
    assert "20 GiB" in python(full)["skipped"]


def test_what_is_left_out_and_what_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(
        gpu_check, "run", lambda command, seconds: asked.append((command[-3], seconds)) or {"figures": {}}
    )
    facts = NO_GPU | {"gpus": [{"name": "H100", "gib": 80}]}
    options = Namespace(minutes=10.0, skip=["step 8B"], only=[])
    found = dict(gpu_check.results(facts, options))
    assert found["step 8B"].keys() == {"skipped"} and "step 8B" not in dict(asked)
    assert dict(asked)["exactness"] == pytest.approx(90.0)
    options = Namespace(minutes=0.1, skip=[], only=["exactness"])
    assert "0.1" in dict(gpu_check.results(facts, options))["exactness"]["skipped"]


# -- the parts themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_on_the_cpu_are_exact(name: str) -> None:
    kind, changes = FAMILIES[name]
    small = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128, **changes}
    groups = [AnswerGroup(range(5, 31), [range(7, 30), range(50, 55)]), AnswerGroup([9], [range(3, 20)])]
    for precision in (torch.float32, torch.bfloat16):
        for what, distance in compare(kind, small, "cpu", precision, groups).items():
            assert distance.is_rounding, (what, precision, distance)
            assert (distance.eager == 0) == (precision == torch.float32)
    assert not Distance(packed=0.02, eager=0.01).is_rounding


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=4)])
def test_the_step_and_the_scoring_of_a_check(lora: LoRA | None) -> None:
    try:
        figures = train(TINY, "cpu", 0.0, lora=lora, most=4)
    finally:
        dist.destroy_process_group()  # other tests of this process make their own
    assert figures["steps"] >= 1 and figures["tokens/s"] > 0 and figures["MFU"] > 0
    assert score("tiny", 0.0, "cpu", {"tiny": TINY})["tokens/s"] > 0


def test_the_attention_part_times_what_is_installed_and_holds_it_to_torchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def install(factor: float) -> None:
        fake = ModuleType("flash_attn")
        vars(fake)["flash_attn_varlen_func"] = lambda *given, **how: factor * varlen(*given, **how)
        monkeypatch.setitem(sys.modules, "flash_attn", fake)

    monkeypatch.setenv(ATTENTION, "torch")  # which is put back
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", torch_varlen)
    alone = attention("tiny", 0.0, "cpu", {"tiny": TINY})
    assert alone.keys() == {"torch, TFLOP/s", "flash_attn", "flash_attn_3"}
    assert float(alone["torch, TFLOP/s"]) > 0 and alone["flash_attn"] == "not installed"
    install(1.0)
    both = attention("tiny", 0.0, "cpu", {"tiny": TINY})
    assert float(both["flash_attn, TFLOP/s"]) > 0 and both["flash_attn_3"] == "not installed"
    (fastest,) = (value for name, value in both.items() if name.startswith("fastest: cluster.attention="))
    assert float(fastest) >= 1.0
    install(1.1)
    with pytest.raises(AssertionError, match=r"flash_attn is 0\.1"):
        attention("tiny", 0.0, "cpu", {"tiny": TINY})


def test_the_plans_of_the_shapes() -> None:
    """By hand: 18 bytes a parameter (weights 2, gradients 4, masters and Adam 12), or 2 and the adapters; then activations,
    as many for both: an input a layer, a live layer, logits."""
    shape = SHAPES["8B"]
    parameters = 8_030_261_248
    activations = 16384 * (32 * 4096 + 12 * 4096 + 4 * 14336) * 2 + 2 * (2**27 // 128256) * 128256 * 4
    assert planned(shape, None) == 18 * parameters + activations
    adapters = 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert planned(shape, LoRA(rank=16, alpha=32)) == 2 * parameters + 18 * adapters + activations
