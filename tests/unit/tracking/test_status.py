"""A run's status is read from its files alone, tells the living from the dead, and writing it never hurts a run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.rounds import finish_round
from tests.tiny import tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config import parse_config
from ultramed_rl.store import RunDirectory
from ultramed_rl.tracking import Progress, watched
from ultramed_rl.tracking.heartbeat import STATUS, note_link
from ultramed_rl.tracking.status import follow, read_status, render_status, status_mapping
from ultramed_rl.tracking.tables import duration

ROUND = {"round": 0.0, "reward_mean": 3.25, "seconds": 100.0, "eval_change": 0.5}


def open_run(root: Path, rounds: int = 3) -> RunDirectory:
    return RunDirectory.open(parse_config(tiny_run(root, run__rounds=rounds)), resume=False)


def beat(directory: Path, **changes: Any) -> None:
    """A heartbeat of this process as of now, with changes."""
    now = time.time()
    content = {
        "phase": "generate",
        "done": 30,
        "total": 120,
        "unit": "completions",
        "started": now - 10,
        "state": "running",
        "error": "",
        "began": now - 250,
        "updated": now,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "links": {},
        "stages": [],
        **changes,
    }
    (directory / STATUS).write_text(json.dumps(content))


def wait_for(directory: Path, **wanted: Any) -> dict[str, Any]:
    """The heartbeat once it says so."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = json.loads((directory / STATUS).read_text()) if (directory / STATUS).is_file() else {}
        if all(found.get(key) == value for key, value in wanted.items()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{wanted} is never said")


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# -- the heartbeat -----------------------------------------------------------------------------------------


def test_the_heartbeat_says_what_is_being_done_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.heartbeat._EVERY_S", 0.05)
    progress = Progress()
    with watched(tmp_path), progress.phase("generate", 8, unit="completions") as bar:
        bar.advance(3)
        found = wait_for(tmp_path, phase="generate", done=3, total=8)
        assert found["state"] == "running" and found["pid"] == os.getpid()
        with progress.phase("score", 2, unit="answers"):
            wait_for(tmp_path, phase="score")
        wait_for(tmp_path, phase="generate", done=3)
    assert wait_for(tmp_path, state="finished")["phase"] == "generate"


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("no pair"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_an_end_by_an_error_is_said_with_its_words(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), watched(tmp_path):
        raise error
    found = json.loads((tmp_path / STATUS).read_text())
    assert (found["state"], found["error"]) == (state, str(error))


def test_a_stage_within_a_recipe_beats_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.heartbeat._EVERY_S", 0.05)
    (tmp_path / "sft").mkdir()
    with watched(tmp_path, stages=("sft", "online")):
        with watched(tmp_path / "sft"), Progress().phase("train", 4, unit="steps"):
            wait_for(tmp_path / "sft", phase="train")
            assert "phase" not in wait_for(tmp_path, stages=["sft", "online"])
        wait_for(tmp_path / "sft", state="finished")
        wait_for(tmp_path, state="running")


def test_a_disk_that_refuses_stops_nothing_and_is_one_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with watched(tmp_path / "never made"), Progress().phase("train", 2, unit="steps") as bar:
        bar.advance(2)
    assert len([w for w in recwarn if str(w.message).startswith(f"{tmp_path}/never made/{STATUS}: ")]) == 1


def test_a_disk_that_hangs_holds_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.heartbeat._LAST_S", 0.2)
    # Opening a pipe that nobody reads blocks for ever, as a network disk that is away does: so would this test.
    os.mkfifo(tmp_path / f".tmp-{STATUS}")
    with watched(tmp_path), Progress().phase("train", 1000, unit="steps") as bar:
        for _ in range(1000):
            bar.advance(1)
    assert not (tmp_path / STATUS).exists()


def test_the_heartbeats_thread_ends_with_its_run(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with watched(tmp_path):
        assert [thread.name for thread in set(threading.enumerate()) - before] == ["heartbeat"]
    assert set(threading.enumerate()) <= before


def test_a_bad_start_can_still_be_mended_under_the_same_name(tmp_path: Path) -> None:
    config = parse_config(tiny_run(tmp_path))
    for _ in range(2):
        with (
            pytest.raises(ValueError, match="bad input"),
            RunDirectory.open(config, False) as store,
            watched(store.path),
        ):
            raise ValueError("bad input")


# -- reading -----------------------------------------------------------------------------------------------


def test_an_online_run_under_way(tmp_path: Path) -> None:
    store = open_run(tmp_path)
    finish_round(store, 0, ROUND)
    finish_round(store, 1)  # its phases took next to nothing
    beat(store.path, links={"ray dashboard": "http://head:8265"})
    status = read_status(store.path)
    assert (status.kind, status.state, len(status.rounds), status.rounds_wanted) == (
        "online",
        "running",
        1,
        3,
    )
    assert status.work is not None and status.driver is not None
    assert status.work.rate == pytest.approx(3.0, rel=0.01), "30 in 10 seconds"
    assert status.work.left_s == pytest.approx(30.0, rel=0.01), "90 more at 3 a second"
    assert status.left_s == pytest.approx(2 * 100.0 - 10.0, abs=1.0), "two rounds like the first, less 10 s"
    assert status.metrics["round"]["reward_mean"] == 3.25
    assert status.driver.pid == os.getpid() and status.driver.silent_s < 5

    text = render_status(status)
    assert re.search(r"^tiny \(online\): running, .*\b2 of 3, .*\b4 min .*\b3 min ", text)
    assert re.search(r"\[#{6}\.{18}\]  generate: 30/120 .* 3 .* 30 s ", text)
    assert re.search(rf"\b{os.getpid()} .*{socket.gethostname()}", text) and "http://head:8265" in text
    told = json.loads(json.dumps(status_mapping(status)))
    assert told["work"]["rate"] == pytest.approx(3.0, rel=0.01) and told["directory"] == str(store.path)


def test_a_killed_driver_is_not_called_running(tmp_path: Path) -> None:
    store = open_run(tmp_path)
    store._lock.close()
    beat(store.path, pid=dead_process())
    status = read_status(store.path)
    assert (status.state, status.work, status.driver) == ("stopped", None, None)


@pytest.mark.parametrize(("silent", "state"), [(5.0, "running"), (300.0, "stopped")])
def test_a_driver_on_another_machine_lives_by_its_heartbeat(
    tmp_path: Path, silent: float, state: str
) -> None:
    store = open_run(tmp_path)
    store._lock.close()
    beat(store.path, pid=dead_process(), host="elsewhere", updated=time.time() - silent)
    assert read_status(store.path).state == state


def test_without_a_heartbeat_the_lock_tells(tmp_path: Path) -> None:
    store = open_run(tmp_path)
    assert read_status(store.path).state == "running"
    store._lock.close()
    assert read_status(store.path).state == "stopped"
    RunDirectory.open(store.config, resume=True)  # asking has not kept the lock


@pytest.mark.parametrize("state", ["failed", "interrupted", "finished"])
def test_what_the_driver_said_last_counts_once_it_is_gone(tmp_path: Path, state: str) -> None:
    store = open_run(tmp_path)
    store._lock.close()
    beat(store.path, state=state, error="the loss is nan")
    status = read_status(store.path)
    assert status.state == state and ("the loss is nan" in render_status(status)) == (state == "failed")


def test_a_run_of_before_there_were_heartbeats_is_finished_by_its_rounds(tmp_path: Path) -> None:
    store = open_run(tmp_path, rounds=2)
    for index in range(2):
        finish_round(store, index, {**ROUND, "round": float(index)})
    store._lock.close()
    status = read_status(store.path)
    assert status.state == "finished" and "3.25" in render_status(status)


def test_a_recipe_shows_every_stage_the_waiting_ones_too(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    for name, kind in (("score", "data"), ("sft", "sft")):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text(yaml.safe_dump({"type": kind, "run": {"name": name}}))
    (folder / "score" / "records.json").write_text(json.dumps({"metrics": {"kept": 9.0}}))
    (folder / "sft" / "metrics.jsonl").write_text('{"step_index": 4, "loss": 0.5}\n{"step_index": 5, "lo')
    beat(folder, stages=["score", "sft", "online"])
    beat(folder / "sft", phase="train sft", unit="steps", done=5, total=10)
    status = read_status(folder)
    assert [(s.name, s.state) for s in status.stages] == [
        ("score", "finished"),
        ("sft", "running"),
        ("online", "waiting"),
    ]
    assert status.state == "running" and status.work is not None and status.work.done == 5
    assert status.stages[1].metrics["step"] == {"step_index": 4, "loss": 0.5}, "half a line is no row"
    assert "whole (recipe): running, 1 of 3 " in render_status(status)


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["status", str(tmp_path)])
    (line,) = found.output.splitlines()
    assert found.exit_code == 2 and line.startswith(f"{tmp_path}: ") and "runs/NAME" in line


def test_half_written_files_are_no_error(tmp_path: Path) -> None:
    store = open_run(tmp_path)
    finish_round(store, 0, ROUND)
    (store.path / STATUS).write_text('{"phase": "gen')
    (store.path / "rounds" / "001").mkdir()
    (store.path / "rounds" / "001" / "commit.json").write_text("")
    assert len(read_status(store.path).rounds) == 1


# -- the command -------------------------------------------------------------------------------------------


def test_json_is_one_object_on_one_line(tmp_path: Path) -> None:
    store = open_run(tmp_path)
    finish_round(store, 0, {**ROUND, "kl": float("nan")})
    found = CliRunner().invoke(app, ["status", str(store.path), "--json"])
    (line,) = found.stdout.splitlines()
    told = json.loads(line)
    assert (told["event"], told["state"], told["rounds_wanted"]) == ("status", "running", 3)
    assert found.stderr.startswith("tiny (online): running"), "people read stderr then"


DRIVER = """
import sys, time
from ultramed_rl.config import load_config
from ultramed_rl.store import RunDirectory
from ultramed_rl.tracking import Progress, watched
with RunDirectory.open(load_config(sys.argv[1]), resume=False) as store, watched(store.path):
    with Progress().phase("generate", 1000, unit="completions") as bar:
        print("begun", flush=True)
        for _ in range(int(sys.argv[2])):
            bar.advance(1)
            time.sleep(0.05)
"""


def start_driver(root: Path, steps: int) -> subprocess.Popen[str]:
    file = root / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_run(root)))
    command = [sys.executable, "-c", DRIVER, str(file), str(steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def test_follow_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start_driver(tmp_path, steps=10)
    wait_for(tmp_path / "runs" / "tiny", state="running")
    status = follow(tmp_path / "runs" / "tiny", every_s=0.1)
    process.wait()
    lines = capsys.readouterr().out.splitlines()
    assert status.state == "finished" and re.match(r"tiny \(online\): running, .*\b1 of 2\b", lines[0])
    assert lines[-1] == "tiny (online): finished"


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_follow_says_by_its_exit_code_that_a_run_ended_early(tmp_path: Path, signal_number: int) -> None:
    process = start_driver(tmp_path, steps=100_000)
    wait_for(tmp_path / "runs" / "tiny", state="running")
    process.send_signal(signal_number)
    process.wait()
    found = CliRunner().invoke(app, ["status", str(tmp_path / "runs" / "tiny"), "--follow"])
    state = "stopped" if signal_number == signal.SIGKILL else "interrupted"
    assert found.exit_code == 1 and f"tiny (online): {state}" in found.output


def test_links_are_whole_addresses(tmp_path: Path) -> None:
    note_link("ray dashboard", "10.0.0.1:8265")
    try:
        with watched(tmp_path):
            wait_for(tmp_path, links={"ray dashboard": "http://10.0.0.1:8265"})
    finally:
        note_link("ray dashboard", None)


@pytest.mark.parametrize(
    ("seconds", "words"), [(42.4, "42 s"), (4.04, "4.0 s"), (150, "2 min 30 s"), (11_100, "3 h 05 min")]
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
