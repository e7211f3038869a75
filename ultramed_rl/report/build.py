"""The report of one run as one HTML file.

files --> online run --> sections ... samples ... sections --> page    (a stage: its figures, in a simpler form)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ultramed_rl.kinds import KINDS, load
from ultramed_rl.report import health, outcome, setup
from ultramed_rl.report.online_run import read_online_run
from ultramed_rl.report.samples import samples
from ultramed_rl.report.stage import counting_sections
from ultramed_rl.report.timeline import timeline_parts
from ultramed_rl.store.atomic import write_whole
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.page import Parts, Section, page_html

NAME = "report.html"
MOST_BYTES = 5_000_000
FOOTER = (
    "Made by ultramed_rl from the files of the run's folder. For research only: no model output on this page is medical advice, "
    "and a reward is no measure of medical correctness."
)
_SAMPLE_BYTES = 2_000_000
_SLACK = 50_000
# What is told of an online run before its samples and after them: a section without parts is left out.
_BEFORE = {
    "Reward": outcome.rewards,
    "Wins over the start": outcome.wins,
    "Reward against KL": outcome.frontier,
    "Length": health.lengths,
    "Refused, empty and cut answers": health.endings,
    "Preference pairs": health.pairs,
    "Evaluation": outcome.evaluation,
}
_AFTER = {"Training": health.training, "Time and utilisation": health.times}


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write a run's report; returns its path, by default RUN_DIR/report.html. The file is under 5 MB.

    Online runs have it in full, stages in a simpler form. Runs that are under way and those of older versions are
    readable too; what they lack is said.

    Raises:
        ValueError: no run in `run_dir`, or files that are not what was written.
        RuntimeError: the disk is full.
    """
    files = RunReader.of(Path(run_dir))
    output = files.path / NAME if output is None else Path(output)
    if files.type == "online":
        return write_page(online_html(files), output)
    sections = load(KINDS[files.type].report) if files.type in KINDS else counting_sections
    subtitle = f"{files.type} · seed {files.setting('run.seed', '?')}"
    return write_page(page_html(files.name, [*sections(files), *_setup(files)], subtitle, FOOTER), output)


def write_page(html: str, output: Path) -> Path:
    """Write a page whole, and the folder that it is in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    return output


def online_html(files: RunReader) -> str:
    """The page of an online run; samples fill the room that the rest leaves."""
    run, setting = read_online_run(files), files.setting
    subtitle = " · ".join(
        [
            "online run",
            f"{len(run.rounds)} of {setting('run.rounds', '?')} rounds",
            str(setting("policy.path", "?")),
            f"objective {setting('objective.type', '?')}",
            f"{len({answer.prompt_id for answer in run.policies[0].answers})} held-out prompts",
            f"seed {setting('run.seed', '?')}",
        ]
    )
    before, after = {"": outcome.summary(run)}, {"Timeline": timeline_parts(files)}
    if run.rounds:
        before |= {heading: parts(run) for heading, parts in _BEFORE.items()}
        after = {heading: parts(run) for heading, parts in _AFTER.items()} | after
        after["Memory"] = health.memory(files)
    first, last = filled_sections(before), [*filled_sections(after), *_setup(files)]
    if run.rounds:
        taken = len(page_html(files.name, [*first, *last], subtitle, FOOTER).encode("utf-8"))
        room = min(_SAMPLE_BYTES, MOST_BYTES - _SLACK - taken)
        first += filled_sections({"Samples": samples(run, room)})
    return page_html(files.name, [*first, *last], subtitle, FOOTER)


def _setup(files: RunReader) -> list[Section]:
    return filled_sections({"Config": setup.config(files), "Environment": setup.environment(files)})


def filled_sections(parts: Mapping[str, Parts]) -> list[Section]:
    """Sections by their headings; one without parts is left out."""
    sections = [Section(heading, list(of_section)) for heading, of_section in parts.items()]
    return [section for section in sections if section.parts]
