"""Stages that go record by record, with a model that is asked or without one."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ultramed_rl.config.factory import ApiGeneratorConfig, DataConfig
from ultramed_rl.config.factory_steps import Candidates
from ultramed_rl.data.factory.candidates import CandidateStep, gather_candidates
from ultramed_rl.data.factory.runner import run_step
from ultramed_rl.data.factory.step import Generator, Step
from ultramed_rl.http.generator import ApiGenerator
from ultramed_rl.stages.data.rows import DataWork, read_input, read_made_rows
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.store.record_log import RecordLog, Tally

REPLIES = "replies"  # beside the runs: what APIs have answered, known to all of them
JOURNAL = "work/replies.jsonl"  # of a run at a URL: the same, for the next machine


def carry_step(work: DataWork, step: Step) -> Counter[str]:
    """Every record through a step that asks at most one model -> rows.jsonl and dead_letters.jsonl; counts."""
    name = next(iter(work.config.generators), "")
    log = _carry(work, step, name, work.scratch / "ledger")  # the folder of older runs too
    for path in (log.rows_path, log.dead_letters_path):
        _put(path, work.output / path.name)
    return _counts(log.tally)


def carry_candidates(work: DataWork) -> Counter[str]:
    """Every record to every model, one model after the other; then each record with its candidates."""
    counts, answers = Counter[str](), {}
    for name in work.config.generators:
        step = work.config.step_for(name)
        assert isinstance(step, Candidates)
        log = _carry(work, CandidateStep(step, name), name, work.scratch / name)
        answers[name] = read_made_rows(str(log.rows_path))
        _put(log.dead_letters_path, work.output / f"dead_letters-{name}.jsonl")
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
    with RecordLog(folder, work.identity, retry_dead=work.retry_failed) as log:
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
        if (usage := result.usage).replies:
            known = f"{usage.cached} known before, {usage.errors} failed"
            tokens = f"{usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens"
            work.progress.say(f"{usage.replies} replies ({known}), {tokens}")
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
    failed = sum(tally.dead_letters.values())
    if tally.done and failed / tally.done > config.max_failed_share:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.dead_letters.items())
        raise RuntimeError(
            f"{config.run.name}: {failed} of {tally.done} records failed ({reasons}), over max_failed_share="
            f"{config.max_failed_share:g}; see {log.dead_letters_path}, then go on with --retry-failed, or "
            "raise it and --resume"
        )


def _counts(tally: Tally) -> Counter[str]:
    counts = Counter({"records": tally.done, "kept": tally.kept, "rows": tally.rows})
    counts.update({f"dropped_{reason}": count for reason, count in tally.drops.items()})
    counts.update({f"failed_{reason}": count for reason, count in tally.dead_letters.items()})
    return counts


def _put(source: Path, target: Path) -> None:
    """The same file under another name; both are never changed in place."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        target.write_bytes(source.read_bytes())
