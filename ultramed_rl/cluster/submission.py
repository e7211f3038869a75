"""Our own commands as Ray jobs: a run is sent as one resolved config, and goes on without the machine that sent it."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.job_client import connect_to_jobs, follow_log, stop_job, submit_job, wait_for_end
from ultramed_rl.cluster.job_environment import hide_secrets

CONFIG_FILE = "ultramed-rl.yaml"  # the config's name in the job's folder
_RUN = "ultramed_rl_run"  # in a job's metadata: the name that it was submitted under


@dataclass(frozen=True)
class Submission:
    """What is sent.

    `name`: the job's id, to which a number is added where an ended job has it. `command`: runs on the head in a
    folder that holds `config` as CONFIG_FILE and what `working_dir` holds. `runtime_env`: Ray's, without its
    working directory.
    """

    name: str
    command: tuple[str, ...]
    config: str
    runtime_env: Mapping[str, Any]
    working_dir: Path | None = None


@dataclass(frozen=True)
class JobState:
    """How a job stands: `status` is pending, running, succeeded, failed or stopped; times in Unix seconds."""

    identity: str
    status: str
    command: str
    message: str
    started: float | None
    ended: float | None


class JobServer:
    """The jobs of one Ray cluster, behind its dashboard's address."""

    def __init__(self, address: str) -> None:
        """Raises RuntimeError where no cluster takes jobs at the address."""
        self.address = address
        self.client = connect_to_jobs(address, "--address")

    def submit(self, submission: Submission) -> str:
        """Send a job. Returns its id.

        Raises:
            RuntimeError: a job of that name is still there, or Ray refuses this one. No secret is named.
        """
        identity = self._free_name(submission.name)
        environment = dict(submission.runtime_env)
        variables = environment.get("env_vars", {})
        with job_folder(submission) as folder:
            try:
                submit_job(
                    self.client,
                    identity,
                    entrypoint=shlex.join(submission.command),
                    metadata={_RUN: submission.name},
                    runtime_env={
                        **environment,
                        "working_dir": str(folder),
                        "env_vars": {"PATH": _path_with_ours(), **variables},
                    },
                )
            except (RuntimeError, ValueError, TypeError) as error:
                raise RuntimeError(
                    hide_secrets(f"Ray job {identity}: {_last_words(error)}", variables)
                ) from None
        return identity

    def follow(self, identity: str, say: Callable[[str], Any]) -> JobState:
        """Give the log to `say` from its beginning until the job ends. Leaving it does nothing to the job.

        Raises:
            RuntimeError: no such job, or the log cannot be reached any more.
        """
        self.state(identity)
        asyncio.run(follow_log(self.client, identity, say))
        wait_for_end(self.client, identity)
        return self.state(identity)

    def log(self, identity: str) -> str:
        """What a job has printed so far. Raises RuntimeError where there is no such job."""
        self.state(identity)
        return str(self.client.get_job_logs(identity))

    def stop(self, identity: str) -> JobState:
        """Stop a job and give it a moment to be gone. Raises RuntimeError where there is no such job."""
        self.state(identity)
        stop_job(self.client, identity)
        return self.state(identity)

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
        found = [_state(job) for job in self._jobs()]
        return sorted(found, key=lambda state: state.started or 0.0, reverse=True)

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
        number = next(n for n in range(1, len(taken) + 2) if _numbered(name, n) not in taken)
        return _numbered(name, number)


@contextmanager
def job_folder(submission: Submission) -> Iterator[Path]:
    """A temporary folder with the config, and links to what the working directory holds."""
    with tempfile.TemporaryDirectory(prefix="ultramed_rl-job-") as name:
        folder = Path(name)
        (folder / CONFIG_FILE).write_text(submission.config, encoding="utf-8")
        held = submission.working_dir.resolve().iterdir() if submission.working_dir else ()
        for entry in held:
            if entry.name != CONFIG_FILE:
                (folder / entry.name).symlink_to(entry)
        yield folder


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _path_with_ours() -> str:
    # Ray puts the node's own PATH in, which comes first; ours helps where this environment is on a shared disk.
    return f"${{PATH}}:{Path(sys.executable).parent}"


def _last_words(error: Exception) -> str:
    """Ray's reason, without the traceback of its server."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^[\w.]+Error: ", "", lines[-1]) if lines else type(error).__name__


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
