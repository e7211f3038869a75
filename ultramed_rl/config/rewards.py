"""Scorers other than one reward model: terms that are summed by weight, and ensembles of reward models."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from ultramed_rl.config.addresses import web_address
from ultramed_rl.config.base import Section


def _not_zero(weight: float) -> float:
    if weight == 0.0:
        raise ValueError("weight=0: a term without weight does nothing; remove the term")
    return weight


Finite = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[Finite, AfterValidator(_not_zero)]


class _Term(Section):
    """What every term has: `weight` may be negative; `name` is the term's column in the scored table."""

    weight: Weight = Field(
        default=1.0, description="factor in the sum of all terms; may be negative, never 0"
    )


class AnswerTerm(_Term):
    """Whether the final answer, a letter or a number, is that of the prompt's reference answer.

    A prompt without such a reference gives 0 to all its answers, so that the other terms decide there.
    """

    type: Literal["answer"] = "answer"
    name: str = Field(default="answer", min_length=1, description="the term's column in the scored table")
    kind: Literal["letter", "number", "auto"] = Field(
        default="auto", description="auto: a letter where the reference names one, else a number"
    )
    relative_tolerance: float = Field(
        default=1e-3, ge=0.0, lt=1.0, description="numbers are equal up to this part of the reference's"
    )
    absolute_tolerance: float = Field(
        default=0.0, ge=0.0, allow_inf_nan=False, description="numbers are equal up to this difference"
    )
    right: Finite = Field(default=1.0, description="score of the right answer")
    wrong: Finite = Field(default=0.0, description="score of a wrong answer")
    missing: Finite = Field(default=0.0, description="no answer can be read, or several that contradict")


class LengthTerm(_Term):
    """The answer's tokens: 1 within [low, high], linearly down to 0 at `falloff` tokens outside; or, with
    `free`, minus one for every token over it."""

    type: Literal["length"] = "length"
    name: str = Field(default="length", min_length=1, description="the term's column in the scored table")
    low: int | None = Field(default=None, ge=0, description="fewest tokens of the window")
    high: int | None = Field(default=None, ge=0, description="most tokens of the window")
    falloff: int | None = Field(
        default=None, gt=0, description="tokens outside the window at which the score is 0"
    )
    free: int | None = Field(default=None, ge=0, description="tokens that cost nothing; without a window")

    @model_validator(mode="after")
    def _one_form(self) -> LengthTerm:
        window = (self.low, self.high, self.falloff)
        whole, none = all(x is not None for x in window), all(x is None for x in window)
        if not (whole if self.free is None else none):
            raise ValueError(
                f"length: low={self.low} high={self.high} falloff={self.falloff} free={self.free}: "
                "set either low, high and falloff (a window), or free alone (a penalty per token)"
            )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"length.low={self.low}: exceeds length.high={self.high}; exchange them")
        return self


class FormatTerm(_Term):
    """`passed` where the answer keeps every rule that is set, `failed` where it breaks one.

    The patterns are Python's, searched for anywhere in the text.
    """

    type: Literal["format"] = "format"
    name: str = Field(default="format", min_length=1, description="the term's column in the scored table")
    must_match: str | None = Field(default=None, description="a pattern that must be found")
    must_not_match: str | None = Field(default=None, description="a pattern that must not be found")
    ended: bool = Field(default=False, description="the answer must have ended by itself, not been cut off")
    passed: Finite = Field(default=0.0, description="score where every rule is kept")
    failed: Finite = Field(default=-1.0, description="score where one is broken")

    @field_validator("must_match", "must_not_match")
    @classmethod
    def _compiles(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"format.{info.field_name}={pattern!r}: not a regular expression ({error}); "
                "escape what is meant literally with \\"
            ) from None
        return pattern

    @model_validator(mode="after")
    def _has_a_rule(self) -> FormatTerm:
        if self.must_match is None and self.must_not_match is None and not self.ended:
            raise ValueError("format: no rule; set must_match, must_not_match or ended")
        return self


class HttpTerm(_Term):
    """A reward server that speaks OpenRLHF's protocol, such as `ultramed-rl serve-reward`."""

    type: Literal["http"] = "http"
    name: str = Field(default="http", min_length=1, description="the term's column in the scored table")
    url: str = Field(description="the whole address, as http://host:5000/get_reward")
    token_env: str | None = Field(
        default=None, min_length=1, description="environment variable that holds the bearer token"
    )
    tokenizer: str | None = Field(
        default=None,
        description="whose chat template the server's model reads (path or hub id); null: the policy's",
    )
    timeout_s: float = Field(
        default=180.0, gt=0.0, allow_inf_nan=False, description="seconds for one request"
    )
    retries: int = Field(default=5, ge=0, le=20, description="of a request that failed")
    batch_size: int = Field(default=64, gt=0, description="answers per request")
    concurrency: int = Field(default=4, gt=0, le=256, description="requests at a time")

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        return web_address(url, "http.url")


class Scale(Section):
    """The grades that a judge may give; they become 0 to 1."""

    low: Finite = Field(default=1.0, description="the worst grade, which becomes 0")
    high: Finite = Field(default=10.0, description="the best grade, which becomes 1")

    @model_validator(mode="after")
    def _ascends(self) -> Scale:
        if self.low >= self.high:
            raise ValueError(f"scale.low={self.low:g}: must be below scale.high={self.high:g}; exchange them")
        return self


class ApiModel(Section):
    """A language model behind an OpenAI-compatible API, such as `vllm serve`'s, and how it is asked."""

    model: str = Field(min_length=1, description="as the API names it")
    base_url: str = Field(description="as http://host:8000/v1")
    api_key_env: str | None = Field(
        default=None, min_length=1, description="environment variable that holds the API key"
    )
    temperature: float = Field(default=0.0, ge=0.0, le=2.0, description="of the judge's replies")
    max_tokens: int = Field(default=256, gt=0, description="of one reply")
    concurrency: int = Field(default=8, gt=0, le=256, description="requests at a time")
    timeout_s: float = Field(
        default=120.0, gt=0.0, allow_inf_nan=False, description="seconds for one request"
    )
    retries: int = Field(
        default=3, ge=0, le=20, description="of a request that failed, and of a reply that cannot be read"
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        return web_address(url, "judge.base_url")


class StatementJudge(ApiModel):
    """Who says of each of an item's statements whether an answer entails or contradicts it."""

    template: str | None = Field(
        default=None, description="a text file with $question, $answer and $statement; null: our own"
    )


class JudgeTerm(_Term, ApiModel):
    """The grade of a language model behind an OpenAI-compatible API."""

    type: Literal["judge"] = "judge"
    name: str = Field(default="judge", min_length=1, description="the term's column in the scored table")
    template: str | None = Field(
        default=None,
        description="a text file with $question, $answer and perhaps $reference, $low, $high; null: our own",
    )
    scale: Scale = Scale()
    samples: int = Field(default=1, gt=0, le=64, description="grades per answer, of which the mean counts")

    @model_validator(mode="after")
    def _samples_differ(self) -> JudgeTerm:
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError(
                f"judge.samples={self.samples}: at judge.temperature=0 they are all alike; "
                "raise the temperature or set samples=1"
            )
        return self


RewardTerm = Annotated[
    AnswerTerm | LengthTerm | FormatTerm | HttpTerm | JudgeTerm, Field(discriminator="type")
]


class Ensemble(Section):
    """Several reward models. `uncertainty`: their mean minus `penalty` standard deviations (of the members
    as a population); arXiv 2310.02743 takes the variance, which has no unit to compare with a reward's."""

    paths: list[str] = Field(min_length=2, description="the reward models: local directories or hub ids")
    combine: Literal["mean", "min", "uncertainty"] = Field(
        default="mean", description="how the members' scores become one"
    )
    penalty: float | None = Field(
        default=None,
        ge=0.0,
        allow_inf_nan=False,
        description="for uncertainty: standard deviations that are taken off the mean",
    )

    @model_validator(mode="after")
    def _rules(self) -> Ensemble:
        twice = sorted({path for path in self.paths if self.paths.count(path) > 1})
        if twice:
            raise ValueError(f"ensemble.paths: {twice[0]!r} stands twice; members must differ")
        if (self.combine == "uncertainty") != (self.penalty is not None):
            raise ValueError(
                f"ensemble.penalty={self.penalty}: goes with combine=uncertainty and is needed there, say "
                f"1.0; here combine={self.combine}"
            )
        return self
