"""Where metrics go beside metrics.jsonl."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Iterator
from importlib.metadata import version

from ultramed_rl.cli.doctor.finding import Finding
from ultramed_rl.tracking.tracker import INSTALL


def check_wandb() -> Iterator[Finding]:
    """What tracking.wandb=auto would do here. The key isn't shown, nor sent anywhere."""
    if importlib.util.find_spec("wandb") is None:
        yield Finding("wandb", "warn", "not installed", "pip install wandb, or set tracking.wandb=disabled")
        return
    mode = "offline: send it later by `wandb sync RUN/wandb/offline-run-*`"
    if os.environ.get("WANDB_API_KEY"):
        mode = "online by WANDB_API_KEY"
    elif _has_login():
        mode += "; ~/.netrc has a key: tracking.wandb=online uses it"
    yield Finding("wandb", "ok", f"{version('wandb')}, tracking.wandb=auto is {mode}")


def check_tensorboard() -> Iterator[Finding]:
    """The extra that tracking.tensorboard needs."""
    if importlib.util.find_spec("tensorboard") is None:
        yield Finding("tensorboard", "warn", "not installed; tracking.tensorboard needs it", INSTALL)
    else:
        yield Finding("tensorboard", "ok", version("tensorboard"))


def _has_login() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
