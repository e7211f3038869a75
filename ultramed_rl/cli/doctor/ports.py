"""Where the processes of a run and of Ray listen, and whether a stranger can join them. Nothing is connected to."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from ultramed_rl.cli.doctor.finding import Finding
from ultramed_rl.tracking.heartbeat import STATUS, is_alive

_SERVERS = ("gcs_server", "raylet")
_SESSION = re.compile(r"--session[-_]dir=(\S+)")
_CURE = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN where Ray is started, or cluster.address=null for a Ray of the run's own"


def check_run_ports(directory: Path) -> Iterator[Finding]:
    """The processes of a run on this machine: its driver and all that it started."""
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
            found = _SESSION.search(" ".join(process.cmdline()))
            if found and process.environ():  # another user's is refused
                family = [process, *process.children(recursive=True)]
                sessions[found[1]] |= {one.pid: one for one in family}
    for session, processes in sessions.items():
        yield judge_ports(session, processes.values())


def judge_ports(whose: str, processes: Iterable[psutil.Process]) -> Finding:
    """What listens where, and whether Ray asks for a token."""
    places: dict[str, set[str]] = defaultdict(set)
    beyond, tokens = set(), []
    for process in processes:
        with suppress(psutil.Error):
            if process.name() in _SERVERS:
                tokens.append(process.environ().get("RAY_AUTH_MODE", "").lower() == "token")
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ip = _plain(connection.laddr.ip)
                    places[process.name()].add(f"{ip}:{connection.laddr.port}")
                    beyond |= set() if ip.is_loopback else {str(ip)}
    listed = "; ".join(f"{name} {', '.join(sorted(at))}" for name, at in sorted(places.items()))
    reach = f"beyond this machine at {', '.join(sorted(beyond))}" if beyond else "on this machine alone"
    text = f"{whose}: listens {reach} ({listed or 'nothing'})"
    if not tokens:
        return Finding("ports", "ok", f"{text}; no Ray of its own")
    if all(tokens):
        return Finding("ports", "ok", f"{text}; who joins its Ray needs the token")
    return Finding("ports", "warn", f"{text}; whoever reaches it can run programs in its Ray", _CURE)


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address, of IPv4 where IPv6 only carries it."""
    ip = ipaddress.ip_address(text)
    return getattr(ip, "ipv4_mapped", None) or ip
