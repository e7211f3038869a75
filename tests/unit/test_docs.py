"""The documentation says what is so: its links lead somewhere, and the errors that it explains exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from ultramed_rl.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ANYTHING = "\x00"  # stands in a message for what differs


def strings_of(node: ast.AST) -> Iterator[str]:
    """Every text in a syntax tree but docstrings; f-strings whole, with a mark for each value."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else ANYTHING for part in node.values]
        yield "".join(str(part) for part in parts)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from strings_of(child)


@cache
def messages() -> tuple[str, ...]:
    sources = (ROOT / "ultramed_rl").rglob("*.py")
    found = [text for path in sources for text in strings_of(ast.parse(path.read_text(encoding="utf-8")))]
    return (*found, *(path.read_text(encoding="utf-8") for path in (ROOT / "launch").glob("*.sh")))


PATTERNS = re.findall(
    r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)


def occurs(pattern: str) -> bool:
    pieces = [re.escape(piece) for piece in pattern.split("...")]
    wanted = re.compile(".*".join(pieces), re.DOTALL)
    return any(wanted.search(text) for text in messages())


def test_there_are_errors_to_look_up() -> None:
    assert len(PATTERNS) >= 25 and len(set(PATTERNS)) == len(PATTERNS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_error_that_is_explained_is_one_that_the_code_gives(pattern: str) -> None:
    assert max(len(piece) for piece in pattern.split("...")) >= 10, "too little to tell an error by"
    assert occurs(pattern), "no such message in the source: mend docs/troubleshooting.md"


def test_the_check_of_errors_finds_a_wrong_one() -> None:
    pattern = next(pattern for pattern in PATTERNS if "..." not in pattern)
    assert occurs(pattern) and not occurs(f"{pattern[:10]} {pattern[10:]}")
    assert occurs(f"{pattern[:10]}...{pattern[10:]}") and not occurs(f"{pattern[10:]}...{pattern[:10]}")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_the_index_has_every_page() -> None:
    linked = set(LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked
    assert "docs/index.md" in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_config_that_is_named_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`?(configs/[\w./-]+\.yaml)", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_every_command_is_on_the_page_of_commands() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    missing = [name for name in commands if f"`{name}`" not in text]
    assert commands and not missing


def test_the_readme_has_the_disclaimer_and_all_licences() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "no medical device" in text and "not for diagnosis" in text
    licences = text.partition("## Licences")[2]
    for name in (
        "ray",
        "vllm",
        "torch",
        "plotly",
        "scikit-learn",
        "playwright",
        "tensorboard",
        "open-medicine",
    ):
        assert name in licences, name


def test_the_picture_of_the_loop_suits_light_and_dark_and_needs_nothing_else() -> None:
    picture = (DOCS / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in picture and "<title" in picture
    assert re.findall(r"https?://[^\"' ]+", picture) == ["http://www.w3.org/2000/svg"]
