"""A data stage from its config to its files; what is finished is read back.

make_data -> carry_out (which step is carried out how) -> asking.py (record by record)
                                                       -> rows.py (row by row, or all rows against each other)
          -> RUN/records/: rows.jsonl, or the files that the step names, and what fell out; RUN/records.json
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs
from ultramed_rl.config.factory import ApiGeneratorConfig, DataConfig
from ultramed_rl.config.factory_steps import Answer, Evolve, Feedback, RuleJudge, Score, Textbook, Topics
from ultramed_rl.config.models import DECIDES
from ultramed_rl.data.chats import MISFITS_ALLOWED, FittingRows
from ultramed_rl.data.factory.answer import AnswerStep, ExemplarIndex
from ultramed_rl.data.factory.evolve import EvolveStep
from ultramed_rl.data.factory.feedback import FeedbackStep
from ultramed_rl.data.factory.instructions import read_instruction
from ultramed_rl.data.factory.rule_judge import RuleJudgeStep
from ultramed_rl.data.factory.score import ScoreStep
from ultramed_rl.data.factory.step import Step
from ultramed_rl.data.factory.textbook import TextbookStep
from ultramed_rl.data.factory.topics import TopicsStep
from ultramed_rl.data.sources import list_sources
from ultramed_rl.evaluation.reading.choice import read_letter
from ultramed_rl.stages.data.asking import carry_candidates, carry_step
from ultramed_rl.stages.data.rows import (
    DataWork,
    open_embedder,
    read_made_rows,
    remove_contaminated,
    remove_repeated,
    write_bench,
    write_pairs,
    write_records,
    write_report,
)
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.store.cards import data_card, write_card
from ultramed_rl.store.digests import digest_file
from ultramed_rl.tracking import Progress, Tracker, watched

OUTPUT = "records"
_ALONE: Mapping[type, Callable[[Any], Step]] = {Topics: TopicsStep, Evolve: EvolveStep, Score: ScoreStep}


def make_data(config: DataConfig, *, resume: bool = False, retry_failed: bool = False) -> Path:
    """Carry the step over all rows; returns the folder of its files, RUN/records.

    A killed stage goes on with `resume` where it stopped: no record is lost, doubled or paid for twice.

    Args:
        retry_failed: of a finished stage too, do the failed records again.

    Raises:
        ValueError: bad input, with value, rule and fix.
        RuntimeError: a budget is used up, or more records failed than `max_failed_share` allows; what is done
            is kept.
    """
    progress = Progress()
    resume = resume or retry_failed
    with WorkDirectory.open(config, resume, lambda: describe_inputs(config)) as store, watched(store.path):
        artifacts = ArtifactFolder(store.path)
        if retry_failed:
            artifacts.discard(OUTPUT)
        finished = artifacts.finished(OUTPUT)

        identity = identity_of(config)  # reads all of the input: once

        def compute(folder: Path) -> dict[str, float]:
            work = DataWork(config, identity, store.path / "work", folder, progress, retry_failed)
            counts = {name: float(count) for name, count in carry_out(work).items()}
            write_card(folder, data_card(config, folder, counts))
            return counts

        folder, counts = artifacts.phase_directory(OUTPUT, compute, *identity)
        if not finished:
            with Tracker(store, config) as tracker:
                tracker.log(counts, step=0, kind="data")
        happened = ", ".join(f"{count:g} {name}" for name, count in counts.items() if count) or "nothing"
        progress.say(f"{config.run.name} ({config.step.type}): {happened}: {folder}")
        return folder


def identity_of(config: DataConfig) -> list[str]:
    """What decides on the results: the step, the models it asks, and the contents of the files it reads."""
    models = {
        name: generator.model_dump(include={*DECIDES, "temperature"})
        if isinstance(generator, ApiGeneratorConfig)
        else generator.model_dump()
        for name, generator in config.generators.items()
    }
    decides = {"step": config.step.model_dump(), "models": models, "limit": config.limit}
    identity = [json.dumps(decides, sort_keys=True)]
    for source in (
        one for uri in [*config.input, *config.further_inputs.values()] for one in list_sources(uri)
    ):
        path = Path(source).expanduser()
        # A hub data set or a package's file is known by its name.
        identity.append(f"{source} {digest_file(path) if path.is_file() else ''}")
    return identity


def carry_out(work: DataWork) -> Counter[str]:
    """The stage's files into `work.output`, and its counts; record by record unless `CARRIERS` says otherwise."""
    carry = CARRIERS.get(work.config.step.type)
    return carry_step(work, make_step(work)) if carry is None else carry(work)


def make_step(work: DataWork) -> Step:
    """The logic of a step that goes record by record."""
    name = next(iter(work.config.generators), "")
    match work.config.step_for(name):
        case Textbook() as step:
            if not (step.exemplars_from and step.exemplars):
                return TextbookStep(step, [])
            limits = (step.exemplars_from, None, MISFITS_ALLOWED)
            rows = FittingRows(*limits, "are no records", "name records in step.exemplars_from", Counter())
            return TextbookStep(step, [one for one in rows.parse(read_instruction) if one.key])
        case Answer() as step if step.exemplars_from and step.exemplars:
            solved = read_made_rows(step.exemplars_from)
            exemplars = ExemplarIndex(solved, open_embedder(step.embedder), step.exemplars)
            return AnswerStep(step, read_letter, exemplars)
        case Answer() as step:
            return AnswerStep(step, read_letter)
        case Feedback() as step:
            return FeedbackStep(step, name)
        case RuleJudge() as step:
            return RuleJudgeStep(step, read_letter)
        case step:
            return _ALONE[type(step)](step)


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
