"""`ultramed-rl submit` and `jobs` against a Ray cluster that was started as people start one."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from tests.nodes import ANY_PORTS
from ultramed_rl.cli import app
from ultramed_rl.cluster.jobs import JobServer, Submission

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass(frozen=True)
class Head:
    """A head's Ray address and its dashboard's."""

    ray: str
    http: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with ports of its own, beside whatever else runs here; it ends with its process."""
    gcs, dashboard, client = free_ports(3)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:  # short: sockets' paths have a limit
        command = [
            *("nice", "-n", "10", str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
            *(*ANY_PORTS, f"--ray-client-server-port={client}"),
            *("--object-store-memory=200000000", f"--temp-dir={temporary}", "--disable-usage-stats"),
        ]
        log = Path(temporary) / "start.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"DASHBOARD_METRIC_PORT": "0", "AUTOSCALER_METRIC_PORT": "0", **token}
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        try:
            address = Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}")
            # Whoever has the token has it in the environment; RAY_AUTH_MODE is for Ray's own commands.
            with pytest.MonkeyPatch.context() as patch:
                for name, value in token.items():
                    patch.setenv(name, value)
                wait_until_up(address.http, process, log)
                yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180  # a busy machine is no failure
    while True:
        try:
            JobServer(address)
            return
        except (RuntimeError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def command(*arguments: str, **variables: str) -> Result:
    # RAY_ADDRESS leads nowhere: --address must win over it.
    return CliRunner().invoke(app, list(arguments), env={"RAY_ADDRESS": "nowhere:1", **variables})


def data_stage(root: Path) -> Path:
    """A config whose run takes a second and no model: answers to one question, judged by rules."""
    answers = [
        {"model": "a", "text": "It is is is is is is is"},
        {"model": "b", "text": "It lowers pressure."},
    ]
    row = {
        "id": "Set,0",
        "type": "Open-End",
        "conversations": [{"from": "human", "value": "What does the drug do?"}],
        "candidates": answers,
    }
    (root / "in.jsonl").write_text(json.dumps(row) + "\n")
    config = {
        "type": "data",
        "run": {"name": "judged"},
        "input": ["in.jsonl"],
        "step": {"type": "rules"},
        "cluster": {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8},
        "tracking": {"wandb": "disabled"},
    }
    file = root / "judged.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_the_same_line_starts_a_run_and_takes_it_up(head: Head, tmp_path: Path) -> None:
    file, runs = data_stage(tmp_path), tmp_path / "runs"
    line = ["submit", str(file), f"run.directory={runs}", "--working-dir", str(tmp_path)]
    line += ["--address", head.http, "--env", "HF_TOKEN"]
    first = command(*line, HF_TOKEN="hf-314159")
    assert first.exit_code == 0 and "INFO" not in first.stderr, first.stdout + first.stderr
    assert "submitted as Ray job judged\n" in first.stdout and "HF_TOKEN" in first.stdout
    assert "Ray job judged: succeeded" in first.stdout and "314159" not in first.stdout + first.stderr
    made = (runs / "judged" / "records" / "rows.jsonl").read_bytes()
    again = command(*line, "--json", HF_TOKEN="hf-314159")
    told = [json.loads(text) for text in again.stdout.splitlines()]
    assert again.exit_code == 0 and told[1]["id"] == "judged-2", again.stderr
    assert (runs / "judged" / "records" / "rows.jsonl").read_bytes() == made


def test_a_long_job_is_followed_left_looked_at_and_stopped(head: Head) -> None:
    server = JobServer(head.http)
    text = "import os, time; print('begun', os.environ['MARK'], flush=True); time.sleep(300)"
    job = Submission("long", (sys.executable, "-c", text), "{}", {"env_vars": {"MARK": "two  words"}})
    assert server.submit(job) == "long"
    with pytest.raises(RuntimeError, match="Ray job long: still (pending|running)"):
        server.submit(job)

    following = subprocess.Popen(
        [str(BIN / "ultramed-rl"), "jobs", "logs", "long", "--follow", "--address", head.http],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert "begun two  words\n" in iter(following.stdout.readline, "")
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=60)
    assert following.returncode == 130
    assert f"ultramed-rl jobs logs long --follow --address {head.http}" in said
    assert f"ultramed-rl jobs stop long --address {head.http}" in said

    status = command("jobs", "status", "long", "--address", head.http)
    assert status.exit_code == 0 and "Ray job long: running" in status.stdout
    stopped = command("jobs", "stop", "long", "--address", head.http)
    assert stopped.exit_code == 0 and "Ray job long: stopped" in stopped.stdout
    listed = command("jobs", "list", "--address", head.http, "--json")
    jobs = {
        event["identity"]: event["status"]
        for event in map(json.loads, listed.stdout.splitlines())
        if event["event"] == "job"
    }
    assert jobs["long"] == "stopped"
    again = command("jobs", "logs", "long", "--follow", "--address", head.http)
    assert again.exit_code == 1 and again.stdout.endswith("begun two  words\n")
    assert "Ray job long: stopped" in again.stderr
    absent = command("jobs", "stop", "nobody", "--address", head.http)
    assert absent.exit_code == 1 and "Ray job nobody: none of this id" in absent.stderr


def test_a_ray_job_of_kuberay_whose_config_is_wrong_stops_itself(head: Head, tmp_path: Path) -> None:
    """KubeRay makes a new cluster for a job that failed, and none for one that was stopped."""
    spec = yaml.safe_load((Path(__file__).parents[2] / "launch" / "kuberay-rayjob.yaml").read_text())["spec"]
    (tmp_path / "wrong.yaml").write_text("run: {rounds: none}\n")
    line = spec["entrypoint"].replace("/shared/configs/llama3-70b-4node.yaml", str(tmp_path / "wrong.yaml"))
    variables = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    server = JobServer(head.http)
    assert server.submit(Submission(spec["jobId"], tuple(shlex.split(line)), "{}", {"env_vars": variables}))
    deadline = time.monotonic() + 120
    while (status := server.state(spec["jobId"]).status) in ("pending", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert status == "stopped"


def test_the_token_comes_from_where_ray_looks_for_it(head: Head, tmp_path: Path) -> None:
    listing = ["jobs", "list", "--address", head.http]
    token = os.environ["RAY_AUTH_TOKEN"]
    nowhere = {"RAY_AUTH_TOKEN": "", "HOME": str(tmp_path)}
    for variables in (nowhere, nowhere | {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = command(*listing, **variables)
        assert refused.exit_code == 1 and "RAY_AUTH_TOKEN" in refused.stderr, refused.stderr
    (tmp_path / ".ray").mkdir()
    for file in (tmp_path / "mine", tmp_path / ".ray" / "auth_token"):
        file.write_text(f"{token}\n")
        assert command(*listing, **nowhere, RAY_AUTH_TOKEN_PATH=str(file)).exit_code == 0
    assert command(*listing, **nowhere, RAY_AUTH_TOKEN_PATH="").exit_code == 0


def test_ray_status_has_a_line_for_a_node_as_the_slurm_script_reads_it(head: Head) -> None:
    deadline = time.monotonic() + 60
    count = f"{BIN / 'ray'} status --address={head.ray} 2>/dev/null | grep -cE '^ *[0-9]+ node_'"
    while (
        found := subprocess.run(["bash", "-c", count], capture_output=True, text=True).stdout.strip()
    ) != "1":
        assert time.monotonic() < deadline, found
        time.sleep(1)
