"""What may fail without stopping a run: it is retried, then given up with one warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable

_ATTEMPTS = 3


class Guard:
    """One part of tracking, such as wandb's metrics; once given up it is left alone."""

    def __init__(self, name: str, kept: str = "metrics.jsonl has all metrics") -> None:
        self.name, self.kept, self.working = name, kept, True

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do it, unless this part was given up before."""
        if not self.working:
            return
        from tenacity import Retrying, stop_after_attempt, wait_random_exponential

        wait = wait_random_exponential(0.1, max=2)
        try:
            Retrying(stop=stop_after_attempt(_ATTEMPTS), wait=wait, reraise=True)(action)
        except Exception as error:
            self.working = False
            text = f"{self.name} failed to {what} ({error}); going on without it: {self.kept}"
            warnings.warn(text, stacklevel=2)
