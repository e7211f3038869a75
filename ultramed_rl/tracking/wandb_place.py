"""Where wandb is told of a run, by the config and by the variables and files that wandb itself goes by."""

from __future__ import annotations

import netrc
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ultramed_rl.config.run import Tracking

Mode = Literal["online", "offline", "disabled"]
_MODES: tuple[str, ...] = get_args(Mode)
_ALIASES = {"run": "online", "dryrun": "offline"}  # wandb's older names


@dataclass(frozen=True)
class WandbPlace:
    """How and where a run is told to wandb."""

    mode: Mode
    project: str
    entity: str | None

    @classmethod
    def of(cls, tracking: Tracking) -> WandbPlace:
        """What the config says, else wandb's variables, else our defaults.

        Raises:
            ValueError: WANDB_MODE is none of wandb's.
        """
        mode: str = tracking.wandb
        if mode == "auto":
            wanted = os.environ.get("WANDB_MODE", "").lower()
            mode = _ALIASES.get(wanted, wanted) or ("online" if find_wandb_key() else "offline")
            if mode not in _MODES:
                raise ValueError(
                    f"WANDB_MODE={wanted!r}: must be {', '.join(_MODES[:-1])} or {_MODES[-1]}; export one of these, or set "
                    "tracking.wandb"
                )
        project = tracking.project or os.environ.get("WANDB_PROJECT") or "ultramed_rl"
        return cls(cast(Mode, mode), project, tracking.entity or os.environ.get("WANDB_ENTITY") or None)


def find_wandb_key() -> str:
    """Where wandb finds its key on this machine: a variable's name or a file's; "" where there is none."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    file = os.environ.get("NETRC") or "~/.netrc"
    with suppress(OSError, netrc.NetrcParseError):
        if (login := netrc.netrc(os.path.expanduser(file)).authenticators(host)) and login[2]:
            return file
    return ""


def sweep_trial() -> str | None:
    """The id of the trial of a wandb sweep that this process is, as its agent says."""
    return (os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID")) or None
