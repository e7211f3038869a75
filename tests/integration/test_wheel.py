"""The wheel holds all that the package reads: presets, launch files and templates are found without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_wheel_in_a_fresh_environment_plans_a_preset_by_its_name(tmp_path: Path) -> None:
    """The environment has the wheel and, behind it, this one's packages."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel_options = ["--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    source = tmp_path / "source"
    run(
        "git", "clone", "--quiet", "--shared", ROOT, source, cwd=tmp_path
    )  # without what a build leaves in the tree
    run(*pip, "wheel", source, *wheel_options, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    tracked = run("git", "ls-files", "configs", "launch", "ultramed_rl", cwd=source).split()
    wanted = {
        name if name.startswith("ultramed_rl/") else f"ultramed_rl/{name}"
        for name in tracked
        if not (source / name).is_symlink()
    }
    assert wanted <= set(ZipFile(wheel).namelist())

    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=tmp_path)
    python = fresh / "bin" / "python"
    (site,) = fresh.glob("lib/python3*/site-packages")
    run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    where = run(python, "-c", "import ultramed_rl; print(ultramed_rl.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(fresh)
    planned = run(fresh / "bin" / "ultramed-rl", "plan", "configs/qwen2.5-0.5b-1gpu.yaml", cwd=tmp_path)
    assert "a round on H100" in planned
    run(fresh / "bin" / "ultramed-rl", "plan", "configs/recipes/quickstart.yaml", cwd=tmp_path)
