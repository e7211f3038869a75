"""SIGTERM, by which docker, Kubernetes, SLURM, Ray and spot machines ask a process to end: an interruption like Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_ours = False  # whether this process is a command's, so that the signal is ours to take
_came = False


class Terminated(KeyboardInterrupt):
    """A SIGTERM has come: what ends cleanly at Ctrl-C ends so at this."""


def take_sigterm() -> None:
    """From here on a SIGTERM is raised as `Terminated` in the main thread; a second one ends the process at once."""
    global _ours
    _ours = True
    keep_sigterm()


def keep_sigterm() -> None:
    """Take the signal back from whoever took it since `take_sigterm`: `ray.init` does, and would end the process with a
    dump of its stack. Does nothing in a process that never took it."""
    if _ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)


def was_terminated() -> bool:
    """Whether a SIGTERM has come: where the main thread waits in Ray, Ray raises KeyboardInterrupt in its place."""
    return _came


def _end(number: int, frame: FrameType | None) -> None:
    global _ours, _came
    _ours, _came = False, True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated
