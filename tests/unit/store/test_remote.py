"""A run's copy at a URL: what is published, and who goes on from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.rounds import finish_round, make_prompt
from tests.staged import (
    TICK_S,
    URL,
    Killed,
    Staged,
    config,
    copy_of,
    here,
    made,
    objects,
    there,
)
from ultramed_rl.config import dump_config
from ultramed_rl.records import Prompt
from ultramed_rl.store import ArtifactFolder, RunDirectory
from ultramed_rl.store.artifacts import read_manifests
from ultramed_rl.store.remote import (
    INDEX,
    Version,
    list_finished,
)
from ultramed_rl.store.remote_folder import RemoteFolder

# -- publication ---------------------------------------------------------------------------------------------


def count_uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    put = RemoteFolder.put

    def counted(self: RemoteFolder, source: Path | str, name: str) -> None:
        found.append((re.sub(r"^replaced/\w+/", "", name), os.path.getsize(source)))
        put(self, source, name)

    monkeypatch.setattr(RemoteFolder, "put", counted)
    return found


@pytest.mark.parametrize(
    "store", ["staged://bucket/runs", "memory://runs", "file://{root}/store", "local://{root}/s"]
)
def test_a_run_is_published_and_resumed_on_a_machine_that_has_never_seen_it(
    tmp_path: Path, store: str
) -> None:
    url = store.format(root=tmp_path)
    with RunDirectory.open(config(tmp_path, "a", url), resume=False) as one:
        finish_round(one, 0, {"round": 0.0, "seconds": 1.0})
        finish_round(one, 1)
        one.append_metrics({"round_index": 0})
        path = one.path
    assert there(f"{url}/tiny") == here(path)
    with RunDirectory.open(config(tmp_path, "b", url), resume=True) as other:
        assert other.path != path and made(here(other.path)) == made(here(path))
        assert other.committed_rounds() == 1
        never = pytest.fail
        other.round(1).phase("prompts", never, kind=Prompt)  # reads it back, verified
        other.round(1).directory("checkpoint")
        other.round(1).commit({"round": 1.0})
        path = other.path
    assert there(f"{url}/tiny") == here(path) and "rounds/001/commit.json" in there(f"{url}/tiny")


def test_a_restart_uploads_what_changed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = count_uploads(monkeypatch)
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
        sizes = {name: len(content) for name, content in here(store.path).items()}
    assert sorted(uploads) == sorted(sizes.items()), "each file once, with its bytes"
    uploads.clear()
    with RunDirectory.open(config(tmp_path), resume=True) as store:
        store.append_metrics({"step_index": 1})
        line = (store.path / "metrics.jsonl").stat().st_size
    text = sizes["config.yaml"]  # written anew with each start
    assert sorted(uploads) == [("config.yaml", text), ("metrics.jsonl", line)]


def test_a_replaced_file_stays_until_the_index_names_the_new_one_and_the_plain_name_comes_back(
    tmp_path: Path,
) -> None:
    folder, copying = ArtifactFolder(tmp_path), copy_of(tmp_path)
    for count in (1, 2, 3):
        folder.discard("prompts")
        folder.phase("prompts", lambda count=count: [make_prompt(n) for n in range(count)], kind=Prompt)
        time.sleep(TICK_S)
        assert copying.publish() and there() == here(tmp_path)
        plain = {"prompts.json", "prompts.parquet"} <= objects().keys()
        assert plain == (count != 2) and len(objects()) == 3, "two files and the index"


def test_files_without_an_index_are_not_taken_for_a_run(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
    before = objects()
    Staged.store.pop(f"/bucket/runs/tiny/{INDEX}")
    with pytest.raises(ValueError, match=rf"^{URL}: .*{INDEX}"):
        RunDirectory.open(config(tmp_path, "b"), resume=True)
    assert objects() == {name: content for name, content in before.items() if name != INDEX}
    Staged.store.clear()
    with RunDirectory.open(config(tmp_path, "b"), resume=False):
        pass


def test_what_a_failed_publication_had_uploaded_is_not_uploaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    for number in range(6):
        (tmp_path / "model" / f"{number}.safetensors").write_bytes(bytes(100))

    def fail(step: str, path: str) -> None:
        if step == "move" and path.endswith(("4.safetensors", "5.safetensors")):
            raise ConnectionError("the network is down")

    copying = copy_of(tmp_path)
    Staged.before = staticmethod(fail)
    with pytest.raises(ConnectionError):
        copying.publish()
    assert sorted(objects()) == [INDEX, *(f"model/{n}.safetensors" for n in range(4))] and not there(), (
        "half is seen"
    )
    Staged.before = staticmethod(lambda step, path: None)
    uploads = count_uploads(monkeypatch)
    assert copying.publish()
    assert uploads == [("model/4.safetensors", 100), ("model/5.safetensors", 100)]


def test_what_a_killed_publication_had_uploaded_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"a")
    copying = copy_of(tmp_path)

    def die(step: str, path: str) -> None:
        if path.endswith(INDEX):
            raise Killed

    Staged.before = staticmethod(die)
    with pytest.raises(Killed):
        copying.publish()
    Staged.before = staticmethod(lambda step, path: None)
    (tmp_path / "a.bin").write_bytes(b"b")
    assert copy_of(tmp_path).publish()
    assert there() == {"a.bin": b"b"} and len(objects()) == 2


def test_a_log_that_goes_on_growing_holds_nothing_back(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    copying = copy_of(tmp_path)

    def listed(folder: Path) -> dict[str, Version]:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("{}\n")
        return list_finished(folder)

    with patch("ultramed_rl.store.remote.list_finished", listed):
        assert copying.publish() and there().keys() == {"kept.txt", "metrics.jsonl"}
    assert copying.publish() and there() == here(tmp_path)
    assert sorted(objects()) == [INDEX, "kept.txt", "metrics.jsonl"], "a log keeps its name"


def test_half_written_files_locks_links_and_sockets_are_never_published(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".tmp-model").mkdir()
    (tmp_path / ".tmp-model" / "weights.bin").write_bytes(b"half")
    (tmp_path / ".tmp-status.json").write_text("half")
    (tmp_path / "link").symlink_to(tmp_path / "kept.txt")
    os.mkfifo(tmp_path / "pipe")
    assert copy_of(tmp_path).publish()
    assert there() == {"kept.txt": b"kept"}


def test_what_is_deleted_here_goes_there_after_the_manifest_says_so(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
        finish_round(store, 1, {"round": 1.0})
        copying = store._remote
        assert copying is not None
        copying.publish()
        seen: list[str] = []

        def watch(step: str, path: str) -> None:
            if step == "delete" and "/checkpoint/" in path:
                seen.append(path)
                assert json.loads(there()["rounds/000/checkpoint.json"])["pruned"]

        Staged.before = staticmethod(watch)
        store.prune_checkpoints(1)
        assert copying.publish()
        assert len(seen) == 2 and not any(n.startswith("rounds/000/checkpoint/") for n in there())
        assert any(n.startswith("rounds/001/checkpoint/") for n in there())


def test_checkpoints_that_nobody_needs_stay_at_the_url_until_they_are_pruned(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        for index in range(3):
            finish_round(store, index, {"round": float(index)})
    with RunDirectory.open(config(tmp_path, "b"), resume=True) as store:
        assert store.committed_rounds() == 3
        assert [len(list((store.round(i).path / "checkpoint").iterdir())) for i in range(3)] == [0, 0, 2]
        store.verify_committed()
    assert "rounds/000/checkpoint/model.safetensors" in there()
    with RunDirectory.open(config(tmp_path, "b", run__keep_checkpoints=1), resume=True) as store:
        store.prune_checkpoints(1)
    assert [n for n in there() if n.endswith(".safetensors")] == ["rounds/002/checkpoint/model.safetensors"]
    assert json.loads(there()["rounds/000/checkpoint.json"])["pruned"]


def test_a_run_that_bad_input_stopped_leaves_its_name_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), RunDirectory.open(config(tmp_path), resume=False):
        raise ValueError("bad")
    assert "config.yaml" not in there()
    with RunDirectory.open(config(tmp_path, "b", objective__beta=0.2), resume=False):
        pass


def test_a_run_that_is_killed_while_it_is_published_goes_on_on_another_machine(tmp_path: Path) -> None:
    """A process and its end, not a model of them: whatever the URL calls finished is read back, verified."""
    url = f"file://{tmp_path}/store"
    settings = dump_config(config(tmp_path, "a", url, run__publish_every_s=0.02, run__rounds=50))
    (tmp_path / "run.yaml").write_text(settings)
    code = textwrap.dedent(
        f"""
        from tests.rounds import finish_round
        from ultramed_rl.config import load_config
        from ultramed_rl.store import RunDirectory
        with RunDirectory.open(load_config("{tmp_path}/run.yaml"), resume=False) as store:
            for index in range(50):
                finish_round(store, index, {{"round": float(index)}})
                store.prune_checkpoints(2)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 60
    index = tmp_path / "store" / "tiny" / INDEX
    while not (index.is_file() and "rounds/003/commit.json" in index.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    time.sleep(0.1)  # its lease runs out
    with RunDirectory.open(config(tmp_path, "b", url, run__rounds=50), resume=True) as store:
        committed = store.committed_rounds()
        assert 4 <= committed < 50
        for index in range(committed + 1):
            record = store.round(index)
            for name in read_manifests(record.path).keys() - {"checkpoint"}:
                record.verify(name)
        store.round(committed - 1).directory("checkpoint")


# -- two copies ----------------------------------------------------------------------------------------------


def test_a_machine_that_was_overtaken_takes_up_what_the_other_made(tmp_path: Path) -> None:
    """Its own unpublished work is of another history."""
    with RunDirectory.open(config(tmp_path, "a"), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
    overtaken = config(tmp_path, "a").run.folder
    with RunDirectory.open(config(tmp_path, "b"), resume=True) as store:
        finish_round(store, 1, {"round": 1.0}, prompts=3)
    (overtaken / "rounds" / "001").mkdir()
    (overtaken / "rounds" / "001" / "prompts.json").write_text("{}")
    with RunDirectory.open(config(tmp_path, "a"), resume=True) as store:
        assert store.committed_rounds() == 2
        assert here(store.path / "rounds" / "001") == here(
            config(tmp_path, "b").run.folder / "rounds" / "001"
        )


def test_a_machine_that_is_ahead_of_the_url_keeps_what_it_made(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        pass
    folder = config(tmp_path).run.folder
    finish_round(
        RunDirectory(folder, config(tmp_path)), 0, {"round": 0.0}
    )  # the network was down, and then a kill
    with RunDirectory.open(config(tmp_path), resume=True) as store:
        assert store.committed_rounds() == 1
    assert "rounds/000/commit.json" in there()


def test_a_folder_whose_copy_was_deleted_at_the_url_is_published_again(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
    Staged.store.clear()
    with RunDirectory.open(config(tmp_path), resume=True) as store:
        path = store.path
    assert there() == here(path)


def test_a_killed_pull_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDirectory.open(config(tmp_path, "a"), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
        wanted = here(store.path)
    fresh, fetched = tmp_path / "b", list[str]()
    fresh.mkdir()
    get = RemoteFolder.get

    def limited(self: RemoteFolder, name: str, *to: Any) -> None:
        if len(fetched) == 5:
            raise Killed
        fetched.append(name)
        get(self, name, *to)

    monkeypatch.setattr(RemoteFolder, "get", limited)
    with pytest.raises(Killed):
        copy_of(fresh)
    assert not any(name.endswith("commit.json") for name in fetched)
    got = set(fetched)
    fetched.clear()
    monkeypatch.setattr(
        RemoteFolder, "get", lambda self, name, *to: (fetched.append(name), get(self, name, *to))
    )
    copying = copy_of(fresh)
    assert here(fresh) == wanted and not got & set(fetched)
    assert copying.publish() and here(fresh) == there()


def test_a_run_at_the_url_is_checked_before_it_is_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.open(config(tmp_path, "a"), resume=False) as store:
        finish_round(store, 0, {"round": 0.0})
    monkeypatch.setattr(RemoteFolder, "get", lambda *_: pytest.fail("pulled"))
    with pytest.raises(ValueError, match=f"^{URL}: .*--resume"):
        RunDirectory.open(config(tmp_path, "b"), resume=False)
    with pytest.raises(ValueError, match=r"\(objective\.beta: 0\.1 -> 0\.2\)"):
        RunDirectory.open(config(tmp_path, "b", objective__beta=0.2), resume=True)


def test_scratch_and_pace_may_change_on_resume(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path, "a"), resume=False):
        pass
    with RunDirectory.open(config(tmp_path, "b", run__publish_every_s=5.0), resume=True):
        pass
