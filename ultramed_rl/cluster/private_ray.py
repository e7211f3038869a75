"""A Ray of this process's own, for whatever no cluster is named for; it ends with the process.

Its ports are free ones and its files lie in a folder of its own, so that another Ray on the machine neither disturbs it
nor is disturbed: nothing reads or writes `/tmp/ray`.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from ultramed_rl.tracking.heartbeat import failed_since, note_link
from ultramed_rl.tracking.voice import say

LOGS, _LOCK, _SPILLED = "session_latest/logs", "lock", "spilled"
_PREFIX = "umrl-"
_SOCKET_BYTES = 107  # that Linux allows in the path of a socket
_LONGEST = f"/{_PREFIX}12345678/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
FULL = 0.95  # of a disk, from which Ray refuses to write objects
_LINK = "ray logs"


@dataclass(frozen=True)
class _Started:
    """The folder, its lock (held for as long as this process lives), and when it was made."""

    folder: Path
    lock: IO[str]
    moment: float


_started: list[_Started] = []  # one at most


def start_private_ray(
    cpus: float | None = None, *, dashboard: bool = False, store_bytes: int | None = None
) -> str:
    """Start a Ray on this machine and connect this process to it; one that was started before ends.

    Args:
        cpus: that its actors share; None for the machine's.
        dashboard: with the dashboard, which takes jobs.
        store_bytes: of the object store; None for what Ray finds right.

    Returns:
        The dashboard's address, as in http://127.0.0.1:40511; empty without one.

    Raises:
        ValueError: no folder for its files, or RAY_TMPDIR is too long a path; see `choose_parent`.
    """
    import ray

    stop_private_ray()
    parent = choose_parent()
    remove_spilled(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = (folder / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    _started.append(_Started(folder, lock, time.monotonic()))
    (folder / _SPILLED).mkdir()
    note_link(_LINK, (folder / LOGS).as_uri())
    with _alone():
        context = ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=cpus,
            include_dashboard=dashboard,
            dashboard_port=0,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=store_bytes,
            object_spilling_directory=str(folder / _SPILLED),
            _temp_dir=str(folder),
        )
    return f"http://{context.dashboard_url}" if dashboard else ""


@atexit.register
def stop_private_ray() -> None:
    """End the Ray that `start_private_ray` started, if it did, and remove its folder; its logs stay where a run failed
    meanwhile."""
    if not _started:
        return
    import ray

    ray.shutdown()
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
def _alone() -> Iterator[None]:
    """What `ray.init` cannot be told: a free port for the part that starts jobs, and neither the autoscaler nor the
    reader of logs, which nobody asks here."""
    from ray._private import parameter

    make = parameter.RayParams

    def make_alone(**given: Any) -> Any:
        ours = {"dashboard_agent_listen_port": 0, "no_monitor": True, "include_log_monitor": False}
        return make(**(given | ours))

    variables = {
        "DASHBOARD_METRIC_PORT": "0",
        # Ray's coming default: an actor without GPUs keeps the environment that it was given.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    with patch.object(parameter, "RayParams", make_alone), patch.dict(os.environ, variables):
        yield
