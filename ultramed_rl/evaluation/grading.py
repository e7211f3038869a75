"""From what engines gave to outcomes: one per question and protocol, right, wrong or unread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ultramed_rl.evaluation.items import AnswerReading, Item, Problem
from ultramed_rl.evaluation.reading.choice import read_choice
from ultramed_rl.evaluation.reading.names import read_names, score_factoid, score_list
from ultramed_rl.evaluation.suite import Question
from ultramed_rl.evaluation.voting import majority
from ultramed_rl.records import Completion, OptionLogprobs


@dataclass(frozen=True)
class GradedAnswer:
    """What became of a question.

    `given` is what the answer was read as, `right` is 0 or 1 for a choice and a share for names; `problem` says
    why nothing was read; `cut` counts answers that met the limit of tokens; `text` is the answer, the first of
    several.
    """

    question: Question
    given: tuple[str, ...]
    right: float
    problem: Problem = ""
    cut: int = 0
    text: str = ""


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
    return [_graded(question, read_answer(question, answer), [answer]) for question, answer in answers]


def grade_votes(questions: Sequence[Question], samples: Sequence[Sequence[Completion]]) -> list[GradedAnswer]:
    """Several answers per question: the choice of the majority; of names, those of the first sample that has
    any."""
    outcomes = []
    for question, answers in zip(questions, samples, strict=True):
        readings = [read_answer(question, answer) for answer in answers]
        if question.task.form == "choice":
            letter = majority(votes_of(readings))
            chosen = AnswerReading((letter,)) if letter is not None else readings[0]
        else:
            chosen = next((reading for reading in readings if reading.given), readings[0])
        outcomes.append(_graded(question, chosen, answers))
    return outcomes


def votes_of(readings: Sequence[AnswerReading]) -> list[str | None]:
    """Each sample's letter, None where none was read."""
    return [reading.given[0] if reading.given else None for reading in readings]


def read_answer(question: Question, completion: Completion) -> AnswerReading:
    """What a completion answers."""
    truncated = completion.finish_reason == "length"
    if question.task.form == "choice":
        return read_choice(completion.text, question.item.lettered, truncated=truncated)
    reading = read_names(completion.text)
    return AnswerReading((), "truncated") if truncated and not reading.given else reading


def score_reading(question: Question, given: tuple[str, ...]) -> float:
    """1 or 0 for a choice and for a factoid (BioASQ's strict accuracy), F1 for a list."""
    item: Item = question.item
    if not given:
        return 0.0
    if question.task.form == "choice":
        return float(given[0] == item.answer)
    if question.task.form == "factoid":
        return score_factoid(given, item.expected)
    return score_list(given, item.expected).f1


def _graded(question: Question, reading: AnswerReading, answers: Sequence[Completion]) -> GradedAnswer:
    cut = sum(answer.finish_reason == "length" for answer in answers)
    right = score_reading(question, reading.given)
    return GradedAnswer(question, reading.given, right, reading.problem, cut, answers[0].text)
