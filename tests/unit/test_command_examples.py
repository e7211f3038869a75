"""Every command that help, README and docs show: its words are those of the command line; where its config is here, it is run dry."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ultramed_rl.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
# Words that stand for something else: the line says a form, it is no example.
FORM = re.compile(r"\b(CONFIG|RUN_DIR|STEP|MODEL|PATH|URI|JOB)\b|\.\.\.|\$|\[--")
# Rows of the files that examples name.
ROWS: dict[str, Any] = {
    "questions.jsonl": {"question": "What is number %?"},
    "chats.jsonl": {
        "messages": [{"role": "user", "content": "What is %?"}, {"role": "assistant", "content": "It."}]
    },
    "pairs.jsonl": {"prompt": "What is %?", "chosen": "It is.", "rejected": "No."},
}


class Example(NamedTuple):
    """A command line, and whether its page says that it is refused."""

    place: str
    line: str
    refused: bool


def blocks(page: Path, kind: str) -> Iterator[str]:
    """The fenced blocks of a kind."""
    inside: list[str] | None = None
    opened = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if (fence := line.strip()).startswith("```"):
            if inside is None:
                inside, opened = [], fence[3:]
            else:
                if opened == kind:
                    yield "\n".join(inside)
                inside = None
        elif inside is not None:
            inside.append(line)


def examples() -> Iterator[Example]:
    for name, command in COMMANDS.items():
        yield Example(name, re.search(r"Example: ultramed-rl (.*)", command.help)[1], False)  # type: ignore[index]
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:\S*/)?ultramed-rl ([a-z].*)", line)
                words = found[1].partition(" #")[0].strip() if found else ""
                if words and not FORM.search(words):
                    yield Example(page.name, words, "# refused" in line)


EXAMPLES = [*{example.line: example for example in examples()}.values()]
# Files that pages write out: a block whose first line is a comment with the name, and for YAML what it is.
WRITTEN = {
    found[1]: block
    for page in PAGES
    for kind, name in (("yaml", r"# (\S+\.yaml): "), ("python", r"# (\S+\.py)\n"))
    for block in blocks(page, kind)
    if (found := re.match(name, block))
}


def config_of(example: Example) -> str | None:
    """The config that it names."""
    words = shlex.split(example.line)
    return next((word for word in words if word.endswith(".yaml") and "=" not in word), None)


def runs_dry(example: Example) -> bool:
    """Whether its command can be run dry, and its config, if it takes one, is here."""
    name, config = example.line.split()[0], config_of(example)
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    if ("--dry-run" not in options and name != "plan") or example.line.startswith("data show"):
        return False
    if re.search(r"[= ]runs/|s3://", example.line):  # what an earlier run makes, or a store
        return False
    return (
        name in ("evaluate", "reward-bench")
        if config is None
        else config in WRITTEN or (ROOT / config).is_file()
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configs of the project, those that pages write out, the rows they name, and the keys of APIs."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name, text in WRITTEN.items():
        (tmp_path / name).write_text(text)
    for name, row in ROWS.items():
        (tmp_path / name).write_text(
            "".join(json.dumps(row).replace("%", str(n)) + "\n" for n in range(8000))
        )
    (tmp_path / "textbooks").mkdir()
    (tmp_path / "textbooks" / "one.txt").write_text("A paragraph of a textbook.\n" * 20)
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "ULTRAMED_RL_REWARD_TOKEN"):
        monkeypatch.setenv(name, "none")
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.place}: {e.line[:60]}")
def test_an_examples_words_are_those_of_its_command(example: Example) -> None:
    name, *words = shlex.split(example.line)
    COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize("example", [*filter(runs_dry, EXAMPLES)], ids=lambda e: f"{e.place}: {e.line[:60]}")
def test_an_example_whose_config_is_here_runs_dry(machine: Path, example: Example) -> None:
    words = shlex.split(example.line)
    dry = [] if words[0] == "plan" or "--dry-run" in words else ["--dry-run"]
    found = CliRunner().invoke(app, [*words, *dry])
    assert found.exit_code == (2 if example.refused else 0), found.output[-2000:]


def test_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    dry = sum(map(runs_dry, EXAMPLES))
    with capsys.disabled():
        print(f" {len(EXAMPLES)} examples: {dry} run dry, {len(EXAMPLES) - dry} parsed alone")
    assert len(EXAMPLES) > 40 and dry > 20
