"""The configuration reference: current, complete, and readable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.make_configuration import RENEW, render_reference
from ultramed_rl.config.recipe import RecipeConfig
from ultramed_rl.kinds import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
TEXT = render_reference()
TABLE_ROW = re.compile(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)


def row(section: str, key: str) -> tuple[str, str, str]:
    """(type, default, meaning) of a key under a heading."""
    part = TEXT.partition(f"# {section}\n")[2].partition("\n##")[0]
    return next(match.groups()[1:] for match in TABLE_ROW.finditer(part) if match[1] == key)  # type: ignore[return-value]


def test_the_page_is_that_of_the_schema() -> None:
    assert PAGE.read_text(encoding="utf-8") == TEXT, f"docs/configuration.md is out of date: {RENEW}"


def test_no_key_is_without_a_meaning() -> None:
    bare = [match.group(1) for match in TABLE_ROW.finditer(TEXT) if not match.group(4).strip()]
    assert not bare, f"give these a description= in ultramed_rl/config/: {bare}"


def test_every_type_of_config_is_there_with_its_own_sections() -> None:
    classes = {name: kind.config_class for name, kind in KINDS.items()} | {"recipe": RecipeConfig}
    for name, model in classes.items():
        part = TEXT.partition(f"\n## type: {name}\n")[2].partition("\n##")[0]
        keys = {match.group(1) for match in TABLE_ROW.finditer(part)}
        assert keys == set(model.model_fields) - {"type"}, name


def test_headings_are_unique_and_every_link_leads_to_one() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= set(anchors)


@pytest.mark.parametrize(
    ("section", "key", "expected"),
    [
        ("Sampling", "n", ("integer", "`8`", r"; [a-z ]+ 2")),
        ("RunName", "directory", ("text", "`runs`", None)),
        ("RunName", "name", ("text", "required", None)),
        ("AnswerTerm", "kind", ("`letter`, `number` or `auto`", "`auto`", None)),
        ("type: online", "benchmarks", ("[RoundBenchmarks](#roundbenchmarks) or null", "`null`", None)),
        ("type: online", "sampling", ("[Sampling](#sampling)", "the section's", None)),
        ("KTO", "beta", ("number", "`0.1`", r"; [a-z]+ 0")),
    ],
)
def test_types_defaults_and_limits_read_as_they_are(
    section: str, key: str, expected: tuple[str, str, str | None]
) -> None:
    kind, default, meaning = row(section, key)
    assert (kind, default) == expected[:2]
    assert expected[2] is None or re.search(rf"{expected[2]}$", meaning)


def test_a_union_names_its_members_by_their_type() -> None:
    kind, _, _ = row("type: online", "objective")
    assert re.match(r"[^\[]*`type`: \[dpo\]\(#dpo\), \[robust_dpo\]\(#robustdpo\)", kind)
