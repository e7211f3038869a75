"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A check's name, how bad it is, what was found, and what to do about it: nothing where all is well."""

    name: str
    level: Level
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert bool(self.fix) == (self.level != "ok"), f"{self.name}: a fix is for what isn't well"
