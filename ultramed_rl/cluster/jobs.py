"""Commands as jobs of a Ray cluster (`ultramed-rl submit`, `jobs`): what is sent, submitted, followed line by line, stopped.

A job is sent as one resolved config, its environment and perhaps a folder, and goes on without the machine that sent it.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from ultramed_rl.cluster.connection import changed_environment
from ultramed_rl.config.document import YamlProblem, read_yaml, why_unreadable

CONFIG_FILE = "ultramed-rl.yaml"  # the config's name in the job's folder
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_POLL_S = 1.0
_STOP_S = 15.0
_AGENT_S = 60.0
_NO_AGENT = "No available agent"
_AGENT_ABSENT = (
    f"Ray took no job within {_AGENT_S:g} s: the part of it that starts jobs is not up; if its node was started while "
    "another Ray held port 52365, start it again with --dashboard-agent-listen-port=0, else look at dashboard_agent.log "
    "among Ray's logs"
)
_BREAKS = 10
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
# Ray lets these win over the address that it is given.
_OVERRULING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_RUN = "ultramed_rl_run"  # in a job's metadata: the name that it was submitted under
_BIN = Path(sys.executable).parent


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


@contextmanager
def job_folder(submission: Submission) -> Iterator[Path]:
    """A temporary folder with the config, and links to what the working directory holds."""
    with tempfile.TemporaryDirectory(prefix="ultramed_rl-job-") as name:
        folder = Path(name)
        (folder / CONFIG_FILE).write_text(submission.config, encoding="utf-8")
        for entry in submission.working_dir.resolve().iterdir() if submission.working_dir else ():
            if entry.name != CONFIG_FILE:
                (folder / entry.name).symlink_to(entry)
        yield folder


def check_size(submission: Submission) -> None:
    """Raise ValueError for a working directory that Ray would pack, begin to send, and refuse. It packs without compression, and
    what it leaves out (.gitignore, .rayignore, `excludes`) doesn't count."""
    if submission.working_dir is None:
        return
    sizes, limit = Counter[str](), packaging.GCS_STORAGE_MAX_SIZE
    heeds = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excludes = [
        *ray_constants.get_runtime_env_default_excludes(),
        *submission.runtime_env.get("excludes", ()),
    ]
    with job_folder(submission) as folder:

        def add_size(path: Path) -> None:
            if path.is_file():
                sizes[path.relative_to(folder).parts[0]] += path.stat().st_size

        packaging._dir_travel(folder, [packaging._get_excludes(folder, excludes)], add_size, heeds)
    if (size := sizes.total()) >= limit:
        largest = ", ".join(f"{name} {count / 2**20:,.0f} MiB" for name, count in sizes.most_common(3))
        raise ValueError(
            f"--working-dir {submission.working_dir}: {size / 2**20:,.0f} MiB, and Ray takes less than {limit / 2**20:,.0f} (the "
            f"largest: {largest}); name what the job doesn't need in .rayignore, or keep it on a shared disk"
        )


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

    def __init__(
        self, address: str, headers: Mapping[str, str] | None = None, verify: bool | str = True
    ) -> None:
        """
        Args:
            headers: sent with every request, beside the cluster's token or, where they say `Authorization`, in its place.
            verify: whether certificates of https are checked, or the file or folder of those that are trusted.

        Raises:
            RuntimeError: no Ray cluster takes jobs there, or it wants another token.
        """
        self.address = address
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            # Without these headers Ray's client would send the token of a Ray of our own, which it has read in this process.
            with changed_environment(dict.fromkeys(_OVERRULING)):
                sent = {"Authorization": _authorization(), **(headers or {})}
                self.client = JobSubmissionClient(address, headers=sent, verify=verify)
        except AuthenticationError:
            raise RuntimeError(
                f"--address={address!r}: this cluster asks for its token; give it as RAY_AUTH_TOKEN, or in a file as "
                "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            ) from None
        except (ConnectionError, RuntimeError) as error:
            raise RuntimeError(
                f"--address={address!r}: no Ray cluster takes jobs there ({' '.join(str(error).split())[:200]}); "
                "give the address of its dashboard, as in http://HEAD:8265"
            ) from None

    def submit(self, submission: Submission) -> str:
        """Send a job. Returns its id.

        Raises:
            RuntimeError: a job of that name is still there, the part of Ray that starts jobs doesn't answer within a minute,
                or Ray refuses this one. No secret is named.
        """
        identity = self._free_name(submission.name)
        variables = submission.runtime_env.get("env_vars", {})
        # Ray puts the node's own PATH in, which comes first; ours helps where this environment is on a shared disk.
        environment = {**submission.runtime_env, "env_vars": {"PATH": f"${{PATH}}:{_BIN}", **variables}}
        # A cluster that has just started refuses jobs for some seconds; the id makes a second try harmless.
        retrying = Retrying(
            retry=retry_if_exception(lambda error: _NO_AGENT in str(error)),
            stop=stop_after_delay(_AGENT_S),
            wait=wait_fixed(_POLL_S),
            reraise=True,
        )
        with job_folder(submission) as folder:
            try:
                retrying(
                    self.client.submit_job,
                    submission_id=identity,
                    entrypoint=shlex.join(submission.command),
                    metadata={_RUN: submission.name},
                    runtime_env={**environment, "working_dir": str(folder)},
                )
            except (RuntimeError, ValueError, TypeError) as error:
                if _NO_AGENT in str(error):
                    reason = _AGENT_ABSENT
                else:  # Ray's reason, without the traceback of its server
                    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                    reason = re.sub(r"^[\w.]+Error: ", "", lines[-1]) if lines else type(error).__name__
                raise RuntimeError(hide_secrets(f"Ray job {identity}: {reason}", variables)) from None
        return identity

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


# -- a job's environment -----------------------------------------------------------------------------------


def read_runtime_env(file: Path | None, variables: Sequence[str], ours: Mapping[str, str]) -> dict[str, Any]:
    """What Ray takes as `runtime_env`, without a working directory.

    Args:
        file: YAML with Ray's keys (env_vars, pip, uv, ...), or none.
        variables: KEY=VALUE, or KEY alone for its value in `ours`; over those of the file.
        ours: this process's environment.

    Raises:
        ValueError: an unknown key, a value that is no text, a variable that isn't set. No value is ever named.
    """
    environment = _read_file(file) if file is not None else {}
    given = dict(_variable(text, ours) for text in variables)
    return {**environment, "env_vars": {**environment.get("env_vars", {}), **given}}


def hide_secrets(text: str, env_vars: Mapping[str, str]) -> str:
    """The text without the values of variables whose names speak of keys, tokens or passwords."""
    values = (value for name, value in env_vars.items() if _SECRET.search(name) and value)
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _variable(text: str, ours: Mapping[str, str]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not _NAME.fullmatch(name):
        shown = name if equals else "its argument"  # what was meant as a name may be a value
        raise ValueError(
            f"--env: {shown!r} is no variable's name; write --env KEY=VALUE, or --env KEY for your own value"
        )
    if equals:
        return name, value
    if name not in ours:
        raise ValueError(
            f"--env {name}: this environment variable isn't set; export it, or write --env {name}=VALUE"
        )
    return name, ours[name]


def _read_file(file: Path) -> dict[str, Any]:
    from ray.runtime_env import RuntimeEnv

    def refusal(words: str) -> ValueError:
        return ValueError(f"--runtime-env {file}: {words}")

    reason = why_unreadable(file)
    if reason is not None:
        raise refusal(f"{reason}; see docs/cluster.md for an example")
    try:
        environment = read_yaml(file.read_text(encoding="utf-8"))[0] or {}
    except (YamlProblem, UnicodeDecodeError):
        # Without YAML's own words: they may quote what stands there, a secret perhaps.
        raise refusal("not valid YAML; see docs/cluster.md for an example") from None
    if not isinstance(environment, dict):
        raise refusal("must be a mapping, as in env_vars: {NCCL_DEBUG: WARN}")
    allowed = sorted(name for name in RuntimeEnv.known_fields - {"working_dir"} if not name.startswith("_"))
    for key in environment:
        if key == "working_dir":
            raise refusal("working_dir: the config is sent in it; use --working-dir DIR")
        if key not in allowed:
            guess = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {guess[0]!r}?" if guess else ""
            raise refusal(f"{key}: unknown key{hint} (allowed: {', '.join(allowed)})")
    variables = environment.get("env_vars", {})
    if not isinstance(variables, dict):
        raise refusal("env_vars: must be a mapping, as in {NCCL_DEBUG: WARN}")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise refusal(f"env_vars.{name}: must be text; put its value in quotes")
    return environment
