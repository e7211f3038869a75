"""What an evaluation comes to: answers right, wrong or unread; accuracies with intervals, by task, subject and protocol.

Position bias: the same question is asked with its options in several orders. See Zheng et al. 2024 (arXiv 2309.03882)
on models that prefer a letter, and Pezeshkpour and Hruschka 2024 (arXiv 2308.11483) on answers that change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from string import ascii_uppercase

from ultramed_rl.evaluation.items import AnswerReading, Problem
from ultramed_rl.evaluation.reading.choice import read_choice
from ultramed_rl.evaluation.reading.text import read_names, score_factoid, score_list
from ultramed_rl.evaluation.statistics import mcnemar, mean_interval, paired_bootstrap, wilson_interval
from ultramed_rl.evaluation.suite import Question
from ultramed_rl.evaluation.tasks import TASKS
from ultramed_rl.evaluation.voting import CurvePoint, SampledItem, majority, rerank_curve
from ultramed_rl.records import Completion, OptionLogprobs, ScoredCompletion

# UltraMedical's table: MedQA, MedMCQA, PubMedQA and six subjects of MMLU, each counted once.
_PAPER_TASKS = ("medqa", "medmcqa", "pubmedqa", "mmlu_medical")


@dataclass(frozen=True)
class GradedAnswer:
    """What became of a question under one protocol."""

    question: Question
    given: tuple[str, ...]  # what the answer was read as
    right: float  # 0 or 1; a share for names
    problem: Problem = ""  # why nothing was read
    cut: int = 0  # answers that met the limit of tokens
    text: str = ""  # the answer, the first of several

    @property
    def letter(self) -> str | None:
        """The chosen letter of a choice."""
        return self.given[0] if self.given else None


@dataclass(frozen=True)
class TaskScore:
    """An accuracy of `items`, with its 95 % interval: Wilson's, or a bootstrap over items where items give
    shares."""

    items: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class PositionBias:
    """What a change of order does. All but `orders` are shares in 0..1."""

    orders: int  # in which each item was asked
    accuracy: float  # of right answers, over all orders
    consistency: float  # of items whose chosen option is read, and the same, in every order
    always_right: float  # of items that are right in every order
    unread: float  # of answers that could not be read
    chosen: dict[str, float]  # by letter, of the answers that were read
    right: dict[str, float]  # by letter, of the keys of all answers
    # Half the sum of |chosen - right| over letters (total variation distance): 0 where the letters are chosen as often
    # as they are right; 0 also where no answer was read.
    bias: float


@dataclass(frozen=True)
class TaskResult:
    """A task under one protocol."""

    task: str
    protocol: str
    score: TaskScore
    options: dict[str, int]  # items by their number of options
    subjects: dict[str, TaskScore]
    unread: dict[str, int]  # answers without a reading, by the reason
    cut: int  # answers that met the limit of tokens, of `samples` in all
    samples: int
    positions: PositionBias | None = None
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class Average:
    """The unweighted mean over those of the paper's nine columns that there are."""

    accuracy: float
    columns: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """A policy against another on the same items: the change of the accuracy with a paired bootstrap interval, and
    McNemar's exact p-value where items are right or wrong."""

    task: str
    protocol: str
    change: float
    low: float
    high: float
    only_before: int | None = None
    only_after: int | None = None
    p_value: float | None = None


# -- answers are graded ------------------------------------------------------------------------------------


def grade_likelihoods(questions: Sequence[Question], scored: Sequence[OptionLogprobs]) -> list[GradedAnswer]:
    """The most likely option is the answer; of equal ones the first, as lm-evaluation-harness has it.

    Raises:
        ValueError: a logprob that is no number, naming the question.
    """
    outcomes = []
    for question, options in zip(questions, scored, strict=True):
        assert question.question_id == options.question_id, "answers are in another order"
        values = options.logprobs
        if any(value != value for value in values):
            raise ValueError(
                f"question {question.question_id}: logprobs {values} are not all numbers; check the model's "
                "weights, or set policy.precision=float32"
            )
        letter = list(question.item.lettered)[values.index(max(values))]
        outcomes.append(GradedAnswer(question, (letter,), float(letter == question.item.answer)))
    return outcomes


def grade_answers(answers: Sequence[tuple[Question, Completion]]) -> list[GradedAnswer]:
    """One answer per question."""
    return [_graded(question, _read_answer(question, answer), [answer]) for question, answer in answers]


def grade_votes(questions: Sequence[Question], samples: Sequence[Sequence[Completion]]) -> list[GradedAnswer]:
    """Several answers per question: the choice of the majority; of names, those of the first sample that has
    any."""
    outcomes = []
    for question, answers in zip(questions, samples, strict=True):
        readings = [_read_answer(question, answer) for answer in answers]
        chosen = next((reading for reading in readings if reading.given), readings[0])
        if question.task.form == "choice" and (letter := majority(_votes(readings))) is not None:
            chosen = AnswerReading((letter,))
        outcomes.append(_graded(question, chosen, answers))
    return outcomes


def sample_curves(
    questions: Sequence[Question],
    samples: Sequence[Sequence[Completion]],
    rewards: Sequence[ScoredCompletion],
    seed: int,
) -> dict[str, list[CurvePoint]]:
    """By task: how accuracy grows with the number of samples, by vote and, with rewards, by reranking."""
    reward = {scored.completion.completion_id: scored.reward for scored in rewards}
    items: dict[str, list[SampledItem]] = defaultdict(list)
    for question, answers in zip(questions, samples, strict=True):
        if question.task.form == "choice":
            votes = _votes([_read_answer(question, answer) for answer in answers])
            numbers = tuple(reward[answer.completion_id] for answer in answers) if reward else ()
            item = SampledItem(question.question_id, tuple(votes), numbers, question.item.answer)
            items[question.task.name].append(item)
    return {task: rerank_curve(members, seed) for task, members in items.items()}


def _read_answer(question: Question, completion: Completion) -> AnswerReading:
    truncated = completion.finish_reason == "length"
    if question.task.form == "choice":
        return read_choice(completion.answer, question.item.lettered, truncated=truncated)
    reading = read_names(completion.answer)
    return AnswerReading((), "truncated") if truncated and not reading.given else reading


def _votes(readings: Sequence[AnswerReading]) -> list[str | None]:
    return [reading.given[0] if reading.given else None for reading in readings]


def _graded(question: Question, reading: AnswerReading, answers: Sequence[Completion]) -> GradedAnswer:
    """1 or 0 for a choice and for a factoid (BioASQ's strict accuracy), F1 for a list; 0 where nothing was read."""
    item, given, form = question.item, reading.given, question.task.form
    if form == "choice":
        right = float(given == (item.answer,))
    elif form == "factoid":
        right = score_factoid(given, item.expected)
    else:
        right = score_list(given, item.expected)
    cut = sum(answer.finish_reason == "length" for answer in answers)
    return GradedAnswer(question, given, right, reading.problem, cut, answers[0].text)


# -- graded answers are counted ----------------------------------------------------------------------------


def task_result(
    protocol: str, outcomes: Sequence[GradedAnswer], samples: int, curve: Sequence[CurvePoint] = ()
) -> TaskResult:
    """What one task's outcomes come to. Questions in further orders of their options count in `positions` alone.

    Args:
        samples: answers per question.
    """
    first = [outcome for outcome in outcomes if outcome.question.place == 0]
    subjects: dict[str, list[GradedAnswer]] = defaultdict(list)
    for outcome in first:
        subjects[outcome.question.item.subject].append(outcome)
    options = Counter(len(outcome.question.item.options) for outcome in first)
    positions = None
    if len(outcomes) > len(first):
        orders = Counter(outcome.question.item.item_id for outcome in outcomes)
        most = max(orders.values())  # items with few options have fewer orders and are left out
        positions = position_bias([o for o in outcomes if orders[o.question.item.item_id] == most])
    return TaskResult(
        task=first[0].question.task.name,
        protocol=protocol,
        score=score_outcomes(first),
        options={str(count): items for count, items in sorted(options.items()) if count},
        subjects={name: score_outcomes(own) for name, own in sorted(subjects.items()) if name},
        unread=dict(Counter(outcome.problem for outcome in first if outcome.problem)),
        cut=sum(outcome.cut for outcome in first),
        samples=samples * len(first),
        positions=positions,
        curve=tuple(curve),
    )


def score_outcomes(outcomes: Sequence[GradedAnswer]) -> TaskScore:
    """The accuracy of these outcomes."""
    values = [outcome.right for outcome in outcomes]
    if set(values) <= {0.0, 1.0}:
        interval = wilson_interval(int(sum(values)), len(values))
    else:
        interval = mean_interval(values, 1000, 0)
    return TaskScore(len(values), interval.mean, interval.low, interval.high)


def position_bias(answers: Sequence[GradedAnswer]) -> PositionBias:
    """Position bias over items that were each asked in the same number of orders."""
    by_item: dict[str, list[GradedAnswer]] = defaultdict(list)
    for answer in answers:
        by_item[answer.question.item.item_id].append(answer)
    items = list(by_item.values())
    assert len(set(map(len, items))) == 1, "items in unequal numbers of orders"
    # The data's own place of each chosen option; None where no answer was read.
    options = [
        {a.question.order[ascii_uppercase.index(a.letter)] if a.letter else None for a in item}
        for item in items
    ]
    letters = ascii_uppercase[: max(len(answer.question.order) for answer in answers)]
    read = [answer.letter for answer in answers if answer.letter is not None]
    keys = [answer.question.item.answer for answer in answers]
    chosen = {letter: read.count(letter) / max(len(read), 1) for letter in letters}
    wanted = {letter: keys.count(letter) / len(keys) for letter in letters}
    return PositionBias(
        orders=len(items[0]),
        accuracy=fmean(answer.right for answer in answers),
        consistency=sum(len(places) == 1 and None not in places for places in options) / len(items),
        always_right=sum(all(answer.right for answer in item) for item in items) / len(items),
        unread=1 - len(read) / len(answers),
        chosen=chosen,
        right=wanted,
        bias=sum(abs(chosen[letter] - wanted[letter]) for letter in letters) / 2 if read else 0.0,
    )


def average_columns(results: Sequence[TaskResult]) -> Average | None:
    """The macro average over those of the paper's columns that there are; None where there is none.

    A task's columns count singly where all of its subjects are there, else it is a column itself.

    Args:
        results: of one policy under one protocol.
    """
    accuracies: dict[str, float] = {}
    for result in results:
        if result.task in _PAPER_TASKS:
            subjects = TASKS[result.task].columns
            if subjects and all(subject in result.subjects for subject in subjects):
                accuracies |= {subject: result.subjects[subject].accuracy for subject in subjects}
            else:
                accuracies[result.task] = result.score.accuracy
    return Average(fmean(accuracies.values()), accuracies) if accuracies else None


def compare_outcomes(
    before: Sequence[GradedAnswer], after: Sequence[GradedAnswer], protocol: str, resamples: int, seed: int
) -> Comparison:
    """Two policies' outcomes of one task, on the same items."""
    old, new = (
        {o.question.question_id: o.right for o in outcomes if o.question.place == 0}
        for outcomes in (before, after)
    )
    assert old.keys() == new.keys(), "evaluations of different items"
    first, second = list(old.values()), [new[key] for key in old]
    change = paired_bootstrap(first, second, resamples, seed)
    task = before[0].question.task.name
    if not set(first) | set(second) <= {0.0, 1.0}:
        return Comparison(task, protocol, change.mean, change.low, change.high)
    test = mcnemar([value == 1.0 for value in first], [value == 1.0 for value in second])
    counts = (test.only_before, test.only_after, test.p_value)
    return Comparison(task, protocol, change.mean, change.low, change.high, *counts)
