"""What scores answers: reward models, ensembles of them, and terms that are summed by weight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Concurrency,
    Count,
    CountOrZero,
    Factor,
    FactorOrZero,
    Few,
    Label,
    LearningRate,
    Pattern,
    Points,
    PositiveShare,
    PositiveTemperature,
    Retries,
    Samples,
    Seconds,
    Share,
    Temperature,
    Tokens,
    Variable,
    WebAddress,
)
from ultramed_rl.config.models import Architecture, Precision
from ultramed_rl.config.rounds import Optimization


def _not_zero(weight: float) -> float:
    if weight == 0.0:
        raise ValueError("weight=0: a term without weight does nothing; remove the term")
    return weight


Weight = Annotated[Points, AfterValidator(_not_zero)]


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
    name: Label = Field(default="answer", min_length=1, description="the term's column in the scored table")
    kind: Literal["letter", "number", "auto"] = Field(
        default="auto", description="auto: a letter where the reference names one, else a number"
    )
    relative_tolerance: Share = Field(
        default=1e-3, lt=1.0, description="numbers are equal up to this part of the reference's"
    )
    absolute_tolerance: FactorOrZero = Field(
        default=0.0, description="numbers are equal up to this difference"
    )
    right: Points = Field(default=1.0, description="score of the right answer")
    wrong: Points = Field(default=0.0, description="score of a wrong answer")
    missing: Points = Field(default=0.0, description="no answer can be read, or several that contradict")


class LengthTerm(_Term):
    """The answer's tokens: 1 within [low, high], linearly down to 0 at `falloff` tokens outside; or, with
    `free`, minus one for every token over it."""

    type: Literal["length"] = "length"
    name: Label = Field(default="length", min_length=1, description="the term's column in the scored table")
    low: CountOrZero | None = Field(default=None, description="fewest tokens of the window")
    high: CountOrZero | None = Field(default=None, description="most tokens of the window")
    falloff: Count | None = Field(
        default=None, description="tokens outside the window at which the score is 0"
    )
    free: CountOrZero | None = Field(default=None, description="tokens that cost nothing; without a window")

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
    name: Label = Field(default="format", min_length=1, description="the term's column in the scored table")
    must_match: Pattern | None = Field(default=None, description="a pattern that must be found")
    must_not_match: Pattern | None = Field(default=None, description="a pattern that must not be found")
    ended: bool = Field(default=False, description="the answer must have ended by itself, not been cut off")
    passed: Points = Field(default=0.0, description="score where every rule is kept")
    failed: Points = Field(default=-1.0, description="score where one is broken")

    @model_validator(mode="after")
    def _has_a_rule(self) -> FormatTerm:
        if self.must_match is None and self.must_not_match is None and not self.ended:
            raise ValueError("format: no rule; set must_match, must_not_match or ended")
        return self


class HttpTerm(_Term):
    """A reward server that speaks OpenRLHF's protocol, such as `ultramed-rl serve-reward`."""

    type: Literal["http"] = "http"
    name: Label = Field(default="http", min_length=1, description="the term's column in the scored table")
    url: WebAddress = Field(description="the whole address, as http://host:5000/get_reward")
    token_env: Variable | None = Field(
        default=None, description="environment variable that holds the bearer token"
    )
    tokenizer: Address | None = Field(
        default=None,
        description="whose chat template the server's model reads (path or hub id); null: the policy's",
    )
    timeout_s: Seconds = Field(default=180.0, description="seconds for one request")
    retries: Retries = Field(default=5, description="of a request that failed")
    batch_size: BatchSize = Field(default=64, description="answers per request")
    concurrency: Annotated[Concurrency, Field(le=256)] = Field(default=4, description="requests at a time")


class Scale(Section):
    """The grades that a judge may give; they become 0 to 1."""

    low: Points = Field(default=1.0, description="the worst grade, which becomes 0")
    high: Points = Field(default=10.0, description="the best grade, which becomes 1")

    @model_validator(mode="after")
    def _ascends(self) -> Scale:
        if self.low >= self.high:
            raise ValueError(f"scale.low={self.low:g}: must be below scale.high={self.high:g}; exchange them")
        return self


class ApiModel(Section):
    """A language model behind an OpenAI-compatible API, such as `vllm serve`'s, and how it is asked."""

    model: Label = Field(min_length=1, description="as the API names it")
    base_url: WebAddress = Field(description="as http://host:8000/v1")
    api_key_env: Variable | None = Field(
        default=None, description="environment variable that holds the API key"
    )
    temperature: Temperature = Field(default=0.0, description="of the judge's replies")
    max_tokens: Tokens = Field(default=256, description="of one reply")
    concurrency: Annotated[Concurrency, Field(le=256)] = Field(default=8, description="requests at a time")
    timeout_s: Seconds = Field(default=120.0, description="seconds for one request")
    retries: Retries = Field(
        default=3, description="of a request that failed, and of a reply that cannot be read"
    )


class StatementJudge(ApiModel):
    """Who says of each of an item's statements whether an answer entails or contradicts it."""

    template: Address | None = Field(
        default=None, description="a text file with $question, $answer and $statement; null: our own"
    )


class JudgeTerm(_Term, ApiModel):
    """The grade of a language model behind an OpenAI-compatible API."""

    type: Literal["judge"] = "judge"
    name: Label = Field(default="judge", min_length=1, description="the term's column in the scored table")
    template: Address | None = Field(
        default=None,
        description="a text file with $question, $answer and perhaps $reference, $low, $high; null: our own",
    )
    scale: Scale = Scale()
    samples: Annotated[Samples, Field(le=64)] = Field(
        default=1, description="grades per answer, of which the mean counts"
    )

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

    paths: list[Address] = Field(min_length=2, description="the reward models: local directories or hub ids")
    combine: Literal["mean", "min", "uncertainty"] = Field(
        default="mean", description="how the members' scores become one"
    )
    penalty: FactorOrZero | None = Field(
        default=None,
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


class ContrastSampling(Section):
    """How a policy's own answers are drawn for contrasts: see `ultramed_rl.data.contrasts`."""

    prompts: Annotated[Count, Field(gt=1)] = Field(
        default=64, description="prompts whose answers are contrasted"
    )
    calm_temperature: Temperature = Field(default=0.3, description="temperature of the answers preferred")
    wild_temperature: PositiveTemperature = Field(
        default=1.3, description="temperature of the incoherent ones"
    )
    max_new_tokens: Tokens = Field(default=64, description="longest answer")


class Contrast(ContrastSampling):
    """Reward training data made by the run itself."""

    type: Literal["contrast"] = "contrast"
    held_out: PositiveShare = Field(
        default=0.2,
        lt=1.0,
        description="share of the pairs on which the reward model's accuracy is measured",
    )


class RewardTraining(Optimization):
    """How the run trains its own Bradley-Terry reward model before the first round."""

    data: Contrast = Contrast()
    learning_rate: LearningRate = Field(default=2e-5, description="highest rate of the schedule")
    batch_size: BatchSize = Field(default=16, description="pairs per optimizer step, over all ranks")
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass, to save memory"
    )
    trainable_layers: Few | None = Field(
        default=None, description="train only the last k decoder layers and the head; null: all"
    )


class Reward(Section):
    """What scores completions: a trained `num_labels=1` classifier (`path`), several of them (`ensemble`), or
    one trained in the same run (`train`); and `terms` that are added by weight, or stand alone."""

    path: Address | None = Field(
        default=None, description="a trained reward model: a local directory or a hub id"
    )
    train: RewardTraining | None = None
    ensemble: Ensemble | None = None
    weight: Factor = Field(default=1.0, description="of the reward model beside the terms")
    terms: list[RewardTerm] = Field(
        default=[], description="rules, servers and judges that are added by weight, or score alone"
    )
    precision: Precision = Field(
        default="auto",
        description="of reward models; auto: bfloat16 where the device computes it natively, float32 elsewhere",
    )
    micro_batch_tokens: Tokens = Field(
        default=16384, description="packed tokens per forward pass on one replica"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with a reward model"
    )
    architecture: Architecture | None = None

    @property
    def paths(self) -> tuple[str | None, ...]:
        """The reward models: None is the one that the run trains itself; none where terms alone score."""
        if self.ensemble is not None:
            return tuple(self.ensemble.paths)
        return (self.path,) if self.path is not None or self.train is not None else ()
