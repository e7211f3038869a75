"""What scores answers: reward models, ensembles of them, and terms that are summed by weight."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from ultramed_rl.config.base import Section, key, order_rules, repeated, sample_rules
from ultramed_rl.config.judge_models import POLICY, JudgeModel
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Column,
    Concurrency,
    Count,
    CountOrZero,
    Factor,
    FactorOrZero,
    Few,
    LearningRate,
    Pattern,
    Points,
    PositiveShare,
    PositiveTemperature,
    Reads,
    ReplicaTokens,
    Retries,
    Samples,
    Seconds,
    Share,
    Temperature,
    TermName,
    Tokens,
    TrainableLayers,
    Unique,
    Variable,
    WebAddress,
    Words,
)
from ultramed_rl.config.models import Architecture, Precision
from ultramed_rl.config.rounds import Optimization

FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>[^\W\d]\w*)")
RAW = "raw"  # the column of rewards that `length_slope` has not been taken off
# Ends of names of details of a comparing judge whose means a round reports, see `rewards/pairwise.py`.
BIASES = ("_contradictory", "_first_wins", "_over_reference")


def _not_zero(weight: float) -> float:
    if weight == 0.0:
        raise PydanticCustomError("zero", "a term without weight does nothing; remove the term")
    return weight


Weight = Annotated[Points, AfterValidator(_not_zero)]


class _Term(Section):
    """What every term has: `weight` may be negative; `name` is the term's column in the scored table."""

    weight: Weight = key(1.0, "factor in the sum of all terms; may be negative, never 0")


class _ReadingTerm(_Term):
    """A term that reads texts."""

    reads: Reads = "answer"


class AnswerTerm(_ReadingTerm):
    """Whether the final answer, a letter or a number, is that of the prompt's reference answer.

    A prompt without such a reference gives 0 to all its answers, so that the other terms decide there.
    """

    type: Literal["answer"] = "answer"
    name: TermName = "answer"
    kind: Literal["letter", "number", "auto"] = key("auto", "auto: the reference's letter, else its number")
    relative_tolerance: Share = key(1e-3, "numbers are equal up to this part of the reference's", lt=1.0)
    absolute_tolerance: FactorOrZero = key(0.0, "numbers are equal up to this difference")
    right: Points = key(1.0, "score of the right answer")
    wrong: Points = key(0.0, "score of a wrong answer")
    missing: Points = key(0.0, "no answer can be read, or several that contradict")


class LengthTerm(_Term):
    """Tokens of the answer, or of the thought before it: 1 within [low, high], linearly down to 0 at `falloff` tokens outside; or, with
    `free`, minus one for every token over it."""

    type: Literal["length"] = "length"
    name: TermName = "length"
    of: Literal["answer", "thought", "all"] = key("answer", "whose tokens are counted")
    low: CountOrZero | None = key(None, "fewest tokens of the window")
    high: CountOrZero | None = key(None, "most tokens of the window")
    falloff: Count | None = key(None, "tokens outside the window at which the score is 0")
    free: CountOrZero | None = key(None, "tokens that cost nothing; without a window")

    def problems(self) -> Iterator[str]:
        window = (self.low, self.high, self.falloff)
        if window.count(None) != (0 if self.free is None else 3):
            yield (
                f"low={self.low} high={self.high} falloff={self.falloff} free={self.free}: set either low, high and "
                "falloff (a window), or free alone (a penalty per token)"
            )
        elif self.free is None:
            yield from order_rules(self, "low", "high")


class FormRules(Section):
    """Exact rules of an answer's text, kept all or not. The patterns are Python's, searched for anywhere in the text."""

    must_match: Pattern | None = key(None, "a pattern that must be found")
    must_not_match: Pattern | None = key(None, "a pattern that must not be found")
    mentions: Pattern | None = key(
        None,
        "a pattern for words of the prompt's last message: the answer must hold one that it finds, whatever the case; "
        "prompts without any keep the rule",
    )
    min_words: Words | None = key(None, "fewest words")
    max_words: Words | None = key(None, "most words")
    min_sentences: Words | None = key(None, "fewest whole sentences")
    max_sentences: Words | None = key(None, "most sentences; one that stops without its sign breaks the rule")
    ended: bool = key(False, "the answer must have ended by itself, not been cut off")

    def problems(self) -> Iterator[str]:
        if all(getattr(self, name) in (None, False) for name in FormRules.model_fields):
            yield f"no rule; set one of {', '.join(FormRules.model_fields)}"
        for low, high in (("min_words", "max_words"), ("min_sentences", "max_sentences")):
            if None not in (getattr(self, low), getattr(self, high)):
                yield from order_rules(self, low, high)


class FormatTerm(FormRules, _ReadingTerm):
    """`passed` where the answer keeps every rule that is set, `failed` where it breaks one."""

    type: Literal["format"] = "format"
    name: TermName = "format"
    passed: Points = key(0.0, "score where every rule is kept")
    failed: Points = key(-1.0, "score where one is broken")


class HttpTerm(_ReadingTerm):
    """A reward server that speaks OpenRLHF's protocol, such as `ultramed-rl serve-reward`."""

    type: Literal["http"] = "http"
    name: TermName = "http"
    url: WebAddress = Field(description="the whole address, as http://host:5000/get_reward")
    token_env: Variable | None = key(None, "environment variable that holds the bearer token")
    tokenizer: Address | None = key(None, "whose chat template the server's model reads; null: the policy's")
    timeout_s: Seconds = key(180.0, "seconds for one request")
    retries: Retries = key(5, "of a request that failed")
    batch_size: BatchSize = key(64, "answers per request")
    concurrency: Annotated[Concurrency, Field(le=256)] = key(4, "requests at a time")


class Scale(Section):
    """The grades that a judge may give; they become 0 to 1."""

    low: Points = key(1.0, "the worst grade, which becomes 0")
    high: Points = key(10.0, "the best grade, which becomes 1")

    def problems(self) -> Iterator[str]:
        yield from order_rules(self, "low", "high", equal=False)


class JudgeTerm(_ReadingTerm, JudgeModel):
    """The grade of a language model, behind an OpenAI-compatible API or on engines of the run's own."""

    type: Literal["judge"] = "judge"
    name: TermName = "judge"
    template: Address | None = key(
        None, "a text file with $question, $answer and perhaps $reference, $low, $high; null: our own"
    )
    scale: Scale = Scale()
    samples: Annotated[Samples, Field(le=64)] = key(1, "grades per answer, of which the mean counts")
    grade: Literal["stated", "expected"] = key(
        "stated",
        "expected: in the place of the grade's token, the mean of all whole grades of one digit, by their probability",
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from sample_rules(self.samples, self.temperature)
        low, high = self.scale.low, self.scale.high
        if self.grade == "expected" and not (low >= 0 and high <= 9 and low % 1 == high % 1 == 0):
            yield (
                f"grade=expected: needs grades of one digit, since many tokenizers part longer ones, and scale is {low:g} to "
                f"{high:g}; use scale={{low: 1, high: 5}} or within 0 to 9"
            )


class PairwiseTerm(_ReadingTerm, JudgeModel):
    """A prompt's answers compared two at a time by a language model, in both orders; contradictory orders are a tie. An
    answer's score, 0 to 1, is what it won."""

    type: Literal["pairwise"] = "pairwise"
    name: TermName = "pairwise"
    template: Address | None = key(
        None, "a text file with $question, $answer_a, $answer_b and perhaps $reference; null: our own"
    )
    tournament: Literal["round_robin", "knockout"] = key(
        "round_robin",
        "of n answers: all n (n - 1) / 2 pairs, and the score is the mean of an answer's points; knockout: n - 1, and the score "
        "is how far it came",
    )


class RubricAsking(Section):
    """How a judge is asked whether an answer meets the criteria of a rubric."""

    template: Address | None = key(None, "a text file with $question, $answer and $criteria; null: our own")
    together: Few = key(16, "criteria of an answer that are asked of in one request")
    cache: Address | None = key(
        None,
        "where verdicts are kept by the digest of judge (its name or path), template, question, answer and criterion, for other "
        "runs too; null: as long as the run goes on",
    )


class RubricTerm(_ReadingTerm, RubricAsking, JudgeModel):
    """Criteria with points that a prompt carries: points of those that its answer meets, over all positive ones."""

    type: Literal["rubric"] = "rubric"
    name: TermName = "rubric"
    column: Column | None = key(
        None,
        "of prompts.sources.columns, the one with the criteria; null: rubric or rubrics, which are kept anyway",
    )
    clip: bool = key(True, "to 0 to 1; false: below 0 where faults weigh more than what is earned")


class PythonTerm(_ReadingTerm):
    """A function of your own, `def score(prompt, answers)`, plain or async: a number for each answer, or named numbers, of which
    `reward` counts, or else their sum. It runs in processes of its own."""

    type: Literal["python"] = "python"
    name: TermName = "python"
    path: Address = Field(
        description="a Python file and the function in it, as my_reward.py:score; relative to the working directory"
    )
    concurrency: Annotated[Concurrency, Field(le=64)] = key(
        1, "prompts that are asked of at a time, each in a process"
    )
    timeout_s: Seconds = key(60.0, "seconds for one prompt's answers")
    retries: Retries = key(1, "where it raises or gives no numbers; after that the prompt is set aside")

    def problems(self) -> Iterator[str]:
        if not FUNCTION.fullmatch(self.path):
            yield f"path={self.path!r}: no function in a file; write FILE.py:NAME, as my_reward.py:score"


RewardTerm = Annotated[
    AnswerTerm | LengthTerm | FormatTerm | HttpTerm | JudgeTerm | PairwiseTerm | RubricTerm | PythonTerm,
    Field(discriminator="type"),
]


class Ensemble(Section):
    """Several reward models. `uncertainty`: their mean minus `penalty` standard deviations (of the members
    as a population); arXiv 2310.02743 takes the variance, which has no unit to compare with a reward's."""

    paths: Annotated[list[Address], Unique] = Field(min_length=2, description="local directories or hub ids")
    combine: Literal["mean", "min", "uncertainty"] = key("mean", "how the members' scores become one")
    penalty: FactorOrZero | None = key(None, "for uncertainty: standard deviations taken off the mean")

    def problems(self) -> Iterator[str]:
        if (self.combine == "uncertainty") != (self.penalty is not None):
            yield (
                f"penalty={self.penalty}: goes with combine=uncertainty and is needed there, say 1.0; here "
                f"combine={self.combine}"
            )


class ContrastSampling(Section):
    """How a policy's own answers are drawn for contrasts: see `ultramed_rl.data.contrasts`."""

    prompts: Annotated[Count, Field(gt=1)] = key(64, "prompts whose answers are contrasted")
    calm_temperature: Temperature = key(0.3, "temperature of the answers preferred")
    wild_temperature: PositiveTemperature = key(1.3, "temperature of the incoherent ones")
    max_new_tokens: Tokens = key(64, "longest answer")
    calm_answers: Annotated[Samples, Field(le=16)] = key(
        2,
        "calm answers per prompt; more make more contrasts of equal length, since one answer is cut to another's",
    )

    def problems(self) -> Iterator[str]:
        if self.calm_answers > 1 and self.calm_temperature == 0.0:
            yield (
                f"calm_answers={self.calm_answers}: at calm_temperature=0 they are all alike; raise the temperature or set "
                "calm_answers=1"
            )


class Contrast(ContrastSampling):
    """Reward training data made by the run itself."""

    type: Literal["contrast"] = "contrast"
    held_out: PositiveShare = key(0.2, "share of pairs on which the reward model is measured", lt=1.0)


class RewardTraining(Optimization):
    """How the run trains its own Bradley-Terry reward model before the first round."""

    data: Contrast = Contrast()
    learning_rate: LearningRate = key(2e-5, "highest rate of the schedule")
    batch_size: BatchSize = key(16, "pairs per optimizer step, over all ranks")
    gradient_checkpointing: bool = key(False, "recompute activations in the backward pass, to save memory")
    trainable_layers: TrainableLayers = None


class Reward(Section):
    """What scores completions: a trained `num_labels=1` classifier (`path`), several of them (`ensemble`), or
    one trained in the same run (`train`); and `terms` that are added by weight, or stand alone."""

    path: Address | None = key(
        None, "a trained reward model: a local directory or a hub id, perhaps org/name@REVISION"
    )
    train: RewardTraining | None = None
    ensemble: Ensemble | None = None
    weight: Factor = key(1.0, "of the reward model beside the terms")
    terms: list[RewardTerm] = key([], "rules, servers and judges that are added by weight, or score alone")
    precision: Precision = "auto"
    reads: Reads = "answer"
    micro_batch_tokens: ReplicaTokens = 16384
    trust_remote_code: bool = key(False, "run Python code that comes with a reward model")
    architecture: Architecture | None = None
    length_slope: Literal["fit"] | Points | None = key(
        None,
        "reward per token that is taken off every reward, so that length doesn't pay; fit: what the starting policy's answers "
        "to held-out prompts show within prompts. Table column `raw` keeps the reward as it was",
    )

    def problems(self) -> Iterator[str]:
        models = [name for name in ("path", "train", "ensemble") if getattr(self, name) is not None]
        names = [term.name for term in self.terms]
        if len(models) > 1 or not (models or names):
            yield (
                "exactly one of reward.path (a trained reward model), reward.ensemble (several) and reward.train "
                "(train one in this run) must be set, or none of them beside reward.terms"
            )
        for name in names:
            if name.startswith("model") or name == RAW:
                yield f"terms: {name!r} is the name of a column of the reward's own; choose another"
        for name in repeated(names):
            yield f"terms: two are named {name!r}; give each a name of its own"

    @property
    def compares(self) -> bool:
        """Whether a term's scores are of answers against each other, and say nothing of one alone."""
        return any(isinstance(term, PairwiseTerm) for term in self.terms)

    @property
    def asks_policy(self) -> bool:
        """Whether a term is judged by the policy itself."""
        return any(getattr(term, "engine", None) == POLICY for term in self.terms)

    @property
    def paths(self) -> tuple[str | None, ...]:
        """The reward models: None is the one that the run trains itself; none where terms alone score."""
        if self.ensemble is not None:
            return tuple(self.ensemble.paths)
        return (self.path,) if self.path is not None or self.train is not None else ()
