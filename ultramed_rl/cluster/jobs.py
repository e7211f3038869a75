"""Commands as jobs of a Ray cluster: submitted, followed line by line, stopped.

Our own (`ultramed-rl submit`) are sent as one resolved config, and go on without the machine that sent them; a foreign one
(`run_job`) ends together with its driver.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from ultramed_rl.cluster.connection import (
    changed_environment,
    disconnect,
    is_private,
    named_address,
    start_private_ray,
)
from ultramed_rl.cluster.submission import Submission, hide_secrets, job_folder
from ultramed_rl.config.cluster import Devices
from ultramed_rl.tracking.heartbeat import keep_sigterm, note_link

_POLL_S = 1.0
_STOP_S = 15.0
_AGENT_S = 60.0
_NO_AGENT = "No available agent"
_BREAKS = 10
_SHOWN_LINES = 20
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
# Ray lets these win over the address that it is given.
_OVERRULING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_RUN = "ultramed_rl_run"  # in a job's metadata: the name that it was submitted under
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class JobState:
    """How a job stands: `status` is pending, running, succeeded, failed or stopped; times in Unix seconds."""

    identity: str
    status: str
    command: str
    message: str
    started: float | None
    ended: float | None

    @property
    def has_ended(self) -> bool:
        return self.status in ("succeeded", "failed", "stopped")


class JobServer:
    """The jobs of one Ray cluster, behind its dashboard's address, whatever the environment says."""

    def __init__(self, address: str, key: str = "--address") -> None:
        """`key` is where the address comes from, as errors name it.

        Raises:
            RuntimeError: no Ray cluster takes jobs there, or it wants another token.
        """
        self.address = address
        # To other clusters Ray's client would send the token of our own, which it has read in this process.
        headers = None if is_private(address) else {"Authorization": _authorization()}
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            with changed_environment(dict.fromkeys(_OVERRULING)):
                self.client = JobSubmissionClient(address, headers=headers)
        except AuthenticationError:
            raise RuntimeError(
                f"{key}={address!r}: this cluster asks for its token; give it as RAY_AUTH_TOKEN, or in a file as "
                "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            ) from None
        except (ConnectionError, RuntimeError) as error:
            raise RuntimeError(
                f"{key}={address!r}: no Ray cluster takes jobs there ({' '.join(str(error).split())[:200]}); "
                "give the address of its dashboard, as in http://HEAD:8265"
            ) from None

    def submit(self, submission: Submission) -> str:
        """Send a job. Returns its id.

        Raises:
            RuntimeError: a job of that name is still there, or Ray refuses this one. No secret is named.
        """
        identity = self._free_name(submission.name)
        variables = submission.runtime_env.get("env_vars", {})
        # Ray puts the node's own PATH in, which comes first; ours helps where this environment is on a shared disk.
        changes = {"env_vars": {"PATH": f"${{PATH}}:{_BIN}", **variables}}
        with job_folder(submission) as folder:
            try:
                self.request(
                    identity,
                    submission.command,
                    metadata={_RUN: submission.name},
                    runtime_env={**submission.runtime_env, "working_dir": str(folder), **changes},
                )
            except (RuntimeError, ValueError, TypeError) as error:
                # Ray's reason, without the traceback of its server.
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                reason = re.sub(r"^[\w.]+Error: ", "", lines[-1]) if lines else type(error).__name__
                raise RuntimeError(hide_secrets(f"Ray job {identity}: {reason}", variables)) from None
        return identity

    def request(self, identity: str, command: Sequence[str], **more: Any) -> None:
        """Submit a command under an id of our own. `more`: what else Ray's `submit_job` takes.

        Raises:
            RuntimeError: the part of Ray that starts jobs doesn't answer within a minute, or Ray refuses the job.
        """
        # A cluster that has just started refuses jobs for some seconds; the id makes a second try harmless.
        retrying = Retrying(
            retry=retry_if_exception(lambda error: _NO_AGENT in str(error)),
            stop=stop_after_delay(_AGENT_S),
            wait=wait_fixed(_POLL_S),
            reraise=True,
        )
        try:
            retrying(self.client.submit_job, submission_id=identity, entrypoint=shlex.join(command), **more)
        except RuntimeError as error:
            if _NO_AGENT not in str(error):
                raise
            raise RuntimeError(
                f"Ray took no job within {_AGENT_S:g} s: the part of it that starts jobs is not up; if its node was "
                "started while another Ray held port 52365, start it again with --dashboard-agent-listen-port=0, else "
                "look at dashboard_agent.log among Ray's logs"
            ) from None

    def wait_for_start(self, identity: str, seconds: float) -> bool:
        """Whether a job has begun, or ended, within this time."""
        deadline = time.monotonic() + seconds
        while (pending := self.state(identity).status == "pending") and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return not pending

    def follow(self, identity: str, say: Callable[[str], Any]) -> JobState:
        """Give the log to `say` from its beginning until the job ends. Leaving it does nothing to the job.

        Raises:
            RuntimeError: no such job, or the log cannot be reached any more.
        """
        self.state(identity)
        follow_log(self.client, identity, say)
        # The log's connection may have ended before the job.
        while not (state := self.state(identity)).has_ended:
            time.sleep(_POLL_S)
        return state

    def log(self, identity: str) -> str:
        """What a job has printed so far. Raises RuntimeError where there is no such job."""
        self.state(identity)
        return str(self.client.get_job_logs(identity))

    def stop(self, identity: str) -> JobState:
        """Stop a job and give it a moment to be gone. Raises RuntimeError where there is no such job."""
        state, deadline = self.state(identity), time.monotonic() + _STOP_S
        if not state.has_ended:
            self.client.stop_job(identity)
        while not state.has_ended and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            state = self.state(identity)
        return state

    def state(self, identity: str) -> JobState:
        """How one job stands. Raises RuntimeError where there is no such job."""
        try:
            return _state(self.client.get_job_info(identity))
        except RuntimeError as error:
            if "404" not in str(error):
                raise
            raise RuntimeError(
                f"Ray job {identity}: none of this id at {self.address}; see ultramed-rl jobs list --address "
                f"{self.address}"
            ) from None

    def states(self) -> list[JobState]:
        """All jobs that were submitted, the latest first."""
        states = [_state(job) for job in self._jobs()]
        return sorted(states, key=lambda state: state.started or 0.0, reverse=True)

    def _jobs(self) -> list[Any]:
        return [job for job in self.client.list_jobs() if job.submission_id]

    def _free_name(self, name: str) -> str:
        """The name, or with the first number that no earlier job has."""
        jobs = self._jobs()
        for job in jobs:
            ours = job.submission_id == name or (job.metadata or {}).get(_RUN) == name
            if ours and not job.status.is_terminal():
                raise RuntimeError(
                    f"Ray job {job.submission_id}: still {job.status.value.lower()}; follow it with ultramed-rl jobs "
                    f"logs {job.submission_id} --follow, stop it first, or choose another --name"
                )
        taken = {job.submission_id for job in jobs}
        names = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 2))]
        return next(free for free in names if free not in taken)


def _authorization() -> str:
    """The header with the user's token, from where Ray looks for it; empty where there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return f"Bearer {token}" if token else ""


def _state(job: Any) -> JobState:
    message = (job.message or "").partition(", last available")[0]
    return JobState(
        identity=job.submission_id or job.job_id or "",
        status=job.status.value.lower(),
        command=job.entrypoint,
        message=" ".join(message.split()),
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
    )


def follow_log(client: Any, identity: str, say: Callable[[str], Any]) -> None:
    """Give a job's log to `say` as it comes, from its beginning to the job's end, each part once.

    A connection that breaks is made anew. Raises RuntimeError when that fails ten times in a row.
    """

    async def follow() -> None:
        async for text in _log(client, identity):
            say(text)

    asyncio.run(follow())


async def _log(client: Any, identity: str) -> AsyncIterator[str]:
    shown = breaks = 0
    while True:
        passed = 0  # every connection begins with the log's first character
        try:
            async for text in client.tail_job_logs(identity):
                new = text[max(0, shown - passed) :]
                passed += len(text)
                shown = max(shown, passed)
                if new:
                    breaks = 0
                    yield new
            return
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            breaks += 1
            if breaks == _BREAKS:
                raise RuntimeError(
                    f"Ray job {identity}: its log broke off ({error}); the job may go on"
                ) from None
            await asyncio.sleep(_POLL_S)


# -- a foreign command -------------------------------------------------------------------------------------


def run_job(
    command: Sequence[str],
    cluster: Devices,
    *,
    gpus: int,
    variables: Mapping[str, str],
    say: Callable[[str], Any] = sys.stdout.write,
) -> None:
    """Run a command as a Ray job until it ends; its output goes to `say` as it comes. Ctrl-C and SIGTERM stop the job.

    The cluster is that of `cluster.address` or RAY_ADDRESS, else one that is started on this machine and ends
    with the job.

    Args:
        gpus: what it is given on one node, with a CPU for each, and at least one.
        variables: added to that node's environment. Ray's dashboard shows them: no secret belongs there.

    Raises:
        RuntimeError: no cluster answers, it has no room for the job, or the job failed; with the job's id and
            last lines.
    """
    identity, last = f"ultramed_rl-{secrets.token_hex(6)}", deque[str](maxlen=_SHOWN_LINES)

    def say_and_keep(text: str) -> None:
        say(text)
        last.extend(line for line in text.replace("\r", "\n").splitlines() if line.strip())

    with _job_server(cluster) as server:
        room = {"entrypoint_num_gpus": gpus, "entrypoint_num_cpus": max(1, gpus)}
        # Ray puts the node's own PATH in; a folder that a node hasn't got does no harm there.
        environment = {"env_vars": {**variables, "PATH": f"{_BIN}:${{PATH}}"}}
        server.request(identity, command, runtime_env=environment, **room)
        try:
            if not server.wait_for_start(identity, cluster.start_timeout_s):
                raise RuntimeError(
                    f"Ray job {identity}: no node had {gpus} GPUs and {max(1, gpus)} CPUs free within "
                    f"cluster.start_timeout_s={cluster.start_timeout_s:g}; start such a node or ask for fewer ranks"
                )
            state = server.follow(identity, say_and_keep)
            if state.status != "succeeded":
                raise RuntimeError(
                    f"Ray job {identity}: {state.status} ({state.message}); mend what its last lines name and run the "
                    "same command again:\n" + "\n".join(last)
                )
        except BaseException:
            server.stop(identity)
            raise


@contextmanager
def _job_server(cluster: Devices) -> Iterator[JobServer]:
    """A Ray cluster that takes jobs."""
    with ExitStack() as stack:
        address = named_address(cluster)
        if not address:
            disconnect()  # from a Ray that was started for actors, which takes no jobs
            stack.callback(disconnect)
            address = start_private_ray(dashboard=True)
        keep_sigterm()
        server = JobServer(address, "cluster.address")
        note_link("ray dashboard", address if address.startswith("http") else None)
        yield server
