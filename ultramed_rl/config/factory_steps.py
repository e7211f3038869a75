"""Steps of the data factory that make questions, answers and preferences: how each asks, and what it accepts.

Figures: [P] UltraMedical's paper (arXiv 2406.03949), [O] our choice where it is silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from ultramed_rl.config.base import Section, key, order_rules, repeated
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
    Seed,
    SetName,
    Share,
    Temperature,
    Text,
    Tokens,
    TopP,
    Unique,
    Words,
)

HASHED = "hashed"
Embedder = Annotated[
    Address,
    Field(
        description="what near duplicates are told by: hashed (counts of hashed words, without a model), or a "
        "sentence-embedding model's path, package:// or hub id"
    ),
]
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

    temperature: Temperature = key(0.9, "of the model's replies")
    top_p: TopP = 0.7
    max_tokens: Tokens = key(1024, "of one reply")
    seed: Seed = key(0, "of sampling, and of what is drawn for a record")


class Textbook(Asking):
    """Multiple-choice questions out of textbook paragraphs, after two gates."""

    type: Literal["textbook"] = "textbook"
    exemplars: FewOrZero = key(3, "questions shown as examples, drawn for each paragraph")
    exemplars_from: Address | None = key(None, "records to draw them from, as of MedQA's training set")
    attempts: Few = key(2, "times that the question itself is asked for")
    name: Label = key("TextBookQA", "first part of the new records' ids", min_length=1)


class Topics(Asking):
    """A field of study to its subfields, or a subfield to instructions."""

    type: Literal["topics"] = "topics"
    mode: Literal["subfields", "instructions"] = Field(
        description="subfields of a field, or instructions of a subfield"
    )
    count: Few = key(20, "items asked for in one reply")
    attempts: Few = key(2, "times that a list is asked for")
    max_tokens: Tokens = key(4096, "of one reply")
    name: Label = key("WikiInstruct", "first part of the new records' ids", min_length=1)


class Evolve(Asking):
    """Questions made harder, round by round (Evol-Instruct, arXiv 2304.12244)."""

    type: Literal["evolve"] = "evolve"
    rounds: Few = key(2, "times that a question is made harder")
    open_methods: Annotated[list[OpenMethod], Unique] = key(
        [*get_args(OpenMethod)], "one is drawn for a round of an open question", min_length=1
    )
    choice_methods: Annotated[list[ChoiceMethod], Unique] = key(
        [*get_args(ChoiceMethod)], "one is drawn for a round of a choice", min_length=1
    )
    least_words: Words = key(10, "words that a round adds to the stem at least")
    most_words: Words = key(20, "words that a round adds to the stem at most", gt=0)
    attempts: Few = key(2, "of one round")
    on_miss: Literal["keep", "drop"] = key("keep", "the earlier version, or drop the record, if none fits")
    keep: Literal["last", "every"] = key("last", "which rounds' versions become records")
    name: SetName | None = key(None, "of a set of their own, first part of the ids; null: the record's set")

    def problems(self) -> Iterator[str]:
        yield from order_rules(self, "least_words", "most_words")


class Answer(Asking):
    """Answers with their reasoning; of a multiple-choice question only one that gives the key."""

    type: Literal["answer"] = "answer"
    attempts: Few = key(3, "answers asked for before the record is dropped")
    exemplars: FewOrZero = key(3, "solved questions shown from the second attempt on")
    exemplars_from: Address | None = key(None, "solved records, of which the nearest are shown; null: none")
    embedder: Embedder = HASHED
    max_tokens: Tokens = key(2048, "of one reply")
    refusals: list[Pattern] = key(_REFUSALS, "Python patterns, any case; an answer that begins so refuses")


class Score(Asking):
    """How hard a question is, 1 to 10, and why."""

    type: Literal["score"] = "score"
    form: Literal["json", "text"] = key("json", "text: for a model that JSON is too much for")
    threshold: Annotated[Points, Field(ge=1.0, le=10.0)] = key(7.0, "records below are dropped; 1 drops none")
    attempts: Few = key(2, "times that a score is asked for")
    temperature: Temperature = key(0.0, "of the model's replies")
    top_p: TopP = 1.0
    max_tokens: Tokens = key(512, "of one reply")


class WriteRubric(Asking):
    """Criteria with positive and negative points, written from a record's own answer."""

    type: Literal["rubric"] = "rubric"
    attempts: Few = key(3, "times that a rubric is asked for")
    most: Annotated[Few, Field(ge=2, le=100)] = key(12, "criteria of a rubric")
    temperature: Temperature = key(0.3, "of the model's replies")
    max_tokens: Tokens = key(2048, "of one reply")


class Candidates(Asking):
    """How a model is asked for its candidate answer. The paper doesn't say how its eight were sampled. [O]"""

    type: Literal["candidates"] = "candidates"
    temperature: Temperature = key(0.7, "of the answers")
    top_p: TopP = 1.0
    system: Text | None = key(None, "system message before every instruction")
    most_words: Words = key(4096, "a longer instruction fails without being asked", gt=0)
    unfinished: Literal["flag", "fail"] = key("flag", "keep an answer that stops in a sentence, or fail it")


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
    low: Grade = key(1, "lowest score [P]")
    high: Grade = key(5, "highest score [P]")
    max_tokens: Tokens = key(4096, "of one reply")
    temperature: Temperature = key(0.0, "of the judge's replies")
    top_p: TopP = 1.0
    second_order_share: Share = key(0.05, "share of records judged again in reversed order [O]")
    inconsistent: Literal["keep", "retry", "fail"] = key(
        "retry",
        "a ranking against its own overall scores is kept, asked for again and then kept, or asked "
        "for again and then fails; what is kept has consistent=false",
    )

    def problems(self) -> Iterator[str]:
        yield from order_rules(self, "low", "high", equal=False)
        names = [aspect.name for aspect in self.aspects]
        if repeated(names):
            yield f"aspects: names are {names}; give each aspect its own"


class RuleJudge(Section):
    """A judge without a model, for a setting where none that can judge is at hand. Scores are 1 to 5. [O]"""

    type: Literal["rules"] = "rules"
    min_words: Annotated[Words, Field(ge=1)] = key(8, "fewer words cost score in proportion")
    max_words: Annotated[Words, Field(ge=1)] = key(400, "more words cost score in proportion")
    ngram: Annotated[Words, Field(ge=1)] = key(4, "words of a run that counts as repeated")
    weights: dict[Label, FactorOrZero] = key(
        {"correctness": 2.0, "completeness": 1.0, "clarity": 1.0}, "of the aspects in the overall score"
    )
    seed: Seed = key(0, "of the order in which equal answers are ranked")

    def problems(self) -> Iterator[str]:
        yield from order_rules(self, "min_words", "max_words")
        names = ["clarity", "completeness", "correctness"]
        if sorted(self.weights) != names or not any(self.weights.values()):
            yield f"weights={self.weights}: need {', '.join(names)}, not all 0"


class SplitSizes(Section):
    """Prompts, not pairs, in the splits beside training. Paper: 2,232 and 777 rows of about 110K. [P]"""

    dev: CountOrZero = key(2232, "prompts of the dev split")
    test: CountOrZero = key(777, "prompts of the test split")


class Pairs(Section):
    """How judged candidates become preferences."""

    type: Literal["pairs"] = "pairs"
    form: Literal["binary", "ranked", "pairs"] = key(
        "binary",
        "binary: one pair a prompt, for DPO and KTO; ranked: one row of answers best first, for our "
        "reward stage; pairs: a row for every ordered pair, for trainers that read nothing else",
    )
    strongest: Annotated[list[Label], Unique] = key([], "models, strongest first: whose answer wins a tie")
    min_gap: FactorOrZero = key(0.0, "the overall scores of a pair differ by at least so much")
    splits: SplitSizes = SplitSizes()
    seed: Seed = key(0, "of the splits, and of which rejected answer a pair has")


class BenchSizes(Section):
    """Pairs a subset, as Medical RewardBench has them. [P]"""

    easy: CountOrZero = key(238, "pairs that are far apart")
    hard: CountOrZero = key(196, "pairs that are close")
    length: CountOrZero = key(180, "pairs whose rejected answer is the longer one")
    human: CountOrZero = key(163, "pairs labelled by people")


class Bench(Section):
    """Which pairs of the test split are easy, hard or about length. The paper gives no thresholds. [O]"""

    type: Literal["bench"] = "bench"
    sizes: BenchSizes = BenchSizes()
    easy_gap: Factor = key(2.0, "easy: overall scores at least so far apart")
    easy_ranks: Few = key(2, "easy: ranks at least so far apart")
    hard_gap: FactorOrZero = key(1.0, "hard: next ranks, and scores at most so far apart")
    length_factor: Annotated[Factor, Field(gt=1.0)] = key(1.5, "length: rejected words over the chosen ones")
    per_prompt: Few = key(1, "pairs of one prompt over all subsets")
    labels: Address | None = key(None, "CSV of people's labels, see the stage's sheet.csv")
    seed: Seed = key(0, "of the choice of pairs")

    def problems(self) -> Iterator[str]:
        yield from order_rules(self, "hard_gap", "easy_gap", equal=False)  # or a pair would be both
