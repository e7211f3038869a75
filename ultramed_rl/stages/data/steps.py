"""How each step of the factory is carried out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ultramed_rl.config.factory import Answer, Evolve, Score, Textbook, Topics
from ultramed_rl.config.factory_pairs import Feedback, RuleJudge
from ultramed_rl.data.factory.answer import AnswerStep
from ultramed_rl.data.factory.evolve import EvolveStep
from ultramed_rl.data.factory.exemplars import ExemplarIndex
from ultramed_rl.data.factory.feedback import FeedbackStep
from ultramed_rl.data.factory.instructions import read_instruction
from ultramed_rl.data.factory.rule_judge import RuleJudgeStep
from ultramed_rl.data.factory.score import ScoreStep
from ultramed_rl.data.factory.step import Step
from ultramed_rl.data.factory.textbook import TextbookStep
from ultramed_rl.data.factory.topics import TopicsStep
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.reading.choice import read_choice
from ultramed_rl.stages.data.asking import carry_candidates, carry_step
from ultramed_rl.stages.data.cleaning import remove_contaminated, remove_repeated
from ultramed_rl.stages.data.inputs import DataWork, open_embedder, read_made_rows
from ultramed_rl.stages.data.streams import write_bench, write_pairs, write_records, write_report

_ALONE: Mapping[type, Callable[[Any], Step]] = {Topics: TopicsStep, Evolve: EvolveStep, Score: ScoreStep}


def carry_out(work: DataWork) -> Counter[str]:
    """The stage's files into `work.output`, and its counts; record by record unless `CARRIERS` says otherwise."""
    carry = CARRIERS.get(work.config.step.type)
    return carry_step(work, make_step(work)) if carry is None else carry(work)


def make_step(work: DataWork) -> Step:
    """The logic of a step that goes record by record."""
    name = next(iter(work.config.generators), "")
    match work.config.step_for(name):
        case Textbook() as step:
            source = read_rows(step.exemplars_from) if step.exemplars_from and step.exemplars else ()
            questions = [question for row in source if (question := read_instruction(row)).key]
            return TextbookStep(step, questions)
        case Answer() as step:
            return AnswerStep(step, read_letter, _find_exemplars(step))
        case Feedback() as step:
            return FeedbackStep(step, name)
        case RuleJudge() as step:
            return RuleJudgeStep(step, read_letter)
        case step:
            return _ALONE[type(step)](step)


def read_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer settles on, as evaluations read it; None for none or several."""
    given = read_choice(text, options).given
    return given[0] if len(given) == 1 else None


def _find_exemplars(step: Answer) -> Callable[[Any], Any]:
    if step.exemplars_from is None or not step.exemplars:
        return lambda row: ()
    return ExemplarIndex(read_made_rows(step.exemplars_from), open_embedder(step.embedder), step.exemplars)


CARRIERS: Mapping[str, Callable[[DataWork], Counter[str]]] = {
    "records": write_records,
    "vignettes": write_records,
    "paragraphs": write_records,
    "sample": write_records,
    "candidates": carry_candidates,
    "deduplicate": remove_repeated,
    "decontaminate": remove_contaminated,
    "pairs": write_pairs,
    "bench": write_bench,
    "report": write_report,
}
