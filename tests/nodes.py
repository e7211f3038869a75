"""A Ray cluster of several nodes on one machine: a raylet for each, in a network namespace of its own where allowed."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

# Instead of those that Ray gives every node: a worker's is of 10002 to 19999, the agent's 52365.
ANY_PORTS = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
_BRIDGE, _NET = "umrl0", "10.231.77"


class Node:
    """A worker node: its raylet and all that it has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def workers(self, kind: str) -> list[psutil.Process]:
        """Actors of this class on the node."""
        return [p for p in self._family() if "".join(_words(p)).startswith(f"ray::{kind}")]

    def remove(self) -> None:
        """The node is gone at once, with everything on it."""
        for process in self._family():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def _family(self) -> list[psutil.Process]:
        if not psutil.pid_exists(self.process.pid):
            return []
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


@contextmanager
def ray_nodes(count: int, cpus: int) -> Iterator[tuple[dict[str, str], list[Node]]]:
    """(what a driver needs in its environment, worker nodes): a head without cores on this machine, and nodes beside
    it."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes-"))
        apart = _may_have_namespaces()
        if apart:
            stack.callback(_remove_bridge)
            _add_bridge()
        ip, port = (f"{_NET}.1" if apart else "127.0.0.1"), _free_port()
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        driver = token | {"RAY_ADDRESS": f"{ip}:{port}"}
        head = ["--head", f"--port={port}", f"--node-ip-address={ip}", "--num-cpus=0", "--no-monitor"]
        head += [f"--ray-client-server-port={_free_port()}", "--include-dashboard=false"]
        first = _start([], [*head, f"--temp-dir={folder}"], token)
        stack.callback(first.remove)
        nodes = []
        for number in range(count):
            prefix, own = [], ip
            if apart:
                stack.callback(_remove_namespace, number)
                prefix, own = _add_namespace(number), f"{_NET}.{number + 2}"
            extra = [f"--address={ip}:{port}", f"--node-ip-address={own}", f"--num-cpus={cpus}"]
            nodes.append(_start(prefix, extra, token))
            stack.callback(nodes[-1].remove)
        _wait_for_nodes(driver, count + 1)
        yield driver, nodes


def _start(prefix: list[str], arguments: list[str], variables: dict[str, str]) -> Node:
    """A node that has come up. One after the other: those that start at once on one machine may take each other's
    ports."""
    ray = str(Path(sys.executable).parent / "ray")
    command = [*prefix, ray, "start", *arguments, "--block", "--disable-usage-stats"]
    extra = ["--object-store-memory=200000000", *ANY_PORTS]
    environment = os.environ | variables | {"DASHBOARD_METRIC_PORT": "0"}
    for _ in range(3):
        with tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False) as log:
            process = subprocess.Popen(
                [*command, *extra], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            while process.poll() is None and "Ray runtime started" not in Path(log.name).read_text():
                time.sleep(0.2)
        if process.poll() is None:
            return Node(process)
    raise AssertionError(Path(log.name).read_text())


def _may_have_namespaces() -> bool:
    """Whether this machine lets us make a namespace and a bridge."""
    try:
        made = all(
            _run("ip", *words.split()) for words in ("netns add umrl-try", "link add umrl-try type bridge")
        )
    except FileNotFoundError:
        return False
    _run("ip", "link", "del", "umrl-try")
    _run("ip", "netns", "del", "umrl-try")
    return made


def _add_bridge() -> None:
    _remove_bridge()
    for words in (
        f"link add {_BRIDGE} type bridge",
        f"addr add {_NET}.1/24 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
    ):
        assert _run("ip", *words.split()), words


def _remove_bridge() -> None:
    _run("ip", "link", "del", _BRIDGE)


def _add_namespace(number: int) -> list[str]:
    """A namespace with an address on the bridge; returns the words that run a command in it."""
    name = f"umrl{number}"
    _remove_namespace(number)
    for words in (
        f"netns add {name}",
        f"link add {name}a type veth peer name {name}b",
        f"link set {name}a master {_BRIDGE} up",
        f"link set {name}b netns {name}",
        f"-n {name} addr add {_NET}.{number + 2}/24 dev {name}b",
        f"-n {name} link set {name}b up",
        f"-n {name} link set lo up",
    ):
        assert _run("ip", *words.split()), words
    return ["ip", "netns", "exec", name]


def _remove_namespace(number: int) -> None:
    # The link first: a namespace that is deleted takes its own with it only later.
    _run("ip", "link", "del", f"umrl{number}a")
    _run("ip", "netns", "del", f"umrl{number}")


def _run(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _wait_for_nodes(variables: dict[str, str], count: int) -> None:
    code = (
        "import ray, time\n"
        "ray.init(log_to_driver=False)\n"
        f"while sum(n['Alive'] for n in ray.nodes()) < {count}: time.sleep(0.5)\n"
    )
    environment = os.environ | variables
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=400, capture_output=True, env=environment
    )
