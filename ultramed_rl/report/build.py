"""The report of one run as one HTML file.

files --> online run --> sections ... samples ... sections --> page    (a stage: its figures, in a simpler form)
"""

from __future__ import annotations

from pathlib import Path

from ultramed_rl.kinds import KINDS, load
from ultramed_rl.report import health, outcome
from ultramed_rl.report.online_run import read_online_run
from ultramed_rl.report.samples import samples_section
from ultramed_rl.report.setup import config_section, environment_section
from ultramed_rl.report.stage import counting_sections
from ultramed_rl.report.timeline import timeline_section
from ultramed_rl.store.atomic import write_whole
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.page import Section, page_html

NAME = "report.html"
MOST_BYTES = 5_000_000
FOOTER = (
    "Made by ultramed_rl from the files of the run's folder. For research only: no model output on this page is medical advice, "
    "and a reward is no measure of medical correctness."
)
_SAMPLE_BYTES = 2_000_000
_SLACK = 50_000


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
    ends = [config_section(files), environment_section(files)]
    subtitle = f"{files.type} · seed {files.setting('run.seed', '?')}"
    return write_page(page_html(files.name, [*sections(files), *ends], subtitle, FOOTER), output)


def write_page(html: str, output: Path) -> Path:
    """Write a page whole, and the folder that it is in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    return output


def online_html(files: RunReader) -> str:
    """The page of an online run; samples fill the room that the rest leaves."""
    run = read_online_run(files)
    length, setting = health.check_length(run), files.setting
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

    def page(*sections: Section | None) -> str:
        ends = (config_section(files), environment_section(files))
        shown = [section for section in (*sections, *ends) if section is not None]
        return page_html(files.name, shown, subtitle, FOOTER)

    verdict, timeline = outcome.summary_section(run, length), timeline_section(files)
    if not run.rounds:
        return page(verdict, timeline)
    before = [
        verdict,
        outcome.reward_section(run),
        outcome.win_section(run),
        outcome.frontier_section(run),
        health.length_section(run, length),
        health.refusal_section(run),
        health.pair_section(run),
        outcome.evaluation_section(run),
    ]
    after = [health.training_section(run), health.time_section(run), timeline, health.memory_section(files)]
    room = MOST_BYTES - _SLACK - len(page(*before, *after).encode("utf-8"))
    return page(*before, samples_section(run, min(_SAMPLE_BYTES, room)), *after)
