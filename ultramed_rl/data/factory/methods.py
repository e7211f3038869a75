"""The ways in which a question is made harder: text files with a line "name: what to do" each."""

from __future__ import annotations

from pathlib import Path


def read_methods(name: str) -> dict[str, str]:
    """What to do, by the method's name, out of the file NAME.txt beside this one."""
    lines = Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.partition(": ") for line in lines if line.strip()]
    assert all(before and after for before, _, after in parts), f"{name}.txt: a line without a name"
    return {before: after for before, _, after in parts}
