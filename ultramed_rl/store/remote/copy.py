"""A run's folder and its copy at a URL, while one process writes both."""

from __future__ import annotations

import threading
import warnings
from functools import cached_property
from pathlib import Path

from ultramed_rl.config import AnyConfig
from ultramed_rl.store.remote.folder import Patience, RemoteFolder
from ultramed_rl.store.remote.index import Index, Published, read_index
from ultramed_rl.store.remote.lease import Lease, LostLease
from ultramed_rl.store.remote.publisher import WORKERS, Publisher
from ultramed_rl.store.remote.pull import pull, reconcile

CONFIG = "config.yaml"
_LAST_PASSES = 5


def check_url(config: AnyConfig) -> None:
    """Whether a run of this config can be kept at its URL; nothing is asked of the network.

    Raises:
        ValueError: a package is missing, or no such scheme.
    """
    if config.run.url is not None:
        RemoteFolder(config.run.url)


class RemoteCopy:
    """Keeps a run's copy at a URL: take it, pull what is there, start to publish, close.

    An upload that fails is tried again, then once more with every publication, and warned about; it never stops
    the run.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        every_s: float,
        *,
        patience: Patience | None = None,
        workers: int = WORKERS,
    ) -> None:
        """Take the URL's lease.

        Raises:
            ValueError: another process publishes there, or nothing can open such a URL.
            RuntimeError: the store cannot be reached.
        """
        self.folder, self.every_s = folder, every_s
        self.remote = RemoteFolder(url, patience)
        self.published = Published(folder, url)
        self.lease = self.remote.reach(lambda: Lease(self.remote, every_s))
        self.publisher = Publisher(folder, self.remote, self.published, self.lease.check, workers=workers)
        self.problem: Exception | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @cached_property
    def index(self) -> Index:
        """What was at the URL when it was taken."""
        return self.remote.reach(lambda: read_index(self.remote))

    @property
    def behind(self) -> bool:
        """Whether the URL has more than this folder: it was written from another one, or this one isn't whole."""
        if not (self.folder / CONFIG).is_file() or not self.published.complete:
            return True
        return self.index.copy not in (self.published.copy, "")

    def read_config(self) -> bytes | None:
        """The config of the run at the URL; None where there is none."""
        key = self.index.files.get(CONFIG)
        return None if key is None else self.remote.reach(lambda: self.remote.read(key))

    def take_up(self) -> None:
        """Make this folder a copy of what is at the URL, unless it is one already and may be ahead of it.

        Raises:
            RuntimeError: the store cannot be reached, or the disk is full.
        """
        self.remote.reach(self._take_up)

    def start(self) -> None:
        """Publish from now on."""
        self._thread = threading.Thread(target=self._keep_up, name="publish", daemon=True)
        self._thread.start()

    def close(self, failed: bool = False) -> None:
        """Publish what is left and give the lease back.

        Args:
            failed: the run ends with an error of its own, so that a copy that isn't whole is only warned about.

        Raises:
            RuntimeError: the copy isn't whole.
        """
        self._over.set()
        try:
            if self._thread is not None:
                self._thread.join()
                self._publish_all()
        finally:
            try:
                self.lease.release()
            except Exception as error:  # it runs out by itself
                self.problem = self.problem or error
        if self.problem is None:
            return
        text = str(self.problem)
        if not isinstance(self.problem, LostLease):
            text = (
                f"{self.remote.url}: the copy isn't whole ({self.problem}); {self.folder} has everything: rerun with "
                "--resume on this machine to publish the rest"
            )
        if not failed:
            raise RuntimeError(text) from self.problem
        warnings.warn(text, stacklevel=2)

    def _take_up(self) -> None:
        if self.behind and self.index.files:
            pull(self.remote, self.folder, self.published, self.index)
        else:
            reconcile(self.remote, self.published)
        self.publisher.index = self.index
        self.publisher.claim()

    def _keep_up(self) -> None:
        while not self._over.wait(self.every_s):
            self._attempt()
            if isinstance(self.problem, LostLease):
                return

    def _publish_all(self) -> None:
        for _ in range(_LAST_PASSES):
            if self._attempt() or self.problem is not None:
                return
        self.problem = RuntimeError("its files go on changing")

    def _attempt(self) -> bool:
        """One publication; whether the URL is up to date."""
        try:
            done = self.publisher.publish()
            self.problem = None
            return done
        except Exception as error:
            if self.problem is None and not self._over.is_set():
                how = "no more" if isinstance(error, LostLease) else f"again every {self.every_s:g} s"
                text = f"{self.remote.url}: not published ({error}); tried {how}, and the run goes on"
                warnings.warn(text, stacklevel=2)
            self.problem = error
            return False
