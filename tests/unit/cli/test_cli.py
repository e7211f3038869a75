"""The command line's manners: help, light start, completion, dry runs, JSON and quiet modes, Ctrl-C, exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from tests.fake_api import Said, fake_api, reply
from tests.rounds import finish_round
from tests.tiny import make_policy, make_questions, make_reward, tiny_run
from ultramed_rl.cli import app
from ultramed_rl.cli.runs import Invocation
from ultramed_rl.config import parse_config
from ultramed_rl.store import RunDirectory
from ultramed_rl.tracking import Progress
from ultramed_rl.tracking.console import speaking, tell, tell_result

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = {"torch", "ray", "vllm", "transformers", "datasets", "wandb", "pandas", "plotly", "deepspeed"}
RUNNING = ("run", "sft", "reward", "preference", "contrasts", "evaluate", "reward-bench", "recipe", "data")
DEVICES = {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def events(text: str) -> list[dict[str, Any]]:
    """Every line must be an object."""
    return [json.loads(line) for line in text.splitlines()]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_has_its_own_example_and_exit_codes(name: str) -> None:
    found = invoke(name, "--help")
    text = " ".join(found.output.replace("│", " ").split())
    assert found.exit_code == 0 and f"Example: ultramed-rl {name}" in text
    assert re.search(r": 0 [^:]*, 1 [^:]*, 2 [^:]*, 130 ", text), text
    assert "...]..." not in text and "[[" not in text


def test_help_loads_nothing_heavy() -> None:
    """One after the other in a process of their own, each with what it was the first to load."""
    code = (
        "import json, sys\n"
        "from ultramed_rl.cli import app\n"
        "loaded = {}\n"
        f"for name in {['', *COMMANDS]!r}:\n"
        "    app([*name.split(), '--help'], standalone_mode=False)\n"
        f"    loaded[name] = sorted(set(sys.modules) & {HEAVY!r} - set().union(*loaded.values()))\n"
        "print(json.dumps(loaded), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stderr) == {name: [] for name in ["", *COMMANDS]}


def test_every_command_that_runs_something_can_resume_run_dry_and_speak_json() -> None:
    for name in RUNNING:
        params = get_command(app).commands[name].params  # type: ignore[attr-defined]
        options = {option for parameter in params for option in parameter.opts}
        assert {"--resume", "--dry-run", "--quiet", "--json"} <= options, name


@pytest.mark.parametrize(("typed", "expected"), [("rec", "recipe"), ("run --dr", "--dry-run")])
def test_the_shell_completes_commands_and_options(typed: str, expected: str) -> None:
    script = Path(sys.executable).with_name("ultramed-rl")
    words = f"ultramed-rl {typed}"
    environment = {
        "_ULTRAMED_RL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    found = subprocess.run([str(script)], capture_output=True, text=True, env={**os.environ, **environment})
    assert expected in found.stdout.split()


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert invoke("--version").output.strip() == version("ultramed_rl")


# -- dry runs ----------------------------------------------------------------------------------------------


def write_run(root: Path, **changes: Any) -> Path:
    make_policy(root / "policy")
    make_reward(root / "reward")
    make_questions(root / "questions.jsonl")
    file = root / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_run(root, **changes)))
    return file


def test_a_dry_run_says_what_would_be_done_and_leaves_no_trace(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    before = listing(tmp_path)
    found = invoke("run", str(file), "--dry-run")
    assert found.exit_code == 0, found.output
    assert f"tiny (online) in {tmp_path / 'runs' / 'tiny'}: " in found.output
    assert "rollout" in found.output
    assert listing(tmp_path) == before


def test_a_dry_run_of_a_begun_run_wants_resume_and_says_where_it_goes_on(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    with RunDirectory.open(parse_config(tiny_run(tmp_path)), resume=False) as store:
        finish_round(store, 0, {"round": 0.0, "seconds": 1.0})
        locked = invoke("run", str(file), "--dry-run", "--resume")
        assert (locked.exit_code, "/tiny: " in locked.output, "rollout" in locked.output) == (1, True, False)
    refused = invoke("run", str(file), "--dry-run")
    assert refused.exit_code == 1 and re.search(r"/tiny: .* --resume, .*run\.name", refused.output)
    resumed = invoke("run", str(file), "--dry-run", "--resume")
    assert resumed.exit_code == 0 and re.search(r"/tiny: [a-z ]+ 1 [a-z]+ 2 ", resumed.output)


def test_a_dry_run_still_refuses_what_is_wrong(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    found = invoke("run", str(file), "cluster.device_memory_gib=0.01", "--dry-run")
    assert found.exit_code == 2 and "cluster.device_memory_gib=0.01" in found.output


def factory(root: Path) -> Path:
    """A recipe of two data stages that need no model."""
    rows = [
        {
            "id": f"Set,{number}",
            "type": "Open-End",
            "conversations": [{"from": "human", "value": f"What does drug {number} do for a patient?"}],
            "candidates": [
                {"model": "a", "text": "It is is is is is is is is is is"},
                {
                    "model": "b",
                    "text": f"Drug {number} lowers a patient's pressure, and is taken once a day.",
                },
            ],
        }
        for number in range(4)
    ]
    source = root / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = {
        "judged": {"type": "data", "input": [str(source)], "step": {"type": "rules"}},
        "pairs": {
            "type": "data",
            "input": ["stage://judged/rows"],
            "step": {"type": "pairs", "splits": {"dev": 1, "test": 1}},
        },
    }
    recipe = {
        "type": "recipe",
        "run": {"name": "factory", "directory": str(root)},
        "shared": {"cluster": DEVICES, "tracking": {"wandb": "disabled"}},
        "stages": stages,
    }
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.mark.parametrize("arguments", [["recipe"], ["data", "all"], ["data", "pairs"]])
def test_a_dry_recipe_shows_its_stages_and_leaves_no_trace(tmp_path: Path, arguments: list[str]) -> None:
    file = factory(tmp_path)
    before = listing(tmp_path)
    found = invoke(*arguments, str(file), "--dry-run", "--json")
    assert found.exit_code == 0, found.output
    told = events(found.stdout)
    plans = [event["name"] for event in told if event["event"] == "plan"]
    assert plans == (["pairs"] if arguments[-1] == "pairs" else ["judged", "pairs"])
    assert (told[-1]["event"], told[-1]["ok"], told[-1]["dry_run"]) == ("result", True, True)
    assert listing(tmp_path) == before


# -- json and quiet ----------------------------------------------------------------------------------------


def test_json_is_one_object_a_line_with_the_result_last(tmp_path: Path) -> None:
    found = invoke("recipe", str(factory(tmp_path)), "--json")
    assert found.exit_code == 0, found.output
    told = events(found.stdout)
    assert {event["event"] for event in told} <= {
        "phase_started",
        "phase_finished",
        "progress",
        "metrics",
        "result",
    }
    assert [event["kind"] for event in told if event["event"] == "metrics"] == ["data", "data"]
    result = told[-1]
    assert (result["event"], result["ok"], result["exit_code"]) == ("result", True, 0)
    assert result["output"] == str(tmp_path / "factory") and set(result["outputs"]) == {"judged", "pairs"}
    assert re.search(r"\b1 [a-z]+ 2: judged \(data\)", found.stderr), "people read stderr then"


def test_json_tells_of_failures_with_their_exit_code(tmp_path: Path) -> None:
    file = factory(tmp_path)
    wrong = invoke("recipe", str(file), "stages.judged.step.type=rule", "--json")
    assert wrong.exit_code == 2
    assert events(wrong.stdout)[-1]["exit_code"] == 2 and not events(wrong.stdout)[-1]["ok"]
    assert invoke("recipe", str(file), "-q").exit_code == 0
    again = invoke("recipe", str(file), "--json")
    (result,) = events(again.stdout)
    assert (again.exit_code, result["exit_code"]) == (1, 1)
    assert re.search(r"/factory: .*\(judged, pairs\).* --resume", result["error"])
    assert result["resume"] == f"ultramed-rl recipe {file} --resume"


def test_quiet_says_the_output_alone(tmp_path: Path) -> None:
    found = invoke("data", "judged", str(factory(tmp_path)), "--quiet")
    assert found.stdout.splitlines() == [str(tmp_path / "factory" / "judged" / "records")]
    assert found.stderr == ""


def test_quiet_and_json_exclude_each_other() -> None:
    found = invoke("run", "nowhere.yaml", "-q", "--json")
    assert found.exit_code == 2 and "--quiet and --json: " in found.output


def test_what_others_print_does_not_mix_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking("json"):
        print("a library's greeting")
        with Progress().phase("train", 2, unit="steps") as bar:
            bar.advance(2)
        tell("metrics", metrics={"loss": float("nan"), "nested": [float("inf"), "<b>\u2028"]})
        tell_result(True)
    captured = capsys.readouterr()
    told = events(captured.out)
    assert [event["event"] for event in told] == ["phase_started", "phase_finished", "metrics", "result"]
    assert told[1]["done"] == 2 and told[2]["metrics"] == {"loss": None, "nested": [None, "<b>\u2028"]}
    assert "a library's greeting" in captured.err


def test_a_reader_that_goes_away_stops_nothing() -> None:
    code = (
        "from ultramed_rl.tracking.console import speaking, tell\n"
        "import sys, time\n"
        "with speaking('json'):\n"
        "    for number in range(2000):\n"
        "        tell('step', number=number, text='x' * 200)\n"
        "    print('came to the end')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "came to the end" in process.stderr.read()
    process.wait()


# -- interruption ------------------------------------------------------------------------------------------


def test_the_line_to_go_on_with_is_one_that_a_shell_reads() -> None:
    overrides = ('policies={"a": "my model"}', "run.name=mine")
    line = Invocation(None, overrides).again("evaluate")
    assert shlex.split(line) == ["ultramed-rl", "evaluate", *overrides, "--resume"]
    again = Invocation("c.yaml", retry_failed=True).again("data score")
    assert again == "ultramed-rl data score c.yaml --retry-failed --resume"


def test_ctrl_c_keeps_what_was_done_and_its_line_goes_on(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"S,{n}",
            "type": "Open-End",
            "conversations": [{"from": "human", "value": f"What is drug number {n}?"}],
        }
        for n in range(40)
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def slow(_: dict[str, Any]) -> Said:
        return Said(reply('{"justification": "asks", "score": 8}').body, delay_s=0.1)

    with fake_api(slow) as (url, api):
        config = {
            "type": "data",
            "run": {"name": "score", "directory": str(tmp_path / "runs")},
            "input": [str(source)],
            "step": {"type": "score"},
            "cluster": DEVICES,
            "tracking": {"wandb": "disabled"},
            "generators": {
                "m": {"type": "api", "base_url": url, "model": "m", "structured": "prompt", "concurrency": 2}
            },
        }
        file = tmp_path / "score config.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "ultramed_rl.cli", "data", "score", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(api.bodies) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        found = re.fullmatch(r"interrupted.* (ultramed-rl data score .*)", said.splitlines()[-1])
        assert found, said
        status = json.loads((tmp_path / "runs" / "score" / "status.json").read_text())
        assert status["state"] == "interrupted"
        again = shlex.split(found[1])
        resumed = CliRunner().invoke(app, again[1:])
        assert resumed.exit_code == 0, resumed.output
    kept = (tmp_path / "runs" / "score" / "records" / "rows.jsonl").read_text().splitlines()
    assert len(kept) == 40


# -- reports -----------------------------------------------------------------------------------------------


def test_a_comparison_needs_two_runs_and_a_report_needs_one(tmp_path: Path) -> None:
    found = invoke("compare", str(tmp_path))
    assert found.exit_code == 2 and f"{tmp_path}: 1 " in found.output
    for arguments in (["report", str(tmp_path)], ["compare", str(tmp_path), str(tmp_path)]):
        found = invoke(*arguments)
        assert found.exit_code == 2 and f"{tmp_path}: " in found.output and " runs/NAME" in found.output
