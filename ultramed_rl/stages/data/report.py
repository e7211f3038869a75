"""The stage that shows what a data set is: figures and pictures."""

from __future__ import annotations

import json
from collections import Counter

from ultramed_rl.config.factory_rows import Report
from ultramed_rl.stages.data.inputs import open_embedder, read_input, read_made_rows
from ultramed_rl.stages.data.work import Work


def write_report(work: Work) -> Counter[str]:
    """table.json and table.md, report.html, topics.png and topics.html, models.json; the table is said too."""
    # scikit-learn and plotly take seconds to load, which the other steps needn't wait for.
    from ultramed_rl.data.factory.report.build import ReportOptions, build_report

    config, step = work.config, work.config.step
    assert isinstance(step, Report)
    judged = step.judged
    paths = build_report(
        lambda: read_input(config),
        work.output,
        open_embedder(step.embedder),
        None if judged is None else lambda: read_made_rows(judged),
        ReportOptions(config.run.name, step.originals, step.seed, step.points, step.clusters),
    )
    work.progress.say(paths.table_md.read_text(encoding="utf-8"))
    return Counter(records=json.loads(paths.table_json.read_text(encoding="utf-8"))["total"]["retained"])
