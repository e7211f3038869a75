"""The strict base of every section and of every whole config, and the errors that a bad config raises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ultramed_rl.config.secrets import secret_parts

SECRET = "secret_in_address"  # the kind of pydantic's error
_KEPT = (
    "its address holds {part}, which config.yaml would keep; leave it out and let the environment have it: token_env "
    "and api_key_env name a variable, object stores read their own (AWS_SECRET_ACCESS_KEY)"
)
LONGEST_LINE = 400  # characters of one problem
MOST_PROBLEMS = 20


class ConfigError(ValueError):
    """A config that cannot be run. One line per problem: file, dotted key, value, rule, fix, line."""

    def __init__(self, problems: Sequence[str]) -> None:
        shown = [shorten(problem, LONGEST_LINE) for problem in problems[:MOST_PROBLEMS]]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more problems like these")
        super().__init__("\n".join(shown))
        self.problems = shown


class Problems(ConfigError):
    """Broken rules whose lines begin with the dotted key: whoever knows the file puts its name before them."""

    def __init__(self, problems: Sequence[str]) -> None:
        ValueError.__init__(self, "\n".join(problems))
        self.problems = list(problems)


class Section(BaseModel):
    """A config section: frozen, strict about types, finite, closed to unknown keys, and without secrets in addresses."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    @field_validator("*")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        for place, part in secret_parts(value):
            raise PydanticCustomError(SECRET, _KEPT, {"place": place, "part": part})
        return value

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, defaults included, that validate to an equal section."""
        return self.model_dump(mode="json")


def shorten(text: str, most: int) -> str:
    """The text as one printable line of at most `most` characters; what is too long loses its middle."""
    text = text if len(text) <= 2 * most else text[:most] + text[-most:]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    head = 2 * most // 3
    return line if len(line) <= most else f"{line[:head]}…{line[len(line) - (most - head - 1) :]}"


def show(value: object) -> str:
    """A value as an error shows it: short, whatever somebody wrote there."""
    if isinstance(value, dict):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # as the file has it
    if isinstance(value, list) and len(value) > 8:
        return f"a list of {len(value)}"
    return shorten(repr(value[:200] if isinstance(value, str) else value), 60)


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


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a key may hold, in the order of the schema."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return [model for part in inner for model in sections_in(part)]
