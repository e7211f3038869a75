"""Which Ray this process is connected to: the cluster that is named, or one of its own, which ends with it; and the slots that
a plan takes there.

A Ray of its own has free ports and a folder of its own for its files, so that another Ray on the machine neither disturbs
it nor is disturbed: nothing reads or writes `/tmp/ray`. It listens on the loopback address, and answers only those who have
its token: this process, and all that it starts itself.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ray
from ray._private import parameter
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ultramed_rl.cluster.layout import Member, Plan
from ultramed_rl.config.cluster import ATTENTION, KERNELS, Devices
from ultramed_rl.tracking.console import say
from ultramed_rl.tracking.heartbeat import failed_since, note_link

LOOPBACK = "127.0.0.1"
# Ray lets every user write to its folder, where its sockets are; ours around it keeps them out.
_RAYS = "ray"
LOGS, _LOCK, _SPILLED = f"{_RAYS}/session_latest/logs", "lock", "spilled"
_PREFIX = "umrl-"
_SOCKET_BYTES = 107  # that Linux allows in the path of a socket
_LONGEST = f"/{_PREFIX}12345678/{_RAYS}/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
FULL = 0.95  # of a disk, from which Ray refuses to write objects
_LINK, _DASHBOARD = "ray logs", "ray dashboard"


@dataclass
class _Started:
    """The folder, its lock (held for as long as this process lives), and when it was made."""

    folder: Path
    lock: IO[str]
    moment: float


_started: list[_Started] = []  # one at most


def connect(cluster: Devices) -> None:
    """Join the Ray cluster of the config or of RAY_ADDRESS, or start one of this process's own on this machine.

    Raises:
        ValueError: the address is a dashboard's.
    """
    if ray.is_initialized():
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        if address.startswith(("http://", "https://")):
            raise ValueError(
                f"{'cluster.address' if cluster.address else 'RAY_ADDRESS'}={address!r}: the dashboard's address, which "
                "takes jobs; a run joins Ray itself: give HEAD:6379, or auto on a node of the cluster"
            )
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray gives a tip about it
        context = ray.init(address=address, log_to_driver=False, logging_level="warning")
        note_link(_DASHBOARD, context.dashboard_url)
        return
    cpus = cluster.cpus_per_node or os.cpu_count() or 1
    start_private_ray(
        max(cpus, cluster.devices_per_node if cluster.device == "cpu" else 1),
        512 * 2**20 if cluster.device == "cpu" else None,
    )


def disconnect() -> None:
    """Leave the Ray cluster; one that `connect` started ends."""
    note_link(_DASHBOARD, None)
    if ray.is_initialized():
        ray.shutdown()
    stop_private_ray()


# -- a Ray of this process's own ---------------------------------------------------------------------------


def start_private_ray(cpus: float | None = None, store_bytes: int | None = None) -> None:
    """Start a Ray on this machine and connect this process to it; one that was started before ends.

    Args:
        cpus: that its actors share; None for the machine's.
        store_bytes: of the object store; None for what Ray finds right.

    Raises:
        ValueError: no folder for its files, or RAY_TMPDIR is too long a path; see `choose_parent`.
    """
    stop_private_ray()
    parent = choose_parent()
    remove_spilled(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = (folder / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    _started.append(_Started(folder, lock, time.monotonic()))
    (folder / _SPILLED).mkdir()
    note_link(_LINK, (folder / LOGS).as_uri())
    with _closed():
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=cpus,
            include_dashboard=False,
            dashboard_port=0,  # what is started of it all the same takes a free one
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=store_bytes,
            object_spilling_directory=str(folder / _SPILLED),
            _temp_dir=str(folder / _RAYS),
        )


@atexit.register
def stop_private_ray() -> None:
    """End the Ray that `start_private_ray` started, if it did, and remove its folder; its logs stay where a run failed
    meanwhile."""
    if not _started:
        return
    ray.shutdown()
    _read_token_settings()
    note_link(_LINK, None)
    last = _started.pop()
    last.lock.close()
    if failed_since(last.moment):
        shutil.rmtree(last.folder / _SPILLED, ignore_errors=True)
        say(f"Ray's logs: {last.folder / LOGS}")
    else:
        shutil.rmtree(last.folder, ignore_errors=True)


def choose_parent() -> Path:
    """Where the folder of a Ray is made: RAY_TMPDIR, else TMPDIR, /tmp or /var/tmp, the first with room on its disk, to
    which Ray writes the objects that memory cannot hold.

    Raises:
        ValueError: none can be written to, or all are too long: sockets in them have a longest path.
    """
    given = os.environ.get("RAY_TMPDIR")
    places = (
        [Path(given).absolute()] if given else [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    )
    room = _SOCKET_BYTES - len(_LONGEST)
    usable = [p for p in places if os.access(p, os.W_OK) and len(os.fsencode(p)) <= room]
    if not usable:
        raise ValueError(
            f"{'RAY_TMPDIR=' if given else ''}{', '.join(map(str, places))}: Ray's files need a folder that can be "
            f"written to, with a path of at most {room} bytes; set RAY_TMPDIR to one"
        )
    return next((place for place in usable if full_share(place) <= FULL), usable[0])


def full_share(folder: Path) -> float:
    """The share of the folder's disk that is used; Ray writes no objects to it above 0.95."""
    disk = shutil.disk_usage(folder)
    return disk.used / disk.total


def remove_spilled(parent: Path) -> None:
    """Remove the objects that processes which were killed left behind: a living one holds its folder's lock."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder / _SPILLED)


@contextmanager
def _closed() -> Iterator[None]:
    """What `ray.init` cannot be told by its arguments: to listen on the loopback address, at free ports, without the
    autoscaler and the reader of logs, which nobody asks here; and a token.

    Ray's processes get the variables; this one keeps none, so that what it starts itself has no token.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    # What computes has sockets of its own, which shall be nowhere else, unless the user wants them elsewhere.
    theirs = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback, "VLLM_HOST_IP": LOOPBACK}
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Despite its name: a Ray process looks for its node on the loopback address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "DASHBOARD_METRIC_PORT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's coming default: an actor without GPUs keeps the environment that it was given.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **{name: os.environ.get(name, value) for name, value in theirs.items()},
    }
    ours = {
        "node_ip_address": LOOPBACK,
        "dashboard_agent_listen_port": 0,
        "no_monitor": True,
        "include_log_monitor": False,
    }
    make = parameter.RayParams
    with changed_environment(variables):
        _read_token_settings()
        parameter.RayParams = lambda **given: make(**(given | ours))
        try:
            yield
        finally:
            parameter.RayParams = make


@contextmanager
def changed_environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """This process's environment with these variables, and without those that are None."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        _set(variables)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_token_settings() -> None:
    """Let Ray read the variables of its tokens anew: it keeps what it read first."""
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    ray._raylet.Config.initialize("")


# -- what a plan takes of it -------------------------------------------------------------------------------


class Placement:
    """A plan's slots, reserved: one placement group per node, with a bundle for each slot of that node."""

    def __init__(self, plan: Plan) -> None:
        """Waits until the cluster has them.

        Raises:
            RuntimeError: it has not got the resources within `start_timeout_s`; says what it has.
        """
        self.plan, cluster = plan, plan.cluster
        used = {slot for role in plan.roles for member in role.members for slot in member.slots}
        nodes = 1 + max(slot.node for slot in used)
        per_node = [1 + max(s.index for s in used if s.node == node) for node in range(nodes)]
        # Those of the smallest node that has any; a head that only manages has none.
        cores = [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
        cpus = (cluster.cpus_per_node or min(filter(None, cores), default=1.0)) / cluster.devices_per_node
        bundle = {"CPU": cpus, **({"GPU": 1.0} if cluster.device == "cuda" else {})}
        self.groups = [placement_group([dict(bundle)] * count, strategy="STRICT_PACK") for count in per_node]
        for group in self.groups:
            if not group.wait(cluster.start_timeout_s):
                raise RuntimeError(
                    f"cluster: no node had {group.bundle_count} bundles of {bundle} free within "
                    f"{cluster.start_timeout_s:g} s; it has {ray.cluster_resources()}: start more nodes or lower "
                    "cluster.nodes / cluster.devices_per_node"
                )
        # Roles that take turns awake are all there at once; in turn, engines end before reward models begin.
        together = {
            "colocated": len(plan.roles),
            "in turn": sum(role.role != "rollout" for role in plan.roles),
        }
        self.cpus_per_slot, self.share = cpus, 1.0 / max(1, together.get(plan.layout, 1))

    def spawner(
        self, role: str, worker: type, arguments: Callable[[Member], tuple[Any, ...]]
    ) -> Callable[[int], Any]:
        """What creates the actor of a rank of a role, on its slots."""
        members, remote = self.plan.members(role), ray.remote(worker)
        return lambda rank: remote.options(**self._options(members[rank])).remote(*arguments(members[rank]))

    def release(self) -> None:
        """Give all bundles back."""
        for group in self.groups:
            remove_placement_group(group)

    def _options(self, member: Member) -> dict[str, Any]:
        """Ray actor options that put a member on its slots."""
        first = member.slots[0]
        environment = {
            "OMP_NUM_THREADS": str(max(1, int(self.cpus_per_slot))),
            "TOKENIZERS_PARALLELISM": "false",
            ATTENTION: self.plan.cluster.attention,
            KERNELS: self.plan.cluster.kernels,
        }
        options: dict[str, Any] = {"num_cpus": self.cpus_per_slot * self.share}
        if self.plan.cluster.device == "cuda":
            parallel = len(member.slots) > 1
            # A tensor-parallel engine's actor only drives: its vLLM workers take the shares.
            options["num_gpus"] = 0 if parallel else self.share
            if parallel:
                environment["VLLM_RAY_BUNDLE_INDICES"] = ",".join(str(s.index) for s in member.slots)
                environment["VLLM_RAY_PER_WORKER_GPUS"] = str(self.share)
                options["num_cpus"] = 0
        else:
            environment |= {"DS_ACCELERATOR": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        if member.role == "rollout" or member.role.startswith("judge_engine"):
            environment |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
                "VLLM_NO_USAGE_STATS": "1",
            }
        return {
            **options,
            "runtime_env": {"env_vars": environment},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.groups[first.node], first.index, placement_group_capture_child_tasks=True
            ),
        }
