"""Who writes a run's copy at its URL: one process at a time, on whatever machine."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ultramed_rl.store.remote.folder import RemoteFolder

WRITER = "writer.json"
_MISSED = 3  # renewals that a living owner may miss
_held: set[str] = set()  # tokens of this process


class LostLease(RuntimeError):
    """Another process has taken the run over."""


@dataclass(frozen=True)
class Writer:
    """The process that writes, or wrote last, as it is kept at the URL.

    `pid` is one of the process ids of `namespace`; times in Unix seconds.
    """

    token: str
    host: str
    pid: int
    namespace: str
    began: float
    renewed: float
    every_s: float
    released: bool = False

    def alive(self, now: float) -> bool:
        """Whether it may still write: by its last renewal, on this machine also by its process."""
        if self.released or now - self.renewed >= _MISSED * self.every_s:
            return False
        if not self.namespace or self.namespace != _namespace():
            return True
        return self.token in _held if self.pid == os.getpid() else Path(f"/proc/{self.pid}").exists()


class Lease:
    """The right to write at one URL. It is renewed by a thread of its own, since an upload may take long."""

    def __init__(self, remote: RemoteFolder, every_s: float) -> None:
        """Take it.

        Raises:
            ValueError: another process has it.
        """
        self.remote, self.every_s = remote, every_s
        self.lost: LostLease | None = None
        self._over, self._lock = threading.Event(), threading.Lock()
        found = _read(remote)
        now = time.time()
        if found is not None and found.alive(now):
            raise self._refusal(found)
        self.mine = Writer(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            namespace=_namespace(),
            began=now,
            renewed=now,
            every_s=every_s,
        )
        self._take(found is None)
        _held.add(self.mine.token)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LostLease where another process has taken it."""
        if self.lost is not None:
            raise self.lost
        found = _read(self.remote)
        if found is None or found.token != self.mine.token:
            taker = f"process {found.pid} on {found.host}" if found else "somebody who deleted writer.json"
            self.lost = LostLease(
                f"{self.remote.url}: taken over by {taker}; what this process makes is no longer published: stop "
                "one of the two"
            )
            raise self.lost

    def renew(self, released: bool = False) -> None:
        """Say that this process still writes. Raises like `check`."""
        with self._lock:
            self.check()
            self.mine = replace(self.mine, renewed=time.time(), released=released)
            self.remote.write_json(WRITER, asdict(self.mine))

    def release(self) -> None:
        """Let others write; nothing where it was lost."""
        self._over.set()
        self._thread.join()
        try:
            if self.lost is None:
                self.renew(released=True)
        except LostLease:
            return
        finally:
            _held.discard(self.mine.token)

    def _take(self, first: bool) -> None:
        with suppress(FileExistsError):
            (self.remote.create_json if first else self.remote.write_json)(WRITER, asdict(self.mine))
        found = _read(self.remote)
        if found is None or found.token != self.mine.token:
            raise self._refusal(found or self.mine)

    def _keep(self) -> None:
        while not self._over.wait(self.every_s):
            try:
                self.renew()
            except LostLease:
                return  # the next publication says so
            except Exception:  # an outage: the lease may run out, and still be ours after it
                continue

    def _refusal(self, other: Writer) -> ValueError:
        left = max(0.0, other.renewed + _MISSED * other.every_s - time.time())
        return ValueError(
            f"{self.remote.url}: another process is publishing this run (process {other.pid} on {other.host}, since "
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(other.began))} UTC); stop it, or wait {left:.0f} s if it "
            "is dead"
        )


def _read(remote: RemoteFolder) -> Writer | None:
    content = remote.read_json(WRITER)
    if content is None:
        return None
    try:
        known = {field.name for field in fields(Writer)}
        return Writer(**{"namespace": "", **{key: content[key] for key in known & content.keys()}})
    except TypeError:
        raise ValueError(
            f"{remote.url}/{WRITER}: not what was written; delete it if nobody writes there"
        ) from None


def _namespace() -> str:
    """The same for processes whose ids can be compared: one boot of one machine, one container. Nothing where that
    cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
