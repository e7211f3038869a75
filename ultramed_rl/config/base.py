"""The strict base of every section and of every whole config, and the errors that a bad config raises."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ultramed_rl.config.secrets import secret_parts

T = TypeVar("T")
SECRET = "secret_in_address"  # the kind of pydantic's error
_KEPT = (
    "its address holds {part}, which config.yaml would keep; leave it out and let the environment have it: token_env "
    "and api_key_env name a variable, object stores read their own (AWS_SECRET_ACCESS_KEY)"
)
LONGEST_PROBLEM = (
    440  # characters, without its file: how long a path is must not decide what of a fix is shown
)
LONGEST_LINE = LONGEST_PROBLEM + 200
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
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        for place, part in secret_parts(value):
            raise PydanticCustomError(SECRET, _KEPT, {"place": place, "part": part})
        return value

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        if problems := list(self.problems()):
            raise Problems(problems)
        return self

    def problems(self) -> Iterator[str]:
        """The rules across keys that are broken, a line each: the section's own key, value, rule, fix."""
        yield from ()

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, defaults included, that validate to an equal section."""
        return self.model_dump(mode="json")


def key(default: T, meaning: str, **bounds: Any) -> T:
    """A section's key that may be left out: its default, what it means, and bounds of other sorts than its kind has; the
    closer one of a sort that it has stands in the type, as in `Annotated[Few, Field(gt=1)]`."""
    value: T = Field(default=default, description=meaning, **bounds)
    return value


def order_rules(section: Section, low: str, high: str, *, equal: bool = True) -> Iterator[str]:
    """The broken rule that a section's key `low` is below its key `high`, or equal to it."""
    least, most = getattr(section, low), getattr(section, high)
    if least > most or (least == most and not equal):
        yield f"{low}={least}: {'exceeds' if equal else 'must be below'} {high}={most}; exchange them"


def sample_rules(samples: int, temperature: float | None, section: str = "") -> Iterator[str]:
    """The broken rule that several answers to a prompt must be able to differ."""
    if samples > 1 and temperature == 0.0:
        rule = f"at {section}temperature=0 they are all alike; raise the temperature or set samples=1"
        yield f"{section}samples={samples}: {rule}"


def repeated(names: Iterable[str]) -> list[str]:
    """The names that stand more than once, sorted."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; a list stays whole unless it holds sections."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        settings |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return settings


def texts_of(node: Any, key: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Every text of a config: its dotted key, the key's last name that is a field's, and the text."""
    if isinstance(node, str):
        yield key, name, node
    elif isinstance(node, Mapping):
        for step, value in node.items():
            below = name if name in {"policies", "chat_templates"} else str(step)
            yield from texts_of(value, f"{key}.{step}" if key else str(step), below)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from texts_of(value, f"{key}.{number}", name)


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


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a key may hold, in the order of the schema."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return [model for part in inner for model in sections_in(part)]
