"""What an evaluation comes to: accuracies with intervals, by task, subject and protocol, and comparisons.

Position bias: the same question is asked with its options in several orders. See Zheng et al. 2024 (arXiv 2309.03882)
on models that prefer a letter, and Pezeshkpour and Hruschka 2024 (arXiv 2308.11483) on answers that change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from string import ascii_uppercase

from ultramed_rl.evaluation.grading import GradedAnswer
from ultramed_rl.evaluation.statistics import Interval, mcnemar, paired_bootstrap, wilson_interval
from ultramed_rl.evaluation.voting import CurvePoint

# UltraMedical's table: MedQA, MedMCQA, PubMedQA and six subjects of MMLU, each counted once.
PAPER_COLUMNS = 9
_PAPER_TASKS = ("medqa", "medmcqa", "pubmedqa", "mmlu_medical")


@dataclass(frozen=True)
class TaskScore:
    """An accuracy of `items`, with its 95 % interval: Wilson's, or a bootstrap over items where items give
    shares."""

    items: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class OrderedAnswer:
    """One answer to an item whose options stood in one order.

    Args:
        order: the original index of the option at each position: (2, 0, 1) shows the third option as A.
        letter: the position that was chosen, or None where no answer could be read.
        right_letter: the position of the right option.
    """

    item_id: str
    order: tuple[int, ...]
    letter: str | None
    right_letter: str

    @property
    def chosen_option(self) -> int | None:
        """The original index of the chosen option."""
        return None if self.letter is None else self.order[ascii_uppercase.index(self.letter)]


@dataclass(frozen=True)
class PositionBias:
    """What a change of order does. All but `orders` are shares in 0..1.

    Args:
        orders: how many orders each item was asked in.
        accuracy: of right answers, over all orders.
        consistency: of items whose chosen option is the same in every order; one order without an answer that
            can be read makes an item inconsistent.
        always_right: of items that are right in every order.
        unread: of answers that could not be read.
        chosen: by letter, of the answers that were read.
        right: by letter, of the keys of all answers.
        bias: half the sum of |chosen - right| over letters (total variation distance): 0 where the letters are
            chosen as often as they are right; 0 also where no answer was read.
    """

    orders: int
    accuracy: float
    consistency: float
    always_right: float
    unread: float
    chosen: dict[str, float]
    right: dict[str, float]
    bias: float


@dataclass(frozen=True)
class TaskResult:
    """A task under one protocol.

    `options` counts the items by their number of options; `unread` the answers without a reading, by the reason;
    `cut` the samples that met the limit of tokens, of `samples` in all.
    """

    task: str
    protocol: str
    score: TaskScore
    options: dict[str, int]
    subjects: dict[str, TaskScore]
    unread: dict[str, int]
    cut: int
    samples: int
    positions: PositionBias | None = None
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class Average:
    """The unweighted mean over columns; over the paper's nine where all of them are there."""

    accuracy: float
    columns: dict[str, float]

    @property
    def is_papers(self) -> bool:
        """Whether the columns are the paper's nine."""
        return len(self.columns) == PAPER_COLUMNS


@dataclass(frozen=True)
class Comparison:
    """A policy against another on the same items: the change of the accuracy with a paired bootstrap interval, and
    McNemar's exact p-value where items are right or wrong."""

    task: str
    protocol: str
    change: float
    low: float
    high: float
    only_before: int | None
    only_after: int | None
    p_value: float | None


def score_outcomes(outcomes: Sequence[GradedAnswer], seed: int = 0) -> TaskScore:
    """The accuracy of these outcomes."""
    values = [outcome.right for outcome in outcomes]
    if set(values) <= {0.0, 1.0}:
        interval = wilson_interval(int(sum(values)), len(values))
    else:
        interval = paired_bootstrap([0.0] * len(values), values, 1000, seed)
    return TaskScore(len(values), interval.mean, interval.low, interval.high)


def task_result(
    protocol: str, outcomes: Sequence[GradedAnswer], samples: int, curve: Sequence[CurvePoint] = ()
) -> TaskResult:
    """What one task's outcomes come to. Questions in further orders of their options count in `positions` alone.

    Args:
        samples: answers per question.
    """
    first = [outcome for outcome in outcomes if outcome.question.place == 0]
    subjects: dict[str, list[GradedAnswer]] = {}
    for outcome in first:
        if outcome.question.item.subject:
            subjects.setdefault(outcome.question.item.subject, []).append(outcome)
    options = Counter(len(outcome.question.item.options) for outcome in first)
    return TaskResult(
        task=first[0].question.task.name,
        protocol=protocol,
        score=score_outcomes(first),
        options={str(count): items for count, items in sorted(options.items()) if count},
        subjects={subject: score_outcomes(members) for subject, members in sorted(subjects.items())},
        unread=dict(Counter(outcome.problem for outcome in first if outcome.problem)),
        cut=sum(outcome.cut for outcome in first),
        samples=samples * len(first),
        positions=_positions(outcomes) if len(outcomes) > len(first) else None,
        curve=tuple(curve),
    )


def _positions(outcomes: Sequence[GradedAnswer]) -> PositionBias:
    orders = Counter(outcome.question.item.item_id for outcome in outcomes)
    most = max(orders.values())  # items with few options have fewer orders and are left out
    return position_bias(
        [
            OrderedAnswer(q.item.item_id, q.order, o.given[0] if o.given else None, q.item.answer)
            for o in outcomes
            if orders[(q := o.question).item.item_id] == most
        ]
    )


def position_bias(answers: Sequence[OrderedAnswer]) -> PositionBias:
    """Position bias over items that were each asked in the same number of orders."""
    by_item: dict[str, list[OrderedAnswer]] = {}
    for answer in answers:
        by_item.setdefault(answer.item_id, []).append(answer)
    items = list(by_item.values())
    assert len(set(map(len, items))) == 1, "items in unequal numbers of orders"
    right = [[answer.letter == answer.right_letter for answer in item] for item in items]
    options = [{answer.chosen_option for answer in item} for item in items]
    letters = ascii_uppercase[: max(len(answer.order) for answer in answers)]
    read = [answer.letter for answer in answers if answer.letter is not None]
    keys = [answer.right_letter for answer in answers]
    chosen = {letter: read.count(letter) / max(len(read), 1) for letter in letters}
    wanted = {letter: keys.count(letter) / len(keys) for letter in letters}
    return PositionBias(
        orders=len(items[0]),
        accuracy=sum(map(sum, right)) / len(answers),
        consistency=sum(len(places) == 1 and None not in places for places in options) / len(items),
        always_right=sum(map(all, right)) / len(items),
        unread=1 - len(read) / len(answers),
        chosen=chosen,
        right=wanted,
        bias=sum(abs(chosen[letter] - wanted[letter]) for letter in letters) / 2 if read else 0.0,
    )


def average_columns(results: Sequence[TaskResult], columns: Mapping[str, Sequence[str]]) -> Average | None:
    """The macro average over those of the paper's columns that there are; None where there is none.

    Args:
        results: of one policy under one protocol.
        columns: a task's subjects that count singly; a task of whose subjects one lacks is a single column.
    """
    accuracies: dict[str, float] = {}
    for result in results:
        if result.task not in _PAPER_TASKS:
            continue
        subjects = columns.get(result.task, ())
        if subjects and all(subject in result.subjects for subject in subjects):
            accuracies |= {subject: result.subjects[subject].accuracy for subject in subjects}
        else:
            accuracies[result.task] = result.score.accuracy
    return Average(fmean(accuracies.values()), accuracies) if accuracies else None


def compare_outcomes(
    before: Sequence[GradedAnswer], after: Sequence[GradedAnswer], protocol: str, resamples: int, seed: int
) -> Comparison:
    """Two policies' outcomes of one task, on the same items."""
    old = {o.question.question_id: o.right for o in before if o.question.place == 0}
    new = {o.question.question_id: o.right for o in after if o.question.place == 0}
    assert old.keys() == new.keys(), "evaluations of different items"
    first, second = list(old.values()), [new[key] for key in old]
    change: Interval = paired_bootstrap(first, second, resamples, seed)
    test = None
    if set(first) | set(second) <= {0.0, 1.0}:
        test = mcnemar([value == 1.0 for value in first], [value == 1.0 for value in second])
    return Comparison(
        before[0].question.task.name,
        protocol,
        change.mean,
        change.low,
        change.high,
        test.only_before if test else None,
        test.only_after if test else None,
        test.p_value if test else None,
    )
