"""Weights that are a number: what a model would compute follows from it, and a step of training makes another."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ultramed_rl.learning.seeds import seeded_number

_FILE, _MARK = "model.safetensors", b"simulated "


def mix(*parts: object) -> str:
    """Other weights, of all that they follow from."""
    return f"{seeded_number(*parts):016x}"


def read_weights(directory: str | Path) -> str:
    """Those of a checkpoint, simulated or real."""
    content = (Path(directory) / _FILE).read_bytes()
    if content.startswith(_MARK):
        return content.removeprefix(_MARK).decode()
    return hashlib.sha256(content).hexdigest()[:16]


def write_weights(directory: str | Path, weights: str) -> None:
    """A checkpoint of them."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    (Path(directory) / "config.json").write_text('{"architectures": ["Simulated"]}')
    (Path(directory) / _FILE).write_bytes(_MARK + weights.encode())
