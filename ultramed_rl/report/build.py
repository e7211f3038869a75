"""The report of one run as one HTML file.

files --> online run --> sections ... samples ... sections --> page    (a stage: its figures, in a simpler form)
"""

from __future__ import annotations

from pathlib import Path

from ultramed_rl.report.cost import memory_section, time_section, training_section
from ultramed_rl.report.evaluations import evaluation_section
from ultramed_rl.report.health import check_length, length_section, pair_section, refusal_section
from ultramed_rl.report.online_run import read_online_run
from ultramed_rl.report.outcome import frontier_section, reward_section, summary_section, win_section
from ultramed_rl.report.samples import choose_samples
from ultramed_rl.report.setup import config_section, environment_section
from ultramed_rl.report.stage import stage_sections
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
    sections = [*stage_sections(files), config_section(files), environment_section(files)]
    subtitle = f"{files.type} · seed {files.setting('run.seed', '?')}"
    return write_page(page_html(files.name, sections, subtitle, FOOTER), output)


def write_page(html: str, output: Path) -> Path:
    """Write a page whole, and the folder that it is in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    return output


def online_html(files: RunReader) -> str:
    """The page of an online run; samples fill the room that the rest leaves."""
    run = read_online_run(files)
    length, setting = check_length(run), files.setting
    held_out = len({answer.prompt_id for answer in run.policies[0].answers})
    subtitle = " · ".join(
        [
            "online run",
            f"{len(run.rounds)} of {setting('run.rounds', '?')} rounds",
            str(setting("policy.path", "?")),
            f"objective {setting('objective.type', '?')}",
            f"{held_out} held-out prompts",
            f"seed {setting('run.seed', '?')}",
        ]
    )

    def page(*sections: Section | None) -> str:
        ends = (config_section(files), environment_section(files))
        shown = [section for section in (*sections, *ends) if section is not None]
        return page_html(files.name, shown, subtitle, FOOTER)

    verdict, timeline = summary_section(run, length), timeline_section(files)
    if not run.rounds:
        return page(verdict, timeline)
    before = [
        verdict,
        reward_section(run),
        win_section(run),
        frontier_section(run),
        length_section(run, length),
        refusal_section(run),
        pair_section(run),
        evaluation_section(run),
    ]
    after = [training_section(run), time_section(run), timeline, memory_section(files)]
    taken = len(page(*before, *after).encode("utf-8"))
    samples = choose_samples(run, min(_SAMPLE_BYTES, MOST_BYTES - taken - _SLACK))
    return page(*before, Section("Samples", (samples.words, samples.browser)), *after)
