"""What is tracked: the kinds of metrics, and who may receive them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ultramed_rl.tracking.round_files import Made, Sample

if TYPE_CHECKING:  # the command line tells of progress before it knows of configs
    from ultramed_rl.config.run import RunName, Tracking


class TrackedConfig(Protocol):
    """A config of any kind that is tracked."""

    @property
    def type(self) -> str: ...
    @property
    def run(self) -> RunName: ...
    @property
    def tracking(self) -> Tracking: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


Kind = Literal["step", "round", "evaluation", "data"]
# The axis and the prefix under which each kind is shown.
PANELS: dict[Kind, tuple[str, str]] = {
    "step": ("policy_step", "train"),
    "round": ("round", "round_metrics"),
    "evaluation": ("policy_step", "held_out"),
    "data": ("data_step", "data"),
}


class Backend(Protocol):
    """One who shows what is tracked. Any of these may raise: it is retried, and the run goes on without."""

    name: str

    def start(self) -> None: ...

    def log(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None: ...

    def show(self, samples: Sequence[Sample], step: int) -> None:
        """Samples of a round."""
        ...

    def keep(self, made: Sequence[Made]) -> None:
        """What a round or a stage made, and out of what."""
        ...

    def finish(self, failed: bool) -> None: ...
