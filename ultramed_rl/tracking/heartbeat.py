"""The life of a run's process. `status.json` of a run directory: what is being done, how far it is, and by which process; a thread
of its own writes it, so that a slow or full disk neither stops nor slows a training. And SIGTERM, by which docker, Kubernetes,
SLURM, Ray and spot machines ask a process to end: an interruption like Ctrl-C.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

STATUS = "status.json"
_EVERY_S = 2.0
_LAST_S = 5.0  # that the end of a run waits for its last line
_ERROR_LENGTH = 500
_SILENT_S = 30.0  # without a heartbeat, after which its process counts as gone

_current: list[Heartbeat] = []  # a recipe's, and within it a stage's
_links: dict[str, str] = {}
_waits: list[str] = []
_failures: list[float] = []  # when runs of this process failed, by time.monotonic()
_takes_sigterm = False  # whether this process is a command's, so that the signal is ours to take
_sigterm_came = False


@dataclass(eq=False)
class Count:
    """A phase under way: `done` of `total` units, the latter None where nobody has counted them."""

    phase: str
    total: int | None
    unit: str
    started: float = field(default_factory=time.time)
    done: int = 0


class Heartbeat:
    """Writes the status of one directory until it is ended."""

    def __init__(self, directory: Path, stages: Sequence[str]) -> None:
        self.file, self.stages, self.began = directory / STATUS, list(stages), time.time()
        self.phases: list[Count] = []
        self.last: Count | None = None
        self.state, self.error = "running", ""
        self._over, self._warned = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self, state: str, error: str) -> None:
        """Say how it ended; waits for the disk for a few seconds at most."""
        self.state, self.error = state, error[:_ERROR_LENGTH]
        self._over.set()
        self._thread.join(_LAST_S)

    def _beat(self) -> None:
        self._write()
        while not self._over.wait(_EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        at = [self.last, *self.phases][-1]  # another thread opens and closes phases: each is looked at once
        content = {
            **({} if at is None else asdict(at)),
            "state": self.state,
            "error": self.error,
            "began": self.began,
            "updated": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "links": dict(_links),
            "waits": list(_waits),
            "stages": self.stages,
        }
        # The name is one that the store clears away when a killed run is taken up.
        temporary = self.file.with_name(f".tmp-{STATUS}")
        try:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            os.replace(temporary, self.file)
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self.file}: not written ({error}); the run goes on without", stacklevel=2)


@contextmanager
def watched(directory: Path, stages: Sequence[str] = ()) -> Iterator[None]:
    """Keep `status.json` in a directory up to date while its run goes on. `stages`: of a recipe, all of its stages in their
    order."""
    heartbeat = Heartbeat(directory, stages)
    _current.append(heartbeat)
    state, words = "finished", ""
    try:
        yield
    except BaseException as error:
        state, words = "interrupted", str(error)
        if not isinstance(error, (KeyboardInterrupt, SystemExit)):
            state = "failed"
            _failures.append(time.monotonic())
        raise
    finally:
        _current.remove(heartbeat)
        heartbeat.end(state, words)


@contextmanager
def at_work(count: Count) -> Iterator[None]:
    """The innermost watched run does this now."""
    heartbeat = _current[-1] if _current else None
    if heartbeat is None:
        yield
        return
    heartbeat.phases.append(count)
    try:
        yield
    finally:
        heartbeat.last = count
        heartbeat.phases.remove(count)


def note_link(name: str, url: str | None) -> None:
    """A page that shows more of the run under way, as Ray's dashboard does; None where there is none."""
    if url:
        _links[name] = url if "://" in url else f"http://{url}"
    else:
        _links.pop(name, None)


def note_waits(lines: Sequence[str]) -> None:
    """Who waits for whom in the run under way, in sentences; none where nobody does."""
    _waits[:] = lines


def failed_since(moment: float) -> bool:
    """Whether a watched run has failed in this process since then, by `time.monotonic`."""
    return any(failure >= moment for failure in _failures)


def is_alive(directory: Path, heart: Mapping[str, Any]) -> bool:
    """Whether a process writes the run: by its heartbeat, or by the directory's lock where that is silent."""
    if heart.get("state") == "running" and time.time() - heart["updated"] < _SILENT_S:
        import psutil

        return heart["host"] != socket.gethostname() or psutil.pid_exists(int(heart["pid"]))
    # Asks with a shared lock that is given back at once. Only a starting run could be in its way.
    try:
        with (directory / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# -- SIGTERM -----------------------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    """A SIGTERM has come: what ends cleanly at Ctrl-C ends so at this."""


def take_sigterm() -> None:
    """From here on a SIGTERM is raised as `Terminated` in the main thread; a second one ends the process at once."""
    global _takes_sigterm
    _takes_sigterm = True
    keep_sigterm()


def keep_sigterm() -> None:
    """Take the signal back from whoever took it since `take_sigterm`: `ray.init` does, and would end the process with a
    dump of its stack. Does nothing in a process that never took it."""
    if _takes_sigterm and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_sigterm)


def was_terminated() -> bool:
    """Whether a SIGTERM has come: where the main thread waits in Ray, Ray raises KeyboardInterrupt in its place."""
    return _sigterm_came


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    global _takes_sigterm, _sigterm_came
    _takes_sigterm, _sigterm_came = False, True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated
