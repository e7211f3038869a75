"""The strict base of every config section and the one error that a bad config raises."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from ultramed_rl.config.addresses import secret_parts

SECRET = "secret_in_address"  # the kind of pydantic's error
_KEPT = (
    "its address holds {part}, which config.yaml would keep; leave it out and let the environment have it: token_env "
    "and api_key_env name a variable, object stores read their own (AWS_SECRET_ACCESS_KEY)"
)


class ConfigError(ValueError):
    """A config that cannot be run. One line per problem: file, dotted key, value, rule, cure."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    """A config section: frozen, strict about types, closed to unknown keys, and without secrets in addresses."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), hide_input_in_errors=True
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
