"""A foreign command as a Ray job: submitted, followed line by line, and stopped together with its driver."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.job_client import connect_to_jobs, follow_log, stop_job, submit_job, wait_for_end
from ultramed_rl.cluster.placement import disconnect, named_address
from ultramed_rl.cluster.private_ray import start_private_ray
from ultramed_rl.config.cluster import Devices
from ultramed_rl.tracking.heartbeat import note_link
from ultramed_rl.tracking.termination import keep_sigterm

_POLL_S = 1.0
_SHOWN_LINES = 20


@dataclass(frozen=True)
class Job:
    """A command line, what it is given on one node, and variables that are added to that node's environment.

    The job's environment can be read on Ray's dashboard: no secret belongs in it.
    """

    command: Sequence[str]
    gpus: int
    cpus: int
    environment: Mapping[str, str]


def run_job(job: Job, cluster: Devices, say: Callable[[str], Any] = sys.stdout.write) -> str:
    """Run a command as a Ray job until it ends; its output goes to `say` as it comes. Ctrl-C and SIGTERM stop the job.

    The cluster is that of `cluster.address` or RAY_ADDRESS, else one that is started on this machine and ends
    with the job.

    Returns:
        The job's id.

    Raises:
        RuntimeError: no cluster answers, it has no room for the job, or the job failed; with the job's id and
            last lines.
    """
    with _job_server(cluster) as address:
        keep_sigterm()
        client = connect_to_jobs(address, "cluster.address")
        note_link("ray dashboard", address if address.startswith("http") else None)
        identity = f"ultramed_rl-{secrets.token_hex(6)}"
        submit_job(
            client,
            identity,
            entrypoint=shlex.join(job.command),
            entrypoint_num_gpus=job.gpus,
            entrypoint_num_cpus=job.cpus,
            runtime_env={"env_vars": {**job.environment, "PATH": _path_with_this_python()}},
        )
        try:
            _wait_until_started(client, identity, job, cluster)
            last: deque[str] = deque(maxlen=_SHOWN_LINES)
            asyncio.run(follow_log(client, identity, lambda text: _say_and_keep(text, say, last)))
            _check_end(client, identity, last)
        except BaseException:
            stop_job(client, identity)
            raise
    return identity


def _path_with_this_python() -> str:
    # Ray puts the node's own PATH in; a folder that a node hasn't got does no harm there.
    return f"{Path(sys.executable).parent}:${{PATH}}"


@contextmanager
def _job_server(cluster: Devices) -> Iterator[str]:
    """The address of a Ray cluster that takes jobs."""
    address = named_address(cluster)
    if address:
        yield address
        return
    disconnect()  # from a Ray that was started for actors, which takes no jobs
    try:
        yield start_private_ray(dashboard=True)
    finally:
        disconnect()


def _wait_until_started(client: Any, identity: str, job: Job, cluster: Devices) -> None:
    deadline = time.monotonic() + cluster.start_timeout_s
    while client.get_job_status(identity) == "PENDING":
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"Ray job {identity}: no node had {job.gpus} GPUs and {job.cpus} CPUs free within "
                f"cluster.start_timeout_s={cluster.start_timeout_s:g}; start such a node or ask for fewer ranks"
            )
        time.sleep(_POLL_S)


def _say_and_keep(text: str, say: Callable[[str], Any], last: deque[str]) -> None:
    say(text)
    last.extend(line for line in text.replace("\r", "\n").splitlines() if line.strip())


def _check_end(client: Any, identity: str, last: deque[str]) -> None:
    """Raise unless the job succeeded. The log's connection may have ended before the job: wait for that."""
    status, words = wait_for_end(client, identity)
    if status != "succeeded":
        raise RuntimeError(
            f"Ray job {identity}: {status} ({words}); mend what its last lines name and run the same command "
            "again:\n" + "\n".join(last)
        )
