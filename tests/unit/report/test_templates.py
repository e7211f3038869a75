"""Templates name only what their pages are given, also where a run is needed to reach the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import Environment, nodes
from jinja2.meta import find_referenced_templates, find_undeclared_variables

from ultramed_rl.data.factory.report import build as data_report
from ultramed_rl.report.build import HTML, TOOLS
from ultramed_rl.report.comparison import RunComparison
from ultramed_rl.report.online_run import LengthCheck, OnlineRun
from ultramed_rl.store import RunReader
from ultramed_rl.tracking import page

GIVEN = {
    "page": page.Page,
    "files": RunReader,
    "run": OnlineRun,
    "compared": RunComparison,
    "length": LengthCheck,
}
OF_DATA = {
    "counted",
    "set_columns",
    "kind_columns",
    "misfit_line",
    "distributions",
    "models",
    "places",
    "topics",
}
FOLDERS = [HTML, Path(page.__file__).with_name("html"), Path(data_report.__file__).with_name("html")]
TEMPLATES = sorted(file for folder in FOLDERS for file in folder.glob("*.jinja"))
SHELL = {"title", "subtitle", "footer", "css", "policy", "library", "draw"}


def environment() -> Environment:
    made = Environment(autoescape=True)
    made.filters |= dict.fromkeys(("cells", "columns", "number"), str)
    made.tests["known"] = bool
    return made


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_a_template_names_only_what_there_is(file: Path) -> None:
    tree = environment().parse(file.read_text(encoding="utf-8"))
    known = GIVEN.keys() | TOOLS.keys() | OF_DATA | SHELL | {"samples", "topic_figure"}
    set_here = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    assert find_undeclared_variables(tree) - set_here <= known
    beside = {other.name for folder in (file.parent, FOLDERS[1]) for other in folder.glob("*.jinja")}
    assert {*find_referenced_templates(tree)} <= beside
    for node in tree.find_all(nodes.Getattr):
        if isinstance(node.node, nodes.Name) and node.node.name in GIVEN.keys() | TOOLS.keys():
            owner = TOOLS.get(node.node.name) or GIVEN[node.node.name]
            names = {*dir(owner), *getattr(owner, "__annotations__", {})}
            assert node.attr in names | {"heading", "sections", "figures", "widgets", "path"}, node.attr
