"""Language models that judge: how one is asked, behind an API or on the run's own engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ultramed_rl.config.base import Section, key
from ultramed_rl.config.cluster import EngineGroup
from ultramed_rl.config.limits import (
    Address,
    Concurrency,
    KeyVariable,
    Label,
    Retries,
    Seconds,
    Temperature,
    Tokens,
    WebAddress,
)
from ultramed_rl.config.models import ModelSettings

POLICY: Literal["policy"] = "policy"  # in the place of an engine: the run's rollout engines


class JudgeEngine(EngineGroup, ModelSettings):
    """vLLM engines of the run's own that a judge is loaded into once. `max_length` is of a request with its reply; no verdict is
    read in what `thinking` delimits."""

    path: Address = Field(description="a local directory, a hub id or offline://NAME")
    chat_template: Address | None = key(None, "chatml, llama3 or a Jinja file; null: the tokenizer's own")
    max_length: Annotated[Tokens, Field(gt=8)] = key(8192, "tokens of a request and its reply together")


class JudgeModel(Section):
    """A language model that judges: behind an OpenAI-compatible API (`model`, `base_url`), such as `vllm serve`'s, or on engines of
    the run's own (`engine`), which judges with an equal `engine` share."""

    model: Label | None = key(None, "as the API names it", min_length=1)
    base_url: WebAddress | None = key(None, "as http://host:8000/v1")
    api_key_env: KeyVariable = None
    engine: Literal["policy"] | JudgeEngine | None = key(
        None, "engines of the run's own; policy: the rollout engines, so that the policy judges itself"
    )
    temperature: Temperature = key(0.0, "of the judge's replies")
    max_tokens: Tokens = key(256, "of one reply, its thought included")
    concurrency: Annotated[Concurrency, Field(le=256)] = key(8, "requests to an API at a time")
    timeout_s: Seconds = key(120.0, "seconds for one request to an API")
    retries: Retries = key(3, "of a request that failed, and of a reply that cannot be read")

    def problems(self) -> Iterator[str]:
        if (self.engine is None) == (self.base_url is None) or (self.base_url is None) != (
            self.model is None
        ):
            yield (
                f"model={self.model!r}, base_url={self.base_url!r} and {'an' if self.engine else 'no'} engine: set model and "
                "base_url (an API), or engine alone (engines of the run's own)"
            )
        if isinstance(self.engine, JudgeEngine) and self.engine.max_length <= self.max_tokens:
            yield (
                f"engine.max_length={self.engine.max_length}: leaves no room for a request beside max_tokens={self.max_tokens}; "
                "raise it or lower max_tokens"
            )

    @property
    def shown(self) -> str:
        """How errors call it."""
        if isinstance(self.engine, JudgeEngine):
            return self.engine.path
        return self.model or POLICY


class StatementJudge(JudgeModel):
    """Who says of each of an item's statements whether an answer entails or contradicts it."""

    template: Address | None = key(None, "a text file with $question, $answer and $statement; null: our own")


def own_engines(judges: Mapping[str, Any]) -> dict[str, JudgeEngine]:
    """The engines that judges have besides the policy's, equal ones once, by the key of the first judge of each."""
    found: dict[str, JudgeEngine] = {}
    for name, judge in judges.items():
        engine = getattr(judge, "engine", None)
        if isinstance(engine, JudgeEngine) and engine not in found.values():
            found[name] = engine
    return found
