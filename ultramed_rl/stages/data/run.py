"""A data stage from its config to its files; what is finished is read back.

make_data -> carry_out (which step is carried out how) -> here: record by record, a model is asked or none is
                                                       -> rows.py: row by row, or all rows against each other
          -> RUN/records/: rows.jsonl, or the files that the step names, and what fell out; RUN/records.json
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs
from ultramed_rl.config.factory import ApiGeneratorConfig, DataConfig
from ultramed_rl.config.factory_steps import (
    Answer,
    Candidates,
    Evolve,
    Feedback,
    RuleJudge,
    Score,
    Textbook,
    Topics,
    WriteRubric,
)
from ultramed_rl.config.models import DECIDES
from ultramed_rl.data.chats import MISFITS_ALLOWED, FittingRows
from ultramed_rl.data.factory.answer import AnswerStep, ExemplarIndex
from ultramed_rl.data.factory.candidates import CandidateStep, gather_candidates
from ultramed_rl.data.factory.evolve import EvolveStep
from ultramed_rl.data.factory.feedback import FeedbackStep
from ultramed_rl.data.factory.instructions import read_instruction
from ultramed_rl.data.factory.rubric import RubricStep
from ultramed_rl.data.factory.rule_judge import RuleJudgeStep
from ultramed_rl.data.factory.runner import run_step
from ultramed_rl.data.factory.score import ScoreStep
from ultramed_rl.data.factory.step import Generator, Step
from ultramed_rl.data.factory.textbook import TextbookStep
from ultramed_rl.data.factory.topics import TopicsStep
from ultramed_rl.data.sources import list_sources
from ultramed_rl.evaluation.reading.choice import read_letter
from ultramed_rl.http.generator import ApiGenerator
from ultramed_rl.stages.data.rows import (
    DataWork,
    open_embedder,
    read_input,
    read_made_rows,
    remove_contaminated,
    remove_repeated,
    write_bench,
    write_pairs,
    write_records,
    write_report,
)
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.store.cards import data_card, write_card
from ultramed_rl.store.digests import digest_file
from ultramed_rl.store.record_log import RecordLog, Tally
from ultramed_rl.tracking import Progress, Tracker, watched

OUTPUT = "records"
REPLIES = "replies"  # beside the runs: what APIs have answered, known to all of them
JOURNAL = "work/replies.jsonl"  # of a run at a URL: the same, for the next machine
_ALONE: Mapping[type, Callable[[Any], Step]] = {
    Topics: TopicsStep,
    Evolve: EvolveStep,
    Score: ScoreStep,
    WriteRubric: RubricStep,
}


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
    return carry_step(work, make_step(work.config)) if carry is None else carry(work)


def make_step(config: DataConfig, name: str = "") -> Step:
    """The logic of a step that goes record by record, with the generator of this name, else the first."""
    name = name or next(iter(config.generators), "")
    match config.step_for(name):
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
        case Candidates() as step:
            return CandidateStep(step, name)
        case RuleJudge() as step:
            return RuleJudgeStep(step, read_letter)
        case step:
            return _ALONE[type(step)](step)


# -- record by record --------------------------------------------------------------------------------------


def carry_step(work: DataWork, step: Step) -> Counter[str]:
    """Every record through a step that asks at most one model -> rows.jsonl and failures.jsonl; counts."""
    name = next(iter(work.config.generators), "")
    log = _carry(work, step, name, work.scratch / "log")
    for path in (log.rows_path, log.failures_path):
        _put(path, work.output / path.name)
    return _counts(log.tally)


def carry_candidates(work: DataWork) -> Counter[str]:
    """Every record to every model, one model after the other; then each record with its candidates."""
    counts, answers = Counter[str](), {}
    for name in work.config.generators:
        log = _carry(work, make_step(work.config, name), name, work.scratch / name)
        answers[name] = read_made_rows(str(log.rows_path))
        _put(log.failures_path, work.output / f"failures-{name}.jsonl")
        counts.update({f"{name}_{key}": count for key, count in _counts(log.tally).items()})
    gathered = gather_candidates(read_input(work.config), answers, counts)
    write_lines(work.output / "rows.jsonl", map(dict, gathered))
    return counts


def _carry(work: DataWork, step: Step, name: str, folder: Path) -> RecordLog:
    """A step over all rows, to its end.

    Raises:
        RuntimeError: the generator's budget is used up, or too many records failed.
    """
    config = work.config
    with RecordLog(folder, retry_failed=work.retry_failed) as log:
        # What is finished needs no engine: only its rows are read, to see that they are the same.
        asked = "" if log.finished and not work.retry_failed else name
        phase = f"{config.step.type} by {name}" if name else config.step.type
        with _open_generator(config, asked) as generator, work.progress.phase(phase, None, "records") as bar:
            workers, rows = _workers(config, name), read_input(config)
            result = run_step(step, rows, generator, log, workers=workers, advance=bar.advance)
        if result.stopped:
            kept = f"{result.tally.done} records are done and kept"
            fix = "raise the budget and go on with --resume"
            raise RuntimeError(f"{config.run.name}: {result.stopped}; {kept}; {fix}")
        log.finish()
        if (usage := result.usage).requests:
            known = f"{usage.cached} known before, {usage.errors} failed"
            tokens = f"{usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens"
            work.progress.say(f"{usage.requests} replies ({known}), {tokens}")
        _check_failed(config, log)
        return log


def _open_generator(config: DataConfig, name: str) -> AbstractContextManager[Generator | None]:
    if not name:
        return nullcontext()
    generator = config.generators[name]
    if isinstance(generator, ApiGeneratorConfig):
        folder = config.run.folder.parent.absolute() / REPLIES
        # At a URL the run is all that is kept: what it paid for goes with it.
        journal = config.run.folder / JOURNAL if config.run.url else None
        return ApiGenerator(generator, folder, f"{config.run.name}/{name}", f"generators.{name}", journal)
    from ultramed_rl.workers.chats import EngineGenerator

    return EngineGenerator(config.engines[name])


def _workers(config: DataConfig, name: str) -> int:
    """Records open at once: enough for the generator to be full while some wait to be asked again."""
    generator = config.generators.get(name)
    if isinstance(generator, ApiGeneratorConfig):
        return 2 * generator.concurrency
    group = config.cluster.rollout
    return 8 * group.engines * group.max_num_seqs


def _check_failed(config: DataConfig, log: RecordLog) -> None:
    """Raises RuntimeError where more records failed than is allowed."""
    tally = log.tally
    failed = sum(tally.failures.values())
    if tally.done and failed / tally.done > config.max_failed_share:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.failures.items())
        raise RuntimeError(
            f"{config.run.name}: {failed} of {tally.done} records failed ({reasons}), over max_failed_share="
            f"{config.max_failed_share:g}; see {log.failures_path}, then go on with --retry-failed, or "
            "raise it and --resume"
        )


def _counts(tally: Tally) -> Counter[str]:
    counts = Counter({"records": tally.done, "kept": tally.kept, "rows": tally.rows})
    counts.update({f"dropped_{reason}": count for reason, count in tally.drops.items()})
    counts.update({f"failed_{reason}": count for reason, count in tally.failures.items()})
    return counts


def _put(source: Path, target: Path) -> None:
    """The same file under another name; both are never changed in place."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        target.write_bytes(source.read_bytes())


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
