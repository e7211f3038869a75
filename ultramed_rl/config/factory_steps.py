"""Steps of the data factory that make questions, answers and preferences: how each asks, and what it accepts.

Figures: [P] UltraMedical's paper (arXiv 2406.03949), [O] our choice where it is silent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Address,
    CountOrZero,
    Factor,
    FactorOrZero,
    Few,
    FewOrZero,
    Grade,
    Label,
    Pattern,
    Points,
    PositiveShare,
    Seed,
    Share,
    Temperature,
    Text,
    Tokens,
    Words,
)

HASHED = "hashed"
EMBEDDER = (
    "what near duplicates are told by: hashed (counts of hashed words, without a model), or a sentence-embedding "
    "model's path, package:// or hub id"
)
OpenMethod = Literal["constrain", "concretise", "multi_step", "depth_breadth", "real_data"]
ChoiceMethod = Literal["constrain", "concretise", "distractors", "multi_step"]
_REFUSALS = [
    r"^(?:i['’]?m|i am|we are|we['’]?re) (?:very |so |really )?sorry,? (?:but )?(?:i|we) "
    r"(?:can ?not|can['’]t|am (?:not able|unable)|are (?:not able|unable)|won['’]t)\b",
    r"^(?:sorry|unfortunately|i apologi[sz]e),? (?:but )?(?:i|we) "
    r"(?:can ?not|can['’]t|am (?:not able|unable)|won['’]t)\b",
    r"^i (?:can ?not|can['’]t|am (?:not able|unable) to|won['’]t) (?:help|assist|answer|provide|fulfil|comply)",
    r"^as an? (?:ai|artificial intelligence|(?:large )?language model)\b",
]


class Asking(Section):
    """How a step asks its model. Temperature and top_p are by default those of UltraMedical's scripts."""

    temperature: Temperature = Field(default=0.9, description="of the model's replies")
    top_p: PositiveShare = Field(
        default=0.7,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_tokens: Tokens = Field(default=1024, description="of one reply")
    seed: Seed = Field(default=0, description="of sampling, and of what is drawn for a record")


class Textbook(Asking):
    """Multiple-choice questions out of textbook paragraphs, after two gates."""

    type: Literal["textbook"] = "textbook"
    exemplars: FewOrZero = Field(
        default=3, description="questions shown as examples, drawn for each paragraph"
    )
    exemplars_from: Address | None = Field(
        default=None, description="records to draw them from, as of MedQA's training set"
    )
    attempts: Few = Field(default=2, description="times that the question itself is asked for")
    name: Label = Field(default="TextBookQA", min_length=1, description="first part of the new records' ids")


class Topics(Asking):
    """A field of study to its subfields, or a subfield to instructions."""

    type: Literal["topics"] = "topics"
    mode: Literal["subfields", "instructions"] = Field(
        description="subfields of a field, or instructions of a subfield"
    )
    count: Few = Field(default=20, description="items asked for in one reply")
    attempts: Few = Field(default=2, description="times that a list is asked for")
    max_tokens: Tokens = Field(default=4096, description="of one reply")
    name: Label = Field(
        default="WikiInstruct", min_length=1, description="first part of the new records' ids"
    )


class Evolve(Asking):
    """Questions made harder, round by round (Evol-Instruct, arXiv 2304.12244)."""

    type: Literal["evolve"] = "evolve"
    rounds: Few = Field(default=2, description="times that a question is made harder")
    open_methods: list[OpenMethod] = Field(
        default=["constrain", "concretise", "multi_step", "depth_breadth", "real_data"],
        min_length=1,
        description="ways to make an open question harder, one drawn for each round",
    )
    choice_methods: list[ChoiceMethod] = Field(
        default=["constrain", "concretise", "distractors", "multi_step"],
        min_length=1,
        description="ways to make a multiple-choice question harder, one drawn for each round",
    )
    least_words: Words = Field(default=10, description="words that a round adds to the stem at least")
    most_words: Words = Field(default=20, gt=0, description="words that a round adds to the stem at most")
    attempts: Few = Field(default=2, description="of one round")
    on_miss: Literal["keep", "drop"] = Field(
        default="keep", description="a round that never fits: keep the earlier version, or drop the record"
    )
    keep: Literal["last", "every"] = Field(
        default="last", description="which rounds' versions become records"
    )
    name: Label | None = Field(
        default=None,
        min_length=1,
        pattern=r"^[^,]*$",
        description="a set of their own, beside the originals: first part of the versions' ids; null: the record's",
    )

    @model_validator(mode="after")
    def _ascends(self) -> Evolve:
        if self.least_words > self.most_words:
            raise ValueError(
                f"evolve.least_words={self.least_words}: exceeds evolve.most_words={self.most_words}; "
                "exchange them"
            )
        return self

    @field_validator("open_methods", "choice_methods")
    @classmethod
    def _once(cls, methods: list[str], info: ValidationInfo) -> list[str]:
        if len({*methods}) < len(methods):
            raise ValueError(f"evolve.{info.field_name}={methods}: one stands there twice; name each once")
        return methods


class Answer(Asking):
    """Answers with their reasoning; of a multiple-choice question only one that gives the key."""

    type: Literal["answer"] = "answer"
    attempts: Few = Field(default=3, description="answers asked for before the record is dropped")
    exemplars: FewOrZero = Field(default=3, description="solved questions shown from the second attempt on")
    exemplars_from: Address | None = Field(
        default=None,
        description="solved records, of which those most like the question are shown; null: none",
    )
    embedder: Address = Field(default=HASHED, description=EMBEDDER)
    max_tokens: Tokens = Field(default=2048, description="of one reply")
    refusals: list[Pattern] = Field(
        default=_REFUSALS, description="Python patterns, any case; an answer that begins so is a refusal"
    )


class Score(Asking):
    """How hard a question is, 1 to 10, and why."""

    type: Literal["score"] = "score"
    form: Literal["json", "text"] = Field(
        default="json", description="text: for a model that JSON is too much for"
    )
    threshold: Annotated[Points, Field(ge=1.0, le=10.0)] = Field(
        default=7.0, description="records below are dropped; 1 drops none"
    )
    attempts: Few = Field(default=2, description="times that a score is asked for")
    temperature: Temperature = Field(default=0.0, description="of the model's replies")
    top_p: PositiveShare = Field(
        default=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_tokens: Tokens = Field(default=512, description="of one reply")


class Candidates(Asking):
    """How a model is asked for its candidate answer. The paper doesn't say how its eight were sampled. [O]"""

    type: Literal["candidates"] = "candidates"
    temperature: Temperature = Field(default=0.7, description="of the answers")
    top_p: PositiveShare = Field(
        default=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    system: Text | None = Field(default=None, description="system message before every instruction")
    most_words: Words = Field(
        default=4096, gt=0, description="a longer instruction fails without being asked"
    )
    unfinished: Literal["flag", "fail"] = Field(
        default="flag", description="an answer that stops within a sentence is kept with its flag, or fails"
    )


class Aspect(Section):
    """One thing that the judge scores: its name in the reply, and what is asked."""

    name: Label = Field(pattern=r"^[a-z][a-z_]*$", description="the key in the judge's reply")
    question: Text = Field(min_length=1, description="what the judge is asked about it")


ASPECTS = [
    Aspect(name="correctness", question="Are the facts, the reasoning and the conclusion right and safe?"),
    Aspect(name="completeness", question="Is everything that was asked for answered, without padding?"),
    Aspect(name="clarity", question="Is it well ordered, natural to read, and understood at once?"),
]


class Feedback(Asking):
    """What the judge is asked about a record's candidates, and what happens to a faulty reply."""

    type: Literal["feedback"] = "feedback"
    aspects: list[Aspect] = Field(default=ASPECTS, min_length=1)
    low: Grade = Field(default=1, description="lowest score [P]")
    high: Grade = Field(default=5, description="highest score [P]")
    max_tokens: Tokens = Field(default=4096, description="of one reply")
    temperature: Temperature = Field(default=0.0, description="of the judge's replies")
    top_p: PositiveShare = Field(
        default=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    second_order_share: Share = Field(
        default=0.05, description="share of records judged again in reversed order [O]"
    )
    inconsistent: Literal["keep", "retry", "fail"] = Field(
        default="retry",
        description="a ranking against its own overall scores is kept, asked for again and then kept, or asked "
        "for again and then fails; what is kept has consistent=false",
    )

    @model_validator(mode="after")
    def _scale_and_names(self) -> Feedback:
        if self.low >= self.high:
            raise ValueError(f"feedback: low={self.low}, high={self.high}: high must be above low; raise it")
        names = [aspect.name for aspect in self.aspects]
        if len(set(names)) < len(names):
            raise ValueError(f"feedback.aspects: names are {names}; give each aspect its own")
        return self


class RuleJudge(Section):
    """A judge without a model, for a setting where none that can judge is at hand. Scores are 1 to 5. [O]"""

    type: Literal["rules"] = "rules"
    min_words: Annotated[Words, Field(ge=1)] = Field(
        default=8, description="fewer words cost score in proportion"
    )
    max_words: Annotated[Words, Field(ge=1)] = Field(
        default=400, description="more words cost score in proportion"
    )
    ngram: Annotated[Words, Field(ge=1)] = Field(
        default=4, description="words of a run that counts as repeated"
    )
    weights: dict[Label, FactorOrZero] = Field(
        default={"correctness": 2.0, "completeness": 1.0, "clarity": 1.0},
        description="of the aspects in the overall score",
    )
    seed: Seed = Field(default=0, description="of the order in which equal answers are ranked")

    @field_validator("weights")
    @classmethod
    def _three_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        names = {"correctness", "completeness", "clarity"}
        if set(weights) != names or min(weights.values()) < 0 or not sum(weights.values()):
            raise ValueError(
                f"weights={weights}: need {', '.join(sorted(names))}, none below 0 and not all 0"
            )
        return weights

    @model_validator(mode="after")
    def _window(self) -> RuleJudge:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words={self.min_words} is above max_words={self.max_words}; lower it or raise max_words"
            )
        return self


class SplitSizes(Section):
    """Prompts, not pairs, in the splits beside training. Paper: 2,232 and 777 rows of about 110K. [P]"""

    dev: CountOrZero = Field(default=2232, description="prompts of the dev split")
    test: CountOrZero = Field(default=777, description="prompts of the test split")


class Pairs(Section):
    """How judged candidates become preferences."""

    type: Literal["pairs"] = "pairs"
    form: Literal["binary", "ranked", "pairs"] = Field(
        default="binary",
        description="binary: one pair a prompt, for DPO and KTO; ranked: one row of answers best first, for our "
        "reward stage; pairs: a row for every ordered pair, for trainers that read nothing else",
    )
    strongest: list[Label] = Field(
        default=[],
        description="models, strongest first: of answers that tie for the best score, theirs is chosen",
    )
    min_gap: FactorOrZero = Field(
        default=0.0, description="the overall scores of a pair differ by at least so much"
    )
    splits: SplitSizes = SplitSizes()
    seed: Seed = Field(default=0, description="of the splits, and of which rejected answer a pair has")

    @field_validator("strongest")
    @classmethod
    def _once_each(cls, models: list[str]) -> list[str]:
        if len(set(models)) < len(models):
            raise ValueError(f"strongest={models}: a model stands there twice; remove one")
        return models


class BenchSizes(Section):
    """Pairs a subset, as Medical RewardBench has them. [P]"""

    easy: CountOrZero = Field(default=238, description="pairs that are far apart")
    hard: CountOrZero = Field(default=196, description="pairs that are close")
    length: CountOrZero = Field(default=180, description="pairs whose rejected answer is the longer one")
    human: CountOrZero = Field(default=163, description="pairs labelled by people")


class Bench(Section):
    """Which pairs of the test split are easy, hard or about length. The paper gives no thresholds. [O]"""

    type: Literal["bench"] = "bench"
    sizes: BenchSizes = BenchSizes()
    easy_gap: Factor = Field(default=2.0, description="easy: overall scores at least so far apart")
    easy_ranks: Few = Field(default=2, description="easy: ranks at least so far apart")
    hard_gap: FactorOrZero = Field(
        default=1.0, description="hard: next ranks, and scores at most so far apart"
    )
    length_factor: Annotated[Factor, Field(gt=1.0)] = Field(
        default=1.5,
        description="length: the rejected answer has so many times the chosen one's words",
    )
    per_prompt: Few = Field(default=1, description="pairs of one prompt over all subsets")
    labels: Address | None = Field(
        default=None, description="CSV of people's labels, see the stage's sheet.csv"
    )
    seed: Seed = Field(default=0, description="of the choice of pairs")

    @model_validator(mode="after")
    def _apart(self) -> Bench:
        if self.hard_gap >= self.easy_gap:
            raise ValueError(
                f"bench: hard_gap={self.hard_gap} isn't below easy_gap={self.easy_gap}; lower it, or a pair is both"
            )
        return self
