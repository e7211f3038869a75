"""What a URL holds for others: stages and recipes on another machine, and those who only read."""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fake_api import fake_api, reply
from tests.report_run import Plan, make_run
from tests.rounds import finish_round, make_prompt
from tests.staged import (
    URL,
    config,
    copy_of,
    here,
    invoke,
    owner,
    there,
)
from ultramed_rl.cli.runs import what_happens
from ultramed_rl.config import DataConfig, parse_config
from ultramed_rl.http.generator import ReplyStore
from ultramed_rl.http.session import ReplyRecord
from ultramed_rl.records import Prompt
from ultramed_rl.stages.data.run import make_data
from ultramed_rl.store import ArtifactFolder, RunDirectory
from ultramed_rl.store.remote import INDEX, at_hand, list_finished
from ultramed_rl.store.remote_folder import WRITER, RemoteFolder

ROWS = [
    {"id": f"S,{n}", "type": "Open", "conversations": [{"from": "human", "value": f"What does drug {n} do?"}]}
    for n in range(6)
]


def data_config(root: Path, machine: str, **more: Any) -> DataConfig:
    (root / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return parse_config(
        {
            "type": "data",
            "run": {"name": "tiny", "directory": "staged://bucket/runs", "scratch": str(root / machine)},
            "input": [str(root / "in.jsonl")],
            "step": {"type": "sample", "sizes": {"S": 3}},
            "cluster": {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8},
            "tracking": {"wandb": "disabled"},
            **more,
        },
        kind=DataConfig,
    )


def test_a_whole_stage_is_read_back_on_another_machine(tmp_path: Path) -> None:
    first = make_data(data_config(tmp_path, "a"))
    read_back = make_data(data_config(tmp_path, "b"), resume=True)
    assert first != read_back and here(first) == here(read_back)
    assert len(here(first)["rows.jsonl"].splitlines()) == 3
    assert json.loads(there()["status.json"])["state"] == "finished"
    assert there() == here(read_back.parent)


SCORE = {"type": "score", "threshold": 1}


def score(root: Path, machine: str, url: str, budget: int, resume: bool = False) -> Path:
    endpoint = {"type": "api", "base_url": url, "model": "m", "structured": "prompt"}
    generators = {"m": {**endpoint, "concurrency": 1, "token_budget": budget}}
    return make_data(data_config(root, machine, generators=generators, step=SCORE), resume=resume)


def test_paid_replies_and_what_they_cost_go_on_with_the_run(tmp_path: Path) -> None:
    said = {"justification": "as it is", "score": 5}
    with fake_api(lambda body: reply(json.dumps(said))) as (url, api):
        with pytest.raises(RuntimeError, match=r"token_budget=40: "):
            score(tmp_path, "a", url, 40)
        paid = len(api.bodies)
        assert 0 < paid < len(ROWS)
        with pytest.raises(RuntimeError, match=r"token_budget=40: "):
            score(tmp_path, "b", url, 40, resume=True)
        assert len(api.bodies) == paid, "another machine began with a budget of its own"
        folder = score(tmp_path, "b", url, 10**6, resume=True)
    assert set(api.seen.values()) == {1}, "a reply was paid for twice"
    assert len((folder / "rows.jsonl").read_text().splitlines()) == len(ROWS)


def test_replies_of_an_unfinished_record_go_on_with_the_run(tmp_path: Path) -> None:
    """Where the log has none of them: the journal alone."""
    journal = tmp_path / "replies.jsonl"
    used = ReplyRecord("row", prompt_tokens=7, completion_tokens=2, cost=0.5, attempts=1, seconds=0.1)
    with closing(ReplyStore(tmp_path / "a", "run", "m", journal)) as first:
        first.write(used, b"1", "one")
        first.write(replace(used, error="empty"), b"2")
        usage = first.usage()
    with journal.open("a") as file:
        file.write('\n{"model": "m", "dig')  # a writer that was killed
    with closing(ReplyStore(tmp_path / "b", "run", "m", journal)) as second:
        assert (second.find(b"1"), second.find(b"2"), second.usage()) == ("one", None, usage)
        second.write(used, b"3", "three")
    with closing(ReplyStore(tmp_path / "a", "run", "m", journal)) as back:
        assert back.find(b"3") == "three" and back.usage().requests == 3
        assert back.usage().cost == pytest.approx(1.5)


def test_a_recipe_at_a_url_goes_on_on_another_machine(tmp_path: Path) -> None:
    first = data_config(tmp_path, "a").to_mapping()
    of_stage = {key: first[key] for key in ("type", "input", "step")}
    recipe = {
        "type": "recipe",
        "run": {"name": "both", "directory": "staged://bucket/runs", "scratch": str(tmp_path / "a")},
        "shared": {"cluster": first["cluster"], "tracking": first["tracking"]},
        "stages": {
            "drawn": of_stage,
            "fewer": {
                **of_stage,
                "input": ["stage://drawn/rows"],
                "step": {"type": "sample", "sizes": {"S": 2}},
            },
        },
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert invoke("data", "drawn", str(file)).exit_code == 0
    shutil.rmtree(tmp_path / "a")
    assert invoke("recipe", str(file)).exit_code != 0, "a stage that is at the URL was begun anew"
    assert invoke("recipe", str(file), "--resume").exit_code == 0
    stages = tmp_path / "a" / "staged" / "bucket" / "runs" / "both"
    for stage, rows in {"drawn": 3, "fewer": 2}.items():
        copy = there(f"staged://bucket/runs/both/{stage}")
        assert copy == here(stages / stage)
        assert len(copy["records/rows.jsonl"].splitlines()) == rows


# -- readers -------------------------------------------------------------------------------------------------


def test_status_report_and_compare_read_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"run__directory": "staged://bucket/runs", "run__publish_every_s": 30.0}
    for name in ("one", "two"):
        make_run(tmp_path, Plan(), run__name=name, run__scratch=str(tmp_path / "a"), **places)
    shutil.rmtree(tmp_path / "a")
    status = invoke("status", "staged://bucket/runs/one", "--json")
    assert status.exit_code == 0, status.output
    told = json.loads(status.stdout.splitlines()[0])
    assert told["directory"] == "staged://bucket/runs/one" and len(told["rounds"]) == 2
    assert invoke("report", "staged://bucket/runs/one").exit_code == 0
    assert "one" in (tmp_path / "one.html").read_text()
    both = invoke("compare", "staged://bucket/runs/one", "staged://bucket/runs/two")
    assert both.exit_code == 0 and (tmp_path / "comparison.html").is_file()
    missing = invoke("status", "staged://bucket/runs/none")
    assert missing.exit_code == 2 and "staged://bucket/runs/none: " in missing.output, missing.output


def test_readers_leave_weights_and_states_where_they_are(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
        (store.path / "states" / "step-1").mkdir(parents=True)
        (store.path / "states" / "step-1" / "state.json").write_text("{}")
    with at_hand(URL) as folder:
        names = list_finished(folder).keys()
        assert folder.name == "tiny" and "rounds/000/scored.parquet" in names
        assert not any("states" in n or n.endswith(".safetensors") for n in names)
    with at_hand(URL, words=True) as folder:
        assert not any(n.endswith(".parquet") for n in list_finished(folder))
    assert not folder.exists()


def test_a_reader_that_an_index_is_replaced_under_reads_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, copying, get = ArtifactFolder(tmp_path), copy_of(tmp_path), RemoteFolder.get
    (tmp_path / "config.yaml").write_text("type: online")
    folder.phase("prompts", lambda: [make_prompt(1)], kind=Prompt)
    copying.publish()
    once = iter([True])

    def replaced(self: RemoteFolder, name: str, *to: Any) -> None:
        if name == "prompts.parquet" and next(once, False):
            folder.discard("prompts")
            folder.phase("prompts", lambda: [make_prompt(n) for n in range(9)], kind=Prompt)
            assert copying.publish()
        get(self, name, *to)

    monkeypatch.setattr(RemoteFolder, "get", replaced)
    with at_hand(URL) as copy:
        assert (copy / WRITER).is_file()
        (copy / WRITER).unlink()
        assert here(copy) == here(tmp_path)


def test_a_run_with_a_lease_is_running_though_its_heartbeat_is_as_old_as_its_last_publication(
    tmp_path: Path,
) -> None:
    at_url = RemoteFolder(URL)
    now = time.time()
    heart = {
        "state": "running",
        "host": "other",
        "pid": 17,
        "began": now - 900,
        "updated": now - 60,
        "started": now,
    }
    at_url.write_json("status.json", heart)
    text = "type: online\nrun: {name: tiny, rounds: 3}\n"
    (tmp_path / "config.yaml").write_text(text)
    at_url.put(tmp_path / "config.yaml", "config.yaml")
    files = {name: [name, [9, 0]] for name in ("config.yaml", "status.json")}
    at_url.write_json(INDEX, {"copy": "its folder", "files": files})
    for changes, state in (
        ({}, "running"),
        ({"renewed": now - 31}, "stopped"),
        ({"released": True}, "stopped"),
    ):
        at_url.write_json(WRITER, asdict(owner(**changes)))
        found = invoke("status", URL, "--json")
        assert json.loads(found.stdout.splitlines()[0])["state"] == state, changes


def test_a_dry_run_looks_at_the_url(tmp_path: Path) -> None:
    begins = what_happens(str(tmp_path / "none"), goes_on=False)
    assert what_happens(URL, goes_on=False) == begins
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
    goes_on = what_happens(URL, goes_on=True)
    assert goes_on != begins and re.search(r"\b1 of 2\b", goes_on)
