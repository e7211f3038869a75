"""The config that a run was started with, as whoever only looks at the run reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FILE = "config.yaml"


def read_saved_config(directory: Path) -> dict[str, Any]:
    """The resolved config as plain values: not validated, since an older version may have written it.

    Raises:
        ValueError: the file cannot be read, or is no mapping of sections with a name and, of an online run, rounds.
    """
    file = directory / FILE
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{file}: not the YAML that was written ({why}); put it back from a copy") from None
    if not isinstance(config, dict):
        raise ValueError(
            f"{file}: must be a mapping of sections, not {type(config).__name__}; put it back from a copy"
        )
    run, kind = config.get("run"), config.get("type", "online")
    if not (isinstance(run, dict) and isinstance(kind, str)):
        raise ValueError(f"{file}: has no section run, or no type; put it back from a copy")
    if kind == "online" and type(run.get("rounds")) is not int:
        raise ValueError(
            f"{file}: run.rounds={run.get('rounds')!r}: not a number of rounds; put it back from a copy"
        )
    return config
