"""The package's layering, and what may load what."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "ultramed_rl"
LAYERS = [
    {"cli"},
    {"recipes"},
    {"online", "stages"},
    {"workers"},
    {"cluster"},
    {"scheduling"},
    {"rewards"},
    {"actors"},
    {"report"},
    {"evaluation"},
    {"models", "data"},
    {"learning", "tracking", "http"},
    {"store"},
    {"config", "records", "token_ids", "thoughts"},
    {"kinds"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@cache
def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def source_files() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem != "__init__")


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports_of(path):
        if name.startswith("ultramed_rl."):
            other = name.split(".")[1]
            assert LEVEL[other] > LEVEL[own] or other == own, f"{own} imports {name}"


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_and_vllm_stay_in_cluster_and_actors(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    heavy = {name.split(".")[0] for name in imports_of(path)} & {"ray", "vllm"}
    assert not heavy or own in {"cluster", "actors"}, f"{own} imports {heavy}"


@pytest.mark.parametrize(
    "module", ["ultramed_rl", "ultramed_rl.config", "ultramed_rl.cli", "ultramed_rl.cluster.plan"]
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; print(sorted(set(sys.modules) & {{'torch', 'ray', 'vllm', 'transformers'}}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
