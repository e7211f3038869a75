"""What a step of the data factory reads of its input, before any model is asked: dry runs refuse the wrong rows, `data show` shows
the right ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ultramed_rl.cli import app

QUESTIONS = [
    {"q": f"Which is {n}?", "o": ["x", "y"], "k": n % 2, "note": "n", "id": f"i{n}"} for n in range(4)
]
RECORDS = [
    {
        "id": f"r{n}",
        "type": "Exam",
        "conversations": [{"from": "human", "value": f"Which is {n}?\n\nA. x\nB. y"}],
        "answer": "B",
    }
    for n in range(4)
]
CHOICE = {"name": "Set", "kind": "Exam", "question": "q", "options": "o", "answer": "k"}


def data_step(root: Path, step: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    api = {"type": "api", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    asking = {
        "score": 1,
        "answer": 1,
        "evolve": 1,
        "rubric": 1,
        "candidates": 2,
        "feedback": 1,
        "topics": 1,
        "textbook": 1,
    }
    generators = dict.fromkeys("mn"[: asking.get(step["type"], 0)], api)
    config = {
        "type": "data",
        "run": {"name": "r", "directory": str(root)},
        "input": [str(root / "rows.jsonl")],
    }
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({**config, "step": step, "generators": generators}, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("step", "rows", "told"),
    [
        ({"type": "records", **CHOICE, "question": "text"}, QUESTIONS, r"no row has a column 'text'"),
        ({"type": "records", **CHOICE}, [{**row, "k": "E"} for row in QUESTIONS], r"4 of 4 .*4 bad_letter; row 1: "),
        ({"type": "records", **CHOICE}, [], "0 rows"),
        ({"type": "vignettes"}, QUESTIONS, "4 of 4|no row has a column"),
        ({"type": "paragraphs", "name": "Set"}, QUESTIONS, "paragraphs are cut"),
        ({"type": "score"}, QUESTIONS, r"4 of the first 4 rows are none that score reads \(4 column; row 1: .*'conversations'"),
        ({"type": "answer"}, [{**row, "answer": "E"} for row in RECORDS], r"\(4 key; row 1: "),
        ({"type": "evolve"}, QUESTIONS, r"4 column"),
        ({"type": "rubric"}, RECORDS, r"4 misfit; row 1: no answer"),
        ({"type": "candidates"}, QUESTIONS, r"4 column"),
        ({"type": "rules"}, RECORDS, r"4 row; row 1: .*candidates"),
        ({"type": "feedback"}, RECORDS, r"4 row; row 1: .*candidates"),
        ({"type": "topics", "mode": "subfields"}, QUESTIONS, r"row 1: no text under 'name'"),
        ({"type": "textbook", "name": "Set", "exemplars": 0}, QUESTIONS, r"row 1: no text under 'text'"),
        ({"type": "deduplicate"}, QUESTIONS, r"1 of the first 1|4 row; row 1: .*'conversations'"),
        ({"type": "pairs"}, RECORDS, r"4 row; row 1: .*candidates"),
        ({"type": "report"}, QUESTIONS, r"4 column; row 1: "),
    ],
)  # fmt: skip
def test_every_step_reads_its_first_rows(
    tmp_path: Path, step: dict[str, Any], rows: list[dict[str, Any]], told: str
) -> None:
    found = CliRunner().invoke(app, ["data", step["type"], str(data_step(tmp_path, step, rows)), "--dry-run"])
    assert found.exit_code == 2, found.output
    assert re.search(told, found.stderr), found.stderr


@pytest.mark.parametrize(
    ("step", "rows", "shown"),
    [
        ({"type": "records", **CHOICE}, QUESTIONS, "a record of type Exam\nWhich is 0?\n\nA. x\nB. y\n-- the key: A"),
        ({"type": "records", **CHOICE}, QUESTIONS, "not read: note (4 rows), id (4 rows)"),
        ({"type": "score"}, RECORDS, "[r0] asked first; user\nuser: "),
        ({"type": "candidates"}, RECORDS, "user: Which is 0?\n\nA. x\nB. y"),
        ({"type": "deduplicate"}, RECORDS, "[r0] the text that is read\nWhich is 0?"),
        ({"type": "sample", "sizes": {"Exam": 1}}, RECORDS, "[r0] columns id, type, conversations, answer"),
        ({"type": "paragraphs", "name": "Set", "least_words": 2}, [{"id": "p", "content": "Two words."}], "[Set,p_1] 2 words\nTwo words."),
    ],
)  # fmt: skip
def test_data_show_shows_what_a_step_makes_of_a_row(
    tmp_path: Path, step: dict[str, Any], rows: list[dict[str, Any]], shown: str
) -> None:
    path = str(data_step(tmp_path, step, rows))
    found = CliRunner().invoke(app, ["data", "show", path, "--rows", "1"])
    assert found.exit_code == 0, found.output
    assert shown in found.stdout, found.stdout
    assert CliRunner().invoke(app, ["data", step["type"], path, "--dry-run"]).exit_code == 0


def test_data_show_shows_a_benchmarks_questions_and_dry_runs_count_from_its_first_place(
    tmp_path: Path,
) -> None:
    rows = [{"question": f"Which is {n}?", "options": ["x", "y", "z"], "answer_idx": 1} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "medqa", "uri": str(tmp_path / "rows.jsonl")}
    config = {
        "type": "evaluate",
        "run": {"name": "r", "directory": str(tmp_path)},
        "policies": {"one": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "cluster": {"device": "cpu", "rollout": {"kv_cache_gib": 1.0}},
    }
    path = tmp_path / "my.yaml"
    for first, key in (("auto", ""), (0, "B"), (1, "A")):
        tasks = {"tasks": [{**task, "first_place": first}]}
        path.write_text(yaml.safe_dump({**config, "benchmarks": tasks}, sort_keys=False))
        shown = CliRunner().invoke(app, ["data", "show", str(path), "--rows", "1"])
        tried = CliRunner().invoke(app, ["evaluate", str(path), "--dry-run"])
        assert (shown.exit_code, tried.exit_code) == ((0, 0) if key else (2, 2)), shown.output + tried.output
        assert not key or re.search(rf"Which is 0\?\n\nA\. x\n(.|\n)*\n-- the key: {key}", shown.stdout)
