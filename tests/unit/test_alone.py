"""The learning core runs with torch and transformers alone: a rank takes a step where nothing else can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Of the project's dependencies those that neither torch nor transformers asks for, but pydantic.
ABSENT = (
    "ray", "vllm", "deepspeed", "aiohttp", "datasets", "fastapi", "gguf", "jsonschema", "peft", "plotly", "psutil", "pyarrow",
    "rich", "scipy", "sentence_transformers", "sklearn", "tenacity", "typer", "uvicorn", "wandb",
)  # fmt: skip
STEP = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
from tests.benchmarks.shapes import TINY
from benchmarks.gpu_parts import score, train
assert train(TINY, "cpu", 0.0, most=3)["tokens/s"] > 0
assert score("tiny", 0.0, "cpu", {"tiny": TINY})["tokens/s"] > 0
"""


def test_a_step_without_ray_vllm_and_deepspeed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEP, *ABSENT],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
