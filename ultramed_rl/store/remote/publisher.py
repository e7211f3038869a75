"""One publication after the other: what a folder's files have become goes to its URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ultramed_rl.store.remote.place import RemotePlace
from ultramed_rl.store.remote.plan import Plan, Snapshot, is_bound, make_plan, take_snapshot
from ultramed_rl.store.remote.versions import Published, Version, pinned

WORKERS = 8


class Publisher:
    """Publishes one folder. `guard` raises when another process has taken over."""

    def __init__(
        self,
        folder: Path,
        place: RemotePlace,
        published: Published,
        guard: Callable[[], None],
        workers: int = WORKERS,
    ) -> None:
        self.folder, self.place, self.published = folder, place, published
        self.guard, self.workers = guard, workers

    def publish(self) -> bool:
        """Bring the URL up to date; whether it is, or files have changed under way and it takes another time.

        A kill, or an error, at any place leaves a run there that can be taken up.
        """
        versions = self.published.versions
        snapshot = take_snapshot(self.folder, versions)
        if not snapshot.settled:
            return False
        plan = make_plan(self.folder, snapshot, versions)
        return plan.empty or self._carry_out(plan, snapshot)

    def _carry_out(self, plan: Plan, snapshot: Snapshot) -> bool:
        self.guard()
        for name in plan.withdraw:
            self._remove(name)
        self._each(self._remove, plan.clear)
        known = snapshot.files.keys() | self.published.versions.keys()

        def upload(name: str) -> bool:
            return self._upload(name, snapshot.files[name] if is_bound(name, known) else None)

        if not all(self._each(upload, plan.inputs)) or not all(self._each(upload, plan.data)):
            return False
        self.guard()
        for name in plan.manifests:
            if name not in snapshot.steady or not self._upload(name, snapshot.files[name]):
                return False  # nor what was written after it
        for name in plan.revoke:
            self._remove(name)
        self._each(self._remove, plan.delete)
        for name in plan.delete_inputs:
            self._remove(name)
        return True

    def _upload(self, name: str, wanted: Version | None) -> bool:
        """Upload a file; whether it was the wanted version of it, any if that is None, and is there now."""
        try:
            with pinned(self.folder / name) as (path, version):
                if wanted is not None and version != wanted:
                    return False
                self.place.put(path, name)
        except FileNotFoundError:
            if (self.folder / name).exists():
                raise  # the store's
            return wanted is None
        self.published.add(name, version)
        return True

    def _remove(self, name: str) -> None:
        self.place.delete(name)
        self.published.drop(name)

    def _each(self, action: Callable[[str], object], names: Iterable[str]) -> list[object]:
        """On several files at once; the first error ends it."""
        names = list(names)
        if self.workers == 1 or len(names) < 2:
            return [action(name) for name in names]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="publish") as pool:
            futures = [pool.submit(action, name) for name in names]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
