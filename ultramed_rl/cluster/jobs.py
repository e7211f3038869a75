"""A foreign command as a Ray job: submitted, followed line by line, and stopped together with its driver."""

from __future__ import annotations

import asyncio
import os
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

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from ultramed_rl.config.cluster import Devices
from ultramed_rl.tracking.heartbeat import note_link

_POLL_S = 1.0
_STOP_S = 15.0
_SHOWN_LINES = 20
_AGENT_S = 60.0
_NO_AGENT = "No available agent"


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
    """Run a command as a Ray job until it ends; its output goes to `say` as it comes. Ctrl-C stops the job.

    The cluster is that of `cluster.address` or RAY_ADDRESS, else one that is started on this machine and ends
    with the job.

    Returns:
        The job's id.

    Raises:
        RuntimeError: no cluster answers, it has no room for the job, or the job failed; with the job's id and
            last lines.
    """
    with _job_server(cluster) as address:
        client = _connect(address)
        note_link("ray dashboard", address if address.startswith("http") else None)
        identity = f"ultramed_rl-{secrets.token_hex(6)}"
        _submit(client, identity, job)
        try:
            _wait_until_started(client, identity, job, cluster)
            last: deque[str] = deque(maxlen=_SHOWN_LINES)
            asyncio.run(_follow(client, identity, say, last))
            _check_end(client, identity, last)
        except BaseException:
            _stop(client, identity)
            raise
    return identity


def _path_with_this_python() -> str:
    # Ray puts the node's own PATH in; a folder that a node hasn't got does no harm there.
    return f"{Path(sys.executable).parent}:${{PATH}}"


@contextmanager
def _job_server(cluster: Devices) -> Iterator[str]:
    """The address of a Ray cluster that takes jobs."""
    import ray

    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        yield address
        return
    ours = not ray.is_initialized()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    context = ray.init(
        include_dashboard=True, log_to_driver=False, logging_level="warning", ignore_reinit_error=True
    )
    try:
        if not context.dashboard_url:
            raise RuntimeError(
                "Ray was started in this process without its dashboard, which takes jobs: call ray.shutdown() "
                "first, or name a cluster in cluster.address"
            )
        yield f"http://{context.dashboard_url}"
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    # Ray lets RAY_ADDRESS win over the address that it is given; here the config wins.
    elsewhere = os.environ.pop("RAY_ADDRESS", None)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RuntimeError(
            f"cluster.address={address!r}: no Ray cluster takes jobs there ({' '.join(str(error).split())[:200]}); "
            "give the address of its dashboard, as in http://HEAD:8265"
        ) from None
    finally:
        if elsewhere is not None:
            os.environ["RAY_ADDRESS"] = elsewhere


def _submit(client: Any, identity: str, job: Job) -> None:
    # A cluster that has just started refuses jobs for some seconds; its own id makes a second try harmless.
    young = retry_if_exception(lambda error: _NO_AGENT in str(error))
    try:
        for attempt in Retrying(
            retry=young, stop=stop_after_delay(_AGENT_S), wait=wait_fixed(_POLL_S), reraise=True
        ):
            with attempt:
                client.submit_job(
                    submission_id=identity,
                    entrypoint=shlex.join(job.command),
                    entrypoint_num_gpus=job.gpus,
                    entrypoint_num_cpus=job.cpus,
                    runtime_env={"env_vars": {**job.environment, "PATH": _path_with_this_python()}},
                )
    except RuntimeError as error:
        if _NO_AGENT not in str(error):
            raise
        raise RuntimeError(
            f"Ray took no job within {_AGENT_S:g} s: the part of it that starts jobs is not up, most often because "
            "another Ray cluster on the machine holds its port (52365); stop that one, or name it in cluster.address"
        ) from None


def _wait_until_started(client: Any, identity: str, job: Job, cluster: Devices) -> None:
    deadline = time.monotonic() + cluster.start_timeout_s
    while client.get_job_status(identity) == "PENDING":
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"Ray job {identity}: no node had {job.gpus} GPUs and {job.cpus} CPUs free within "
                f"cluster.start_timeout_s={cluster.start_timeout_s:g}; start such a node or ask for fewer ranks"
            )
        time.sleep(_POLL_S)


async def _follow(client: Any, identity: str, say: Callable[[str], Any], last: deque[str]) -> None:
    async for text in client.tail_job_logs(identity):
        say(text)
        last.extend(line for line in text.replace("\r", "\n").splitlines() if line.strip())


def _check_end(client: Any, identity: str, last: deque[str]) -> None:
    """Raise unless the job succeeded. The log's connection may have ended before the job: wait for that."""
    while not (status := client.get_job_status(identity)).is_terminal():
        time.sleep(_POLL_S)
    if status != "SUCCEEDED":
        reason = (client.get_job_info(identity).message or "").partition(", last available")[0].strip()
        raise RuntimeError(
            f"Ray job {identity}: {status.value.lower()} ({' '.join(reason.split())}); mend what its last lines "
            "name and run the same command again:\n" + "\n".join(last)
        )


def _stop(client: Any, identity: str) -> None:
    """Stop a job, if it still runs, and give it a moment to be gone."""
    if client.get_job_status(identity).is_terminal():
        return
    client.stop_job(identity)
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline and not client.get_job_status(identity).is_terminal():
        time.sleep(_POLL_S)
