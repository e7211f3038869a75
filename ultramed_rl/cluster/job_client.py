"""Ray's job server: how it is reached, and how a job of it is submitted, followed and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from ultramed_rl.cluster.private_ray import is_private

_POLL_S = 1.0
_STOP_S = 15.0
_AGENT_S = 60.0
_NO_AGENT = "No available agent"
_BREAKS = 10
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
# Ray lets these win over the address that it is given.
_OVERRULING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def connect_to_jobs(address: str, key: str) -> Any:
    """A client of the job server at `address`, whatever the environment says.

    Args:
        key: where the address comes from, as errors name it: `cluster.address` or `--address`.

    Raises:
        RuntimeError: no Ray cluster takes jobs there, or it wants another token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # To other clusters Ray's client would send the token of our own, which it has read in this process.
    headers = None if is_private(address) else {"Authorization": _authorization()}

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with _without(_OVERRULING):
        try:
            return JobSubmissionClient(address, headers=headers)
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


def _authorization() -> str:
    """The header with the user's token, from where Ray looks for it; empty where there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return f"Bearer {token}" if token else ""


def submit_job(client: Any, identity: str, **request: Any) -> None:
    """Submit under an id of our own. `request`: what Ray's `submit_job` takes.

    Raises:
        RuntimeError: the part of Ray that starts jobs doesn't answer within a minute, or Ray refuses the job.
    """
    # A cluster that has just started refuses jobs for some seconds; the id makes a second try harmless.
    young = retry_if_exception(lambda error: _NO_AGENT in str(error))
    try:
        for attempt in Retrying(
            retry=young, stop=stop_after_delay(_AGENT_S), wait=wait_fixed(_POLL_S), reraise=True
        ):
            with attempt:
                client.submit_job(submission_id=identity, **request)
    except RuntimeError as error:
        if _NO_AGENT not in str(error):
            raise
        raise RuntimeError(
            f"Ray took no job within {_AGENT_S:g} s: the part of it that starts jobs is not up; if its node was started "
            "while another Ray held port 52365, start it again with --dashboard-agent-listen-port=0, else look at "
            "dashboard_agent.log among Ray's logs"
        ) from None


async def follow_log(client: Any, identity: str, say: Callable[[str], Any]) -> None:
    """Give a job's log to `say` as it comes, from its beginning to the job's end, each part once.

    A connection that breaks is made anew. Raises RuntimeError when that fails ten times in a row.
    """
    async for text in _log(client, identity):
        say(text)


async def _log(client: Any, identity: str) -> AsyncIterator[str]:
    import aiohttp

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


def wait_for_end(client: Any, identity: str) -> tuple[str, str]:
    """Wait until a job has ended. Returns its status, in lower case, and Ray's words about it in one line."""
    while not (status := client.get_job_status(identity)).is_terminal():
        time.sleep(_POLL_S)
    words = (client.get_job_info(identity).message or "").partition(", last available")[0]
    return status.value.lower(), " ".join(words.split())


def stop_job(client: Any, identity: str) -> bool:
    """Stop a job, if it still runs, and give it a moment to be gone. Returns whether it has ended by then."""
    if client.get_job_status(identity).is_terminal():
        return True
    client.stop_job(identity)
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        if client.get_job_status(identity).is_terminal():
            return True
        time.sleep(_POLL_S)
    return False


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """The environment without these variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
