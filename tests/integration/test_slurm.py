"""`launch/slurm.sh` on a real SLURM: two nodes on this machine, a controller and munge, started by the test.

The run is a stand-in: it joins the Ray that the script made, notes what it finds, and brings about what SLURM is to answer. It wants
root, and Debian's packages slurm-wlm and munge.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
REASON = f"wants slurm-wlm and munge ({', '.join(MISSING)} missing)" if MISSING else "wants root"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=REASON)]

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MinJobAge=3600
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=8 RealMemory=16000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=8 RealMemory=16000
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""

# Does what PLAN says of this attempt, each a word; notes what it finds. Exit code 1 where its Ray is gone.
STAND_IN = """#!{python}
import json, os, sys, time
from pathlib import Path
import psutil, ray

job, attempt = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
folder = f"/tmp/ray-{{job}}"
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)

def alive():
    return [node for node in ray.nodes() if node["Alive"]]

def processes(*words):
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words):
            found.append(process)
    return found

def note(what):
    resources = [sorted((k, v) for k, v in n["Resources"].items() if ":" not in k) for n in alive()]
    line = {{"what": what, "attempt": attempt, "words": sys.argv[1:], "address": os.environ["RAY_ADDRESS"], "resources": resources}}
    with open(Path(os.environ["NOTES"]) / f"{{job}}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")

note("begun")
for word in os.environ["PLAN"].split("|")[attempt].split():
    if word == "lose-worker":
        before = {{node["NodeID"] for node in alive()}}
        (raylet,) = [p for p in processes("raylet/raylet", folder) if "--head" not in p.cmdline()]
        raylet.kill()
        while len(alive()) != 2 or {{node["NodeID"] for node in alive()}} == before:  # the lost one is noticed late
            time.sleep(1)
    elif word == "lose-head":
        (gcs,) = processes("gcs_server", folder)
        gcs.kill()
        while processes("keep_ray", folder + " 0"):
            time.sleep(0.5)
        os._exit(1)
    elif word == "wait":
        time.sleep(600)
    elif word == "together":  # until another job of the same plan has begun
        while len(list(Path(os.environ["NOTES"]).glob("*.jsonl"))) < 2:
            time.sleep(0.5)
    elif word == "fail":
        sys.exit(1)
    note(word)
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Slurm:
    """A cluster of two nodes, `n1` and `n2`, which are this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.notes = root, root / "notes"
        for name in ("state", "notes", "bin"):
            (root / name).mkdir()
        ports = {name: free_port() for name in ("port", "n1", "n2")}
        (root / "slurm.conf").write_text(CONF.format(root=root, host=socket.gethostname(), **ports))
        (root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (root / "munge.key").write_bytes(os.urandom(1024))
        (root / "munge.key").chmod(0o400)
        programs = Path(sys.executable).parent
        (root / "bin" / "ray").symlink_to(programs / "ray")
        (root / "bin" / "ultramed-rl").write_text(STAND_IN.format(python=sys.executable))
        (root / "bin" / "ultramed-rl").chmod(0o755)
        path = f"{os.environ['PATH']}:/usr/sbin"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "RAY_"))}
        self.environment = {**kept, "PATH": path, "SLURM_CONF": str(root / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        names = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{option}={self.root}/munge.{name}" for option, name in names.items()]
        self._daemon("munged", "--foreground", "--force", *options)
        wait_until(lambda: (self.root / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        wait_until(
            lambda: self.call("sinfo", "-h", "-o", "%D %t", "-p", "low").strip() == "2 idle", "two idle nodes"
        )

    def _daemon(self, *command: str) -> None:
        log = (self.root / f"{command[0]}.out").open("ab")
        self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def stop(self) -> None:
        if len(self.daemons) > 1:
            self.call("scancel", "--user=root", "--full")
            wait_until(lambda: not self.call("squeue", "-h"), "no jobs")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(60)

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=self.root)
        return done.stdout if done.returncode == 0 else f"{done.returncode}: {done.stderr}"

    def submit(self, plan: str, *options: str) -> str:
        """The id of a job whose attempts do what the parts of `plan` say."""
        given = {"NOTES": self.notes, "PLAN": plan, "ULTRAMED_RL_VENV": self.root, "ULTRAMED_RL_WAIT_S": 300}
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in given.items())])
        sizes = ["--gpus-per-node=0", "--cpus-per-task=2", "--mem=2000", "--time=30"]
        script = [str(ROOT / "launch" / "slurm.sh"), "my.yaml", "run.directory=/shared/runs"]
        job = self.call("sbatch", "--parsable", f"--export={exported}", *sizes, *options, *script).strip()
        assert job.isdigit(), job
        return job

    def noted(self, job: str) -> list[dict[str, Any]]:
        file = self.notes / f"{job}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def log(self, job: str) -> str:
        file = self.root / f"ultramed_rl-{job}.log"
        return file.read_text() if file.exists() else self.call("scontrol", "show", "job", job)

    def end(self, job: str) -> str:
        """The state in which a job ended; nothing of it is left on the nodes then, and its token is gone."""

        def state() -> str:
            words = self.call("scontrol", "show", "job", job).split()
            return next((word[9:] for word in words if word.startswith("JobState=")), "not told")

        ended = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
        wait_until(lambda: state() in ended, job, lambda: self.log(job))
        wait_until(lambda: not Path(f"/tmp/ray-{job}").exists(), "a clean /tmp", lambda: self.log(job))
        assert not list(self.root.glob(f".ray-token-{job}"))
        return state()


def wait_until(done: Callable[[], bool], what: str, why: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + 500
    while not done():
        assert time.monotonic() < deadline, f"{what}: {why()}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def whats(notes: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(note["attempt"], note["what"]) for note in notes]


def test_a_raylet_is_started_again_and_a_job_whose_head_is_lost_goes_on(slurm: Slurm) -> None:
    job = slurm.submit("lose-worker lose-head|", "--nodes=2")
    assert slurm.end(job) == "COMPLETED", slurm.log(job)
    notes = slurm.noted(job)
    assert whats(notes) == [(0, "begun"), (0, "lose-worker"), (1, "begun")], slurm.log(job)
    assert notes[0]["words"] == ["run", "my.yaml", "run.directory=/shared/runs", "--resume"]
    for note in notes:
        for node in map(dict, note["resources"]):
            assert node["CPU"] == 2 and node["memory"] + node["object_store_memory"] == pytest.approx(
                2000 * 2**20, rel=0.01
            )
        assert len(note["resources"]) == 2


def test_two_jobs_share_a_node(slurm: Slurm) -> None:
    for old in slurm.notes.iterdir():
        old.unlink()
    jobs = [slurm.submit("together", "--nodes=1", "--nodelist=n1")]
    wait_until(
        lambda: bool(slurm.noted(jobs[0])), "the run", lambda: slurm.log(jobs[0])
    )  # two cores start one Ray in 30 s
    jobs.append(slurm.submit("together", "--nodes=1", "--nodelist=n1"))
    for job in jobs:
        assert slurm.end(job) == "COMPLETED", slurm.log(job)
    notes = [slurm.noted(job) for job in jobs]
    assert [whats(found) for found in notes] == [[(0, "begun"), (0, "together")]] * 2
    assert all(len(found[-1]["resources"]) == 1 for found in notes), "each has a Ray of its own"
    assert notes[0][0]["address"] != notes[1][0]["address"]


def test_a_job_that_is_preempted_goes_on_when_its_nodes_are_free(slurm: Slurm) -> None:
    job = slurm.submit("wait|", "--nodes=1")
    wait_until(lambda: bool(slurm.noted(job)), "the run", lambda: slurm.log(job))
    first = ["--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8", "--wrap=sleep 1"]
    slurm.call("sbatch", *first, f"--output={slurm.root}/first.log")
    assert slurm.end(job) == "COMPLETED", slurm.log(job)
    assert whats(slurm.noted(job)) == [(0, "begun"), (1, "begun")]


def test_a_job_close_to_its_time_limit_is_queued_again(slurm: Slurm) -> None:
    """SLURM looks at limits once a minute."""
    job = slurm.submit("wait|", "--nodes=1", "--time=4", "--signal=B:USR1@120")
    assert slurm.end(job) == "COMPLETED", slurm.log(job)
    assert whats(slurm.noted(job)) == [(0, "begun"), (1, "begun")]
    assert "close to the time limit" in slurm.log(job)


def test_a_run_that_fails_by_itself_is_not_queued_again(slurm: Slurm) -> None:
    job = slurm.submit("fail|", "--nodes=1")
    assert slurm.end(job) == "FAILED" and whats(slurm.noted(job)) == [(0, "begun")], slurm.log(job)


def test_a_job_that_is_cancelled_leaves_nothing(slurm: Slurm) -> None:
    job = slurm.submit("wait", "--nodes=2")
    wait_until(lambda: bool(slurm.noted(job)), "the run", lambda: slurm.log(job))
    slurm.call("scancel", job)
    assert slurm.end(job) == "CANCELLED"
