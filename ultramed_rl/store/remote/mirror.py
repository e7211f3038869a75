"""A run's folder and its copy at a URL, while one process writes both."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

from ultramed_rl.config import AnyConfig
from ultramed_rl.store.remote.lease import Lease, LostLease
from ultramed_rl.store.remote.place import Patience, RemotePlace
from ultramed_rl.store.remote.publisher import WORKERS, Publisher
from ultramed_rl.store.remote.pull import list_run, pull, reconcile, remove_remote_leftovers
from ultramed_rl.store.remote.versions import Published

CONFIG = "config.yaml"
_LAST_PASSES = 5


def check_url(config: AnyConfig) -> None:
    """Whether a run of this config can be kept at its URL; nothing is asked of the network.

    Raises:
        ValueError: a package is missing, or no such scheme.
    """
    if config.run.url is not None:
        RemotePlace(config.run.url)


class Mirror:
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
        self.place = RemotePlace(url, patience)
        self.published = Published(folder, url)
        self.lease = self.place.reach(lambda: Lease(self.place, every_s))
        self.publisher = Publisher(folder, self.place, self.published, self.lease.check, workers)
        self.problem: Exception | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def behind(self) -> bool:
        """Whether the URL has more than this folder: it was written from another one, or this one isn't whole."""
        if not (self.folder / CONFIG).is_file() or not self.published.complete:
            return True
        return self.lease.before not in (self.published.copy, "")

    def read_config(self) -> bytes | None:
        """The config of the run at the URL; None where there is none."""
        return self.place.reach(lambda: self.place.read(CONFIG))

    def take_up(self) -> None:
        """Make this folder a copy of what is at the URL, unless it is one already and may be ahead of it.

        Raises:
            RuntimeError: the store cannot be reached, or the disk is full.
        """
        self.place.reach(self._take_up)

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
            self._give_back()
        if self.problem is None:
            return
        text = str(self.problem) if isinstance(self.problem, LostLease) else self._what_is_missing()
        if not failed:
            raise RuntimeError(text) from self.problem
        warnings.warn(text, stacklevel=2)

    def _what_is_missing(self) -> str:
        return (
            f"{self.place.url}: the copy isn't whole ({self.problem}); {self.folder} has everything: rerun with "
            "--resume on this machine to publish the rest"
        )

    def _take_up(self) -> None:
        remove_remote_leftovers(self.place)
        if self.behind and list_run(self.place):
            pull(self.place, self.folder, self.published, self.lease.before)
        else:
            reconcile(self.place, self.published)
        self.lease.renew(copy=self.published.copy)

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
                text = f"{self.place.url}: not published ({error}); tried {how}, and the run goes on"
                warnings.warn(text, stacklevel=2)
            self.problem = error
            return False

    def _give_back(self) -> None:
        try:
            self.lease.release()
        except Exception as error:  # it runs out by itself
            self.problem = self.problem or error
