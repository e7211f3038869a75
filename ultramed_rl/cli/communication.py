"""What the doctor finds out about processes: whether they load what computes, reach each other, and who reaches them.

What may crash or hang is tried in a process of its own, so that it is a finding and not the end of all checks.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from ultramed_rl.cluster.host_adam import host_adam_problem
from ultramed_rl.config.cluster import Devices
from ultramed_rl.tracking.heartbeat import STATUS, is_alive

_LENGTH = 300  # characters of what a process said
_ALONE_S = 180.0  # for a process that loads what computes
_STORE_BYTES = 512 * 2**20  # the object store of a local cluster on CPU
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A check's name, how bad it is, what was found, and what to do about it: nothing where all is well."""

    name: str
    level: Level
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert bool(self.fix) == (self.level != "ok"), f"{self.name}: a fix is for what isn't well"


def judge(name: str, is_well: bool, text: str, fix: str, level: Level = "fail") -> Finding:
    """The finding of a check: its fix and how bad it is are said where it isn't well."""
    return Finding(name, "ok", text) if is_well else Finding(name, level, text, fix)


def cuda_devices() -> list[str]:
    """A line for each GPU that torch sees: name, memory, whether it computes bfloat16 itself."""
    import torch

    lines = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        shape = torch.cuda.get_device_properties(index)
        native = "bfloat16" if shape.major >= 8 else "no native bfloat16"
        lines.append(f"{shape.name}, {shape.total_memory / 2**30:.0f} GiB, {native}")
    return lines


# -- what computes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessResult:
    """Whether a process worked, the last thing that it said, and what NCCL said of itself meanwhile."""

    worked: bool
    said: str
    nccl: str = ""


def run_python(code: str, *, timeout_s: float = _ALONE_S, **environment: str) -> ProcessResult:
    """Code in a process of its own, for so long at most."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return ProcessResult(False, f"nothing within {timeout_s:g} s")
    spoken = [line.strip() for line in (done.stderr if done.returncode else done.stdout).splitlines()]
    last = next((line[:_LENGTH] for line in reversed(spoken) if line), "")
    if done.returncode < 0:
        return ProcessResult(False, f"killed by signal {-done.returncode}; {last}".rstrip("; "))
    return ProcessResult(
        not done.returncode, last or (f"exit code {done.returncode}" if done.returncode else "")
    )


def check_all_reduce() -> Iterator[Finding]:
    """Two processes and a real all_reduce over gloo, and over NCCL as many as there are GPUs, two at most; and by what NCCL would
    reach other nodes."""
    fixes = {
        "gloo": "let processes of this machine reach each other (firewall, GLOO_SOCKET_IFNAME=lo), and its name in "
        "/etc/hosts",
        "nccl": "run it with NCCL_DEBUG=INFO; often NCCL_P2P_DISABLE=1, NCCL_SOCKET_IFNAME or a larger /dev/shm is "
        "the fix",
    }
    for backend, ranks in (("gloo", 2), ("nccl", min(2, len(cuda_devices())))):
        if ranks:
            outcome = all_reduce(backend, ranks)
            said = f"all_reduce over {ranks} processes: {outcome.said}"
            yield judge(backend, outcome.worked, said, fixes[backend])
            if outcome.nccl:
                yield judge_transport(outcome.nccl, Path("/sys/class/infiniband"))


def judge_transport(log: str, adapters: Path) -> Finding:
    """Whether NCCL would go between nodes by RDMA or by TCP.

    Args:
        log: of NCCL at level INFO.
        adapters: the folder in which Linux lists RDMA adapters.
    """
    chosen = re.findall(r"(?:Using network|Assigned NET plugin) (.+?)(?: to comm)?$", log, re.MULTILINE)
    devices = re.findall(r"NET/\S+ ?: Using (.+)", log)
    there = sorted(path.name for path in adapters.iterdir()) if adapters.is_dir() else []
    if not chosen:
        text = "NCCL doesn't say by what it would reach other nodes"
        return Finding("transport", "warn", text, "run with NCCL_DEBUG=INFO, and look for NET/")
    network = f"{chosen[-1]}{': ' + devices[-1].strip() if devices else ''}"
    if chosen[-1] != "Socket":
        return Finding("transport", "ok", f"NCCL would reach other nodes by RDMA ({network})")
    text = f"NCCL would reach other nodes by TCP ({network})"
    if not there:
        return Finding("transport", "ok", f"{text}; there is no RDMA adapter here")
    fix = (
        "install libibverbs1 and ibverbs-providers, let a container have /dev/infiniband and IPC_LOCK, unset NCCL_IB_DISABLE; on "
        "AWS put the folder of aws-ofi-nccl into LD_LIBRARY_PATH"
    )
    return Finding("transport", "warn", f"{text}, though there is {', '.join(there)}", fix)


def all_reduce(backend: str, ranks: int, timeout_s: float = 120.0) -> ProcessResult:
    """The first rank that failed, or the last one's outcome."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks) as pool:
        log = Path(folder, "nccl.log")
        told = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET", "NCCL_DEBUG_FILE": f"{log}.%p"}

        def run(rank: int) -> ProcessResult:
            call = f"add_up({backend!r}, {rank}, {ranks}, {os.path.join(folder, 'meeting')!r})"
            code = f"from {__name__} import add_up; {call}"
            return run_python(code, timeout_s=timeout_s, **told, OMP_NUM_THREADS="1")

        outcomes = list(pool.map(run, range(ranks)))
        said = "".join(file.read_text(errors="replace") for file in sorted(log.parent.glob(f"{log.name}.*")))
    first = next((outcome for outcome in outcomes if not outcome.worked), outcomes[-1])
    return replace(first, nccl=said)


def add_up(backend: str, rank: int, ranks: int, meeting: str) -> None:
    """One rank of `all_reduce`, which meets the others in a file: adds up rank + 1 over all, and says how long it took."""
    import torch
    import torch.distributed as distributed

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    number = torch.tensor([rank + 1.0], device=device)
    began = time.perf_counter()
    distributed.all_reduce(number)
    total, expected = number.item(), ranks * (ranks + 1) / 2
    milliseconds = 1000 * (time.perf_counter() - began)
    distributed.destroy_process_group()
    if total != expected:
        sys.exit(f"the sum is {total:g}, not {expected:g}")
    print(f"{milliseconds:.1f} ms")


def check_engines(names: Sequence[str] = ("vllm", "deepspeed", "flash-attn")) -> Iterator[Finding]:
    """Import what computes: a compiled part fails first where torch or the machine isn't the one it was built for.

    flash-attn is looked at where it is installed: OpenRLHF's engine needs it, our own takes torch's.
    """
    extra = "cuda" if cuda_devices() else "cpu"
    fixes = {
        "vllm": f"pip install 'ultramed_rl[{extra}]' with launch/locks/{extra}.txt, as launch/setup.sh does",
        "deepspeed": "install the pinned version; where it looks for nvcc, set CUDA_HOME, or DS_ACCELERATOR=cpu without "
        "a GPU",
        "flash-attn": "launch/setup.sh --flash-attn builds it again; only engine=openrlhf needs it",
    }
    for name in names:
        module = name.replace("-", "_")
        if name == "flash-attn" and find_spec(module) is None:
            continue
        compiled = "from vllm import LLM; " if name == "vllm" else ""
        code = f"import {module}; {compiled}print({module}.__version__)"
        outcome = run_python(code, VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")
        said = f"{outcome.said} loads" if outcome.worked else f"doesn't load: {outcome.said}"
        yield judge(name, outcome.worked, said, fixes[name], "warn" if name == "flash-attn" else "fail")


def check_host_adam(cluster: Devices | None) -> Iterator[Finding]:
    """Whether the Adam that `offload_optimizer` needs compiles here; a minute, where it hasn't yet and nothing lacks."""
    if problem := host_adam_problem(cluster):
        yield Finding("host_adam", "fail", problem, "do as the line says")
        return
    call = "from ultramed_rl.actors.deepspeed_setup import build_host_adam; build_host_adam(); print('compiles and loads')"
    outcome = run_python(call)
    fix = "do as the line says, or set offload_optimizer=false"
    yield judge("host_adam", outcome.worked, f"DeepSpeed's Adam for the host: {outcome.said}", fix)


# -- ray and ports -----------------------------------------------------------------------------------------


def check_ray(address: str | None) -> Iterator[Finding]:
    """The cluster of the config or of RAY_ADDRESS; without one, whether this machine can start its own."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        yield from check_own_ray()
        return
    if address == "auto":
        yield Finding("ray", "ok", "address=auto: the cluster that runs on this machine, found at the start")
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port or {"ray": 10001, "http": 80, "https": 443}.get(parts.scheme, 6379)
        with socket.create_connection((parts.hostname or "", port), timeout=3.0):
            yield Finding("ray", "ok", f"{address} answers")
    except (OSError, ValueError) as error:
        fix = "start Ray there (ray start --head), open the port, or unset RAY_ADDRESS and cluster.address"
        yield Finding("ray", "fail", f"{address}: no answer ({error})", fix)


def check_own_ray() -> Iterator[Finding]:
    """Room for the object store and for Ray's files. Nothing is started."""
    from ultramed_rl.cluster.connection import FULL, choose_parent, full_share

    try:
        folder = choose_parent()
    except ValueError as error:
        fix = "set RAY_TMPDIR to a folder with a short path on a disk with room"
        yield Finding("ray", "fail", str(error), fix)
        return
    if full_share(folder) > FULL:
        text = f"{folder}: {full_share(folder):.0%} full; Ray stops spilling objects at {FULL:.0%}"
        yield Finding("ray", "warn", text, "free some, or set RAY_TMPDIR to another disk")
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else _STORE_BYTES
    text = "no address is set: each run starts its own cluster on this machine"
    if free < _STORE_BYTES:
        text = f"/dev/shm has {free / 2**20:.0f} MiB free; the object store takes {_STORE_BYTES / 2**20:.0f}"
    yield judge("ray", free >= _STORE_BYTES, text, "enlarge it, in a container by --shm-size=8g", "warn")


def check_run_ports(directory: Path) -> Iterator[Finding]:
    """Where the processes of a run on this machine listen: its driver and all that it started."""
    file = directory / STATUS
    heart = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not is_alive(directory, heart):
        yield Finding("ports", "ok", f"{directory}: no process runs it")
    elif heart["host"] != socket.gethostname():
        fix = f"run the same command on {heart['host']}"
        yield Finding("ports", "warn", f"{directory}: its driver is on {heart['host']}", fix)
    else:
        driver = psutil.Process(heart["pid"])
        yield judge_ports(str(directory), [driver, *driver.children(recursive=True)])


def check_machine_ports() -> Iterator[Finding]:
    """Every Ray on this machine whose processes this user may look at."""
    sessions: dict[str, dict[int, psutil.Process]] = defaultdict(dict)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            session = re.search(r"--session[-_]dir=(\S+)", " ".join(process.cmdline()))
            if session and process.environ():  # another user's is refused
                family = [process, *process.children(recursive=True)]
                sessions[session[1]] |= {one.pid: one for one in family}
    for folder, processes in sessions.items():
        yield judge_ports(folder, processes.values())


def judge_ports(whose: str, processes: Iterable[psutil.Process]) -> Finding:
    """What listens where, and whether a stranger can join Ray: whether it asks for a token. Nothing is connected to."""
    places: dict[str, set[str]] = defaultdict(set)
    beyond, tokens = set(), []
    for process in processes:
        with suppress(psutil.Error):
            if process.name() in ("gcs_server", "raylet"):
                tokens.append(process.environ().get("RAY_AUTH_MODE", "").lower() == "token")
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ip = ipaddress.ip_address(connection.laddr.ip)
                    ip = getattr(ip, "ipv4_mapped", None) or ip  # of IPv4 where IPv6 only carries it
                    places[process.name()].add(f"{ip}:{connection.laddr.port}")
                    beyond |= set() if ip.is_loopback else {str(ip)}
    listed = "; ".join(f"{name} {', '.join(sorted(at))}" for name, at in sorted(places.items()))
    reach = f"beyond this machine at {', '.join(sorted(beyond))}" if beyond else "on this machine alone"
    text = f"{whose}: listens {reach} ({listed or 'nothing'})"
    joins = "who joins its Ray needs the token" if tokens else "no Ray of its own"
    if not all(tokens):
        joins = "whoever reaches it can run programs in its Ray"
    fix = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN where Ray is started, or cluster.address=null for a Ray of its own"
    return judge("ports", all(tokens), f"{text}; {joins}", fix, "warn")
