"""What the host's Adam lacks is found by files, as DeepSpeed's builder would find it a minute later."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ultramed_rl.cluster import host_adam
from ultramed_rl.cluster.host_adam import find_missing, host_adam_problem, torch_cuda
from ultramed_rl.config.cluster import Devices, StageCluster, TrainerGroup


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a compiler and ninja, and no toolkit."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX", "DS_SKIP_CUDA_CHECK", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(host_adam, "_USUAL", str(tmp_path / "cuda"))
    for name in ("c++", "ninja"):
        program(tmp_path / "bin" / name, "")
    return tmp_path


def program(file: Path, says: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!{sys.executable}\nprint({says!r})\n")
    file.chmod(0o755)


def toolkit(folder: Path, version: str) -> Path:
    program(folder / "bin" / "nvcc", f"Cuda compilation tools, release {version}, V{version}.37")
    return folder


@pytest.mark.parametrize(
    ("toolkits", "wanted", "lacks"),
    [("13.0", "13.0", False), ("13.5", "13.0", True), ("12.4", "12.8", False), ("12.8", "13.0", True)],
)
def test_a_toolkit_is_of_torchs_version(
    tools: Path, monkeypatch: pytest.MonkeyPatch, toolkits: str, wanted: str, lacks: bool
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tools / "cuda", toolkits)))
    found = find_missing(wanted)
    assert bool(found) == lacks and all(version in found for version in (toolkits, wanted) if lacks)
    monkeypatch.setenv("DS_SKIP_CUDA_CHECK", "1")
    assert not find_missing(wanted)


def test_a_toolkit_is_where_torch_looks_for_it(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nvcc" in find_missing("13.0")
    toolkit(tools, "13.0")  # on the PATH
    assert not find_missing("13.0")
    monkeypatch.setenv("CUDA_PATH", str(tools / "elsewhere"))
    assert str(tools / "elsewhere") in find_missing("13.0")


@pytest.mark.parametrize("name", ["c++", "ninja"])
def test_what_compiles_is_named(tools: Path, name: str) -> None:
    toolkit(tools, "13.0")
    (tools / "bin" / name).unlink()
    assert name in find_missing("13.0")


def test_only_a_machine_that_computes_is_asked(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools / "version").touch()
    monkeypatch.setattr(host_adam, "_DRIVER", str(tools / "version"))
    monkeypatch.setattr(host_adam, "torch_cuda", lambda: "13.0")
    offloads = TrainerGroup(offload_optimizer=True)
    assert "CUDA_HOME" in host_adam_problem(StageCluster(trainer=offloads))
    for other in (StageCluster(), StageCluster(trainer=offloads, nodes=2), Devices(), None):
        assert not host_adam_problem(other)
    assert not host_adam_problem(StageCluster(trainer=offloads, address="ray://head:10001"))
    monkeypatch.setattr(host_adam, "_DRIVER", str(tools / "none"))
    assert not host_adam_problem(StageCluster(trainer=offloads))


@pytest.mark.parametrize(("line", "version"), [("'13.0'", "13.0"), ("None", None), ("'12.8.1'", "12.8")])
def test_torchs_cuda_is_read_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, version: str | None
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2'\ncuda: Optional[str] = {line}\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert torch_cuda() == version
