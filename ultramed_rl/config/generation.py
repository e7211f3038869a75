"""A language model behind an OpenAI-compatible API: where it is, how fast it may be asked, what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Budget,
    Concurrency,
    Label,
    Money,
    PerMinute,
    Retries,
    Seconds,
    Variable,
    WebAddress,
)

# Of an endpoint's settings those that decide on its answers; the others say how it is reached and what it may cost.
DECIDES = ("model", "structured", "length_field", "extra")
# Fields of a request's body that are ours to write.
_OURS = ("model", "messages", "stream", "n", "response_format", "max_tokens", "max_completion_tokens", "seed")


class Endpoint(Section):
    """Whom to ask. Limits hold for each process; budgets for all that a run asks of the model.

    `structured`: json_schema lets the endpoint hold to the schema; json_object lets it write JSON, with the
    schema in the prompt; prompt has the schema in the prompt alone. Replies are checked in every case.
    """

    model: Label = Field(min_length=1, description="as the API names it")
    base_url: WebAddress = Field(description="as http://host:8000/v1")
    api_key_env: Variable | None = Field(
        default=None, description="environment variable that holds the API key"
    )
    requests_per_minute: PerMinute | None = Field(default=None, description="of each process; null: no limit")
    tokens_per_minute: PerMinute | None = Field(default=None, description="of prompts and answers together")
    concurrency: Concurrency = Field(default=32, description="requests at a time")
    timeout_s: Seconds = Field(default=180.0, description="seconds for one request")
    retries: Retries = Field(default=6, description="of a request, whatever is wrong with the reply")
    token_budget: Budget | None = Field(default=None, description="tokens that a run may use, in and out")
    money_budget: Money | None = Field(
        default=None, gt=0.0, description="what a run may cost, in the prices' currency"
    )
    prompt_price: Money = Field(default=0.0, description="per million tokens")
    completion_price: Money = Field(default=0.0, description="per million tokens")
    structured: Literal["json_schema", "json_object", "prompt"] = Field(
        default="json_schema", description="how the endpoint is held to JSON"
    )
    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="how the API calls the most tokens of an answer"
    )
    extra: Mapping[str, Any] = Field(
        default={}, description="further fields of each request's body; null leaves one of ours out"
    )

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in _OURS:
            if name in extra:
                raise ValueError(f"extra.{name}={extra[name]!r}: comes with each request; remove it")
        return extra

    @model_validator(mode="after")
    def _money_has_prices(self) -> Endpoint:
        if self.money_budget is not None and self.prompt_price == self.completion_price == 0.0:
            raise ValueError(
                f"money_budget={self.money_budget:g}: nothing costs anything; "
                "set prompt_price and completion_price, or remove it"
            )
        return self
