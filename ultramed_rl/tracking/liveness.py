"""Whether a run's driver is alive, as far as files and this machine's processes tell."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from ultramed_rl.tracking.status_records import Row

_SILENT_S = 30.0  # without a heartbeat, after which its process counts as gone


def is_alive(directory: Path, heart: Row) -> bool:
    """Whether a process writes the run: by its heartbeat, or by the directory's lock where that is silent."""
    if heart.get("state") == "running" and time.time() - heart["updated"] < _SILENT_S:
        return heart["host"] != socket.gethostname() or _is_process(int(heart["pid"]))
    return _is_locked(directory / ".lock")


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_locked(path: Path) -> bool:
    """Asks with a shared lock that is given back at once. Only a starting run could be in its way."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
