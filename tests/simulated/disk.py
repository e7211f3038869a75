"""A driver that is killed at a write: from then on nothing more reaches the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MONITORS = ("status.json", "timeline.jsonl")  # of threads that write when they like; no run depends on them
_changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
_writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_disks: list[Disk] = []  # under watch now


class Killed(BaseException):
    """The driver is gone."""


class Disk:
    """Counts what changes files under a folder, and kills the driver at one of these changes."""

    def __init__(self, root: Path, kill_at: int | None = None) -> None:
        self.root, self.kill_at = str(root), kill_at
        self.changes = 0
        self.killed = ""  # by which change

    def change(self, what: str, path: str) -> None:
        if self.killed:
            raise Killed(self.killed)
        self.changes += 1
        if self.changes == self.kill_at:
            self.killed = f"change {self.changes}: {what} {path.removeprefix(self.root)}"
            if path.endswith("metrics.jsonl") and what == "open":
                self._write_half_a_line(path)
            raise Killed(self.killed)

    def _write_half_a_line(self, path: str) -> None:
        """The last that the dying driver does."""
        self.killed, killed = "", self.killed
        self.kill_at = None
        with open(path, "a") as file:
            file.write('{"round_ind')
        self.killed = killed

    def holds(self, path: str) -> bool:
        return path.startswith(self.root) and not path.endswith(_MONITORS)


@contextmanager
def watched_disk(root: Path, kill_at: int | None = None) -> Iterator[Disk]:
    """Within, the disk counts and kills."""
    _listen()
    disk = Disk(root, kill_at)
    _disks.append(disk)
    try:
        yield disk
    finally:
        _disks.clear()


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if not _disks:
        return
    if event == "open":
        path, _, flags = arguments
        changes = isinstance(flags, int) and flags & _writing
    elif event in _changes:
        path, changes = arguments[0], True
    else:
        return
    if not (changes and isinstance(path, (str, os.PathLike)) and _disks[0].holds(os.fspath(path))):
        return
    there = os.path.lexists(path)
    if (event == "os.remove" and not there) or (event == "os.mkdir" and there):
        return  # nothing changes
    _disks[0].change(event, os.fspath(path))


def _listen() -> None:
    global _listening
    if not _listening:
        sys.addaudithook(_hear)
        _listening = True


_listening = False
