"""Configs whose sections have rules together."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from ultramed_rl.config.base import Problems, Section


class Checked(Section):
    """A whole config. Each broken rule across sections is a line of its own."""

    def problems(self) -> list[str]:
        """The rules that are broken: value, rule, fix."""
        return []

    @model_validator(mode="after")
    def _rules_across_sections(self) -> Self:
        problems = self.problems()
        if problems:
            raise Problems(problems)
        return self
