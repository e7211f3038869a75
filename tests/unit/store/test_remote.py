"""A run's copy at a URL: at every instant one that can be taken up, on any machine, by one writer at a time."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.fake_api import fake_api, reply
from tests.report_run import Plan, make_run
from tests.rounds import finish_round, make_completion, make_prompt
from tests.tiny import tiny_run
from ultramed_rl.cli import app
from ultramed_rl.cli.runs import what_happens
from ultramed_rl.config import ConfigError, DataConfig, RunConfig, dump_config, parse_config
from ultramed_rl.http.generator import ReplyStore
from ultramed_rl.http.session import ReplyRecord
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.stages.data.run import make_data
from ultramed_rl.store import ArtifactFolder, RoundRecord, RunDirectory, StageDirectory, remote, remote_folder
from ultramed_rl.store.artifacts import read_manifests
from ultramed_rl.store.remote import (
    INDEX,
    RemoteCopy,
    Version,
    at_hand,
    check_url,
    list_finished,
    needless_files,
    version_of,
)
from ultramed_rl.store.remote_folder import WRITER, Lease, LostLease, RemoteFolder, Writer
from ultramed_rl.store.shards import ShardedPhase

URL = "staged://bucket/runs/tiny"
TICK_S = 0.005  # longer than the clock that files are dated by


class Killed(BaseException):
    """The process dies here."""


class Staged(MemoryFileSystem):
    """A store in memory that lets a test in before each of its steps; a move is a copy and a deletion, as in some."""

    protocol = "staged"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    before: Callable[[str, str], None] = staticmethod(lambda step, path: None)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).replace("staged://", "memory://", 1))

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        type(self).before("put", rpath)
        super().put_file(lpath, rpath, *args, **options)

    def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
        type(self).before("pipe", path)
        super().pipe_file(path, value, *args, **options)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        type(self).before("move", path2)
        super().cp_file(path1, path2, **options)

    def rm_file(self, path: str) -> None:
        type(self).before("delete", path)
        super()._rm(path)


fsspec.register_implementation("staged", Staged, clobber=True)


@pytest.fixture(autouse=True)
def empty_stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What fails is tried again at once; one file is on its way at a time."""
    monkeypatch.setattr(remote_folder, "LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(remote, "WORKERS", 1)
    empty_store()
    yield
    empty_store()


def empty_store() -> None:
    for kind in (Staged, MemoryFileSystem):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    Staged.before = staticmethod(lambda step, path: None)


def there(url: str = URL) -> dict[str, bytes]:
    """The run that is at a URL, by its files' names in it."""
    files = objects(url)
    return {name: files[key] for name, (key, _) in json.loads(files[INDEX])["files"].items()}


def objects(url: str = URL) -> dict[str, bytes]:
    """The files that are at a URL; without the lease and uploads that were killed."""
    files, root = fsspec.core.url_to_fs(url)
    found = {path[len(root) + 1 :]: files.cat_file(path) for path in files.find(root)}
    return {name: content for name, content in found.items() if name != WRITER and ".tmp-" not in name}


def here(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_finished(folder)}


def made(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the config, which names the machine's scratch."""
    return {name: content for name, content in files.items() if name != "config.yaml"}


def config(root: Path, machine: str = "a", url: str = "staged://bucket/runs", **changes: Any) -> RunConfig:
    places = {"run__directory": url, "run__scratch": str(root / machine), "run__publish_every_s": 30.0}
    return parse_config(tiny_run(root, **{**places, **changes}))


def copy_of(folder: Path, url: str = URL) -> RemoteCopy:
    """A folder's copy that has met its URL."""
    copying = RemoteCopy(url, folder, 30.0)
    copying.take_up()
    return copying


# -- at every instant a run that can be taken up -------------------------------------------------------------


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(name: str, manifest: dict[str, Any], files: dict[str, bytes]) -> str | None:
    """The digest of what a manifest names, computed from the store's bytes alone."""
    stem = name.removesuffix(".json")
    if f"{stem}.parquet" in files:
        return sha(files[f"{stem}.parquet"])
    folders = (f"{stem}/", f"{stem}.parquet/")
    inside = {n.removeprefix(f): c for f in folders for n, c in files.items() if n.startswith(f)}
    if not inside:
        return None
    by_size = manifest.get("sizes", False)
    shown = {n: str(len(c)) if by_size else sha(c) for n, c in inside.items()}
    return sha("\n".join(f"{n} {shown[n]}" for n in sorted(shown, key=Path)).encode())


def check_copy(files: dict[str, bytes]) -> None:
    """Whatever says that it is finished is, with what it builds on; nothing is under way."""
    manifests = {}
    for name, content in files.items():
        if name.endswith(".json") and "digest" in (found := json.loads(content)):
            manifests[name] = found
    for name, manifest in manifests.items():
        if not manifest.get("pruned"):
            assert digest_of(name, manifest, files) == manifest["digest"], name
    for name in files:
        if name.endswith("commit.json"):
            beside = {
                m["name"]: m["digest"] for n, m in manifests.items() if Path(n).parent == Path(name).parent
            }
            assert json.loads(files[name])["phases"].items() <= beside.items(), name
        if name.startswith("states/") and name in manifests:
            best = int(manifests[name]["metrics"]["best_step"])
            assert f"best/step-{best:09d}.json" in manifests, (
                f"{name} counts on best weights that aren't there"
            )
        assert ".parts/" not in name


class Life:
    """What runs do to their folder, by the store's own classes, one step at a time."""

    def __init__(self, folder: Path) -> None:
        settings = parse_config(tiny_run(folder, run__directory="/nowhere"))
        self.stage, self.folder = StageDirectory(folder, settings), folder
        self.run = RunDirectory.__new__(RunDirectory)  # its lock is the stage's
        self.run.path = folder
        self.round, self.steps, self.parts, self.version = 0, 0, 0, 0
        self.phases = self._phases()

    def step(self, kind: str) -> None:
        getattr(self, kind)()
        time.sleep(TICK_S)

    def go_on(self) -> None:
        next(self.phases)

    def commit_round(self) -> None:
        index = self.round
        while self.round == index:
            self.go_on()

    def _phases(self) -> Iterator[None]:
        while True:
            self.version += 1
            index, version = self.round, self.version
            record = self.run.round(index)
            prompts = [make_prompt(n, version) for n in range(version)]
            record.phase("prompts", lambda prompts=prompts: prompts, kind=Prompt)
            yield
            answers = [make_completion(p, 1, index) for p in prompts]
            record.phase("completions", lambda answers=answers: answers, kind=Completion)
            yield
            record.phase_directory("checkpoint", lambda to, version=version: self._weights(to, version))
            yield
            self.stage.append_metrics({"round_index": index})
            yield
            record.commit({"round": index})
            self.round += 1
            yield

    def finish_parts(self) -> None:
        """The parts of a phase become its artifact, by a rename; or it is forgotten, if it is finished."""
        folder = self.run.round(99)
        if folder.finished("scored"):
            folder.discard("scored")
            return
        phase = ShardedPhase(folder, "scored", Prompt, self.parts)
        phase.keep([make_prompt(0, self.parts)])
        phase.finish({"scored": 1.0})

    def begin_again(self) -> None:
        """Somebody deletes the round in progress, so that it is computed again, to something else."""
        shutil.rmtree(self.run.round(self.round).path)
        self.phases = self._phases()

    def undo_round(self) -> None:
        """Somebody deletes a committed round too."""
        self.round = max(0, self.round - 1)
        for index in (self.round, self.round + 1):
            shutil.rmtree(self.run.round(index).path)
        self.phases = self._phases()

    def prune(self) -> None:
        self.run.prune_checkpoints(1)

    def save(self) -> None:
        """A stage's best weights, and a state that counts on them; those of before go."""
        self.steps += 1
        self.stage.save("best", self.steps, lambda to: self._weights(to, self.steps))
        self.stage.save("states", self.steps, lambda to: self._weights(to, self.steps, best_step=self.steps))

    def save_state(self) -> None:
        if best := max((int(p.stem[5:]) for p in (self.folder / "best").glob("*.json")), default=0):
            self.steps += 1
            self.stage.save("states", self.steps, lambda to: self._weights(to, self.steps, best_step=best))

    def discard_saved(self) -> None:
        self.stage.discard_saved()

    def add_part(self) -> None:
        if self.run.round(99).finished("scored"):
            return
        phase = ShardedPhase(self.run.round(99), "scored", Prompt, self.parts)
        phase.keep([make_prompt(0, self.parts)])
        phase.flush()

    def other_inputs(self) -> None:
        self.parts += 1
        if not self.run.round(99).finished("scored"):
            self.add_part()

    def drop_parts(self) -> None:
        shutil.rmtree(self.run.round(99).path / "scored.parts", ignore_errors=True)

    def _weights(self, folder: Path, version: int, **numbers: float) -> dict[str, float]:
        (folder / "config.json").write_text(json.dumps({"version": version}))
        (folder / "model.safetensors").write_bytes(bytes([version % 256]) * 50)
        if version % 2:
            (folder / "shard.bin").write_bytes(bytes(version))
        return {"version": float(version), **numbers}

    def close(self) -> None:
        self.stage._lock.close()


STEPS = [
    *["go_on"] * 6,
    *["commit_round", "begin_again"] * 2,
    *(
        "undo_round",
        "prune",
        "save",
        "save_state",
        "discard_saved",
        "add_part",
        "other_inputs",
        "drop_parts",
        "finish_parts",
    ),
]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    life=st.lists(st.sampled_from(STEPS), min_size=3, max_size=32),
    pace=st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=40),
    passes=st.integers(1, 4),
    kill_at=st.integers(0, 80) | st.none(),
    glances=st.sets(st.integers(0, 120), max_size=5),
)
def test_at_every_instant_the_url_holds_a_run_that_can_be_taken_up(
    life: list[str], pace: list[int], passes: int, kill_at: int | None, glances: set[int]
) -> None:
    """A run goes on between any two steps of the store and of looks at the folder, and the process dies before any of
    the former."""
    empty_store()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "a" / "tiny"
        folder.mkdir(parents=True)
        living, todo, steps = Life(folder), list(reversed(life)), itertools.count()
        paces, looks, dead = itertools.cycle(pace), itertools.count(), list[bool]()

        def live(count: int) -> None:
            for _ in range(min(count, len(todo))):
                living.step(todo.pop())

        def between(step: str, path: str) -> None:
            check_copy(there())
            if dead or next(steps) == kill_at:
                dead.append(True)
                raise Killed
            live(next(paces))

        def listed(folder: Path) -> dict[str, Version]:
            live(next(looks) in glances)
            return list_finished(folder)

        def dated(path: Path) -> Version | None:
            live(next(looks) in glances)
            return version_of(path)

        live(3)
        copying = copy_of(folder)
        copying.publish()
        Staged.before = staticmethod(between)
        try:
            local = "ultramed_rl.store.remote"
            with patch(f"{local}.list_finished", listed), patch(f"{local}.version_of", dated):
                for _ in range(passes):
                    copying.publish()
                    check_copy(there())
                    live(2)
        except Killed:
            check_copy(there())
        Staged.before = staticmethod(lambda step, path: check_copy(there()))
        living.close()
        copying.lease.release()

        # Another machine takes up what is there,
        fresh = Path(scratch) / "b" / "tiny"
        fresh.mkdir(parents=True)
        other = copy_of(fresh)
        for name, content in here(fresh).items():
            assert there()[name] == content
        assert there().keys() - here(fresh).keys() == needless_files(there())
        before = there()
        assert other.publish() and there() == before, "a pull that changes nothing changed the URL"
        other.lease.release()

        # and the first one then, whatever it has made meanwhile.
        live(len(todo))
        again = copy_of(folder)
        if before:
            assert here(folder).items() <= before.items()
        assert again.publish() and there() == (before or here(folder))
        again.lease.release()


def test_a_manifest_that_came_after_its_data_was_listed_waits_for_the_next_publication(
    tmp_path: Path,
) -> None:
    record, lists = RoundRecord(tmp_path / "rounds" / "000", 0), itertools.count()
    record.phase("prompts", lambda: [make_prompt(1)], kind=Prompt)
    copying = copy_of(tmp_path)
    copying.publish()
    shutil.rmtree(record.path)

    def listed(*arguments: Any) -> dict[str, Version]:
        found = list_finished(*arguments)
        if next(lists) == 0:  # the manifests alone
            record.path.mkdir()
            record.phase("prompts", lambda: [make_prompt(2)], kind=Prompt)
        return found

    Staged.before = staticmethod(lambda step, path: check_copy(there()))
    with patch("ultramed_rl.store.remote.list_finished", listed):
        assert not copying.publish()
    check_copy(there())
    assert copying.publish() and there() == here(tmp_path)


def test_an_artifact_that_is_made_anew_with_fewer_files_is_never_seen_with_those_of_before(
    tmp_path: Path,
) -> None:
    folder = ArtifactFolder(tmp_path)

    def write(to: Path, names: str) -> dict[str, float]:
        for name in names:
            (to / name).write_text(f"{name} of {names}")
        return {}

    folder.phase_directory("model", lambda to: write(to, "abc"))
    copying = copy_of(tmp_path)
    copying.publish()
    folder.discard("model")
    folder.phase_directory("model", lambda to: write(to, "ad"))
    Staged.before = staticmethod(lambda step, path: check_copy(there()))
    assert copying.publish() and there() == here(tmp_path)


def test_an_artifact_that_is_being_made_anew_is_not_put_over_the_finished_one(tmp_path: Path) -> None:
    folder, copying = ArtifactFolder(tmp_path), copy_of(tmp_path)
    folder.phase_directory("model", lambda to: {"bytes": (to / "weights.bin").write_text("old")})
    copying.publish()
    folder.discard("model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_text("new and longer")  # its manifest comes later
    Staged.before = staticmethod(lambda step, path: check_copy(there()))
    assert copying.publish() and there() == here(tmp_path)


def test_what_is_under_way_is_not_published(tmp_path: Path) -> None:
    phase = ShardedPhase(ArtifactFolder(tmp_path / "rounds" / "000"), "scored", Prompt)
    phase.keep([make_prompt(0)])
    phase.flush()
    for name in ("log.sqlite", "rows.jsonl", "replies.jsonl"):
        (tmp_path / "work" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "work" / name).write_text(name)
    copying = copy_of(tmp_path)
    assert copying.publish() and there() == {"work/replies.jsonl": b"replies.jsonl"}
    phase.finish({"scored": 1.0})
    assert copying.publish() and "rounds/000/scored.parquet/000000.parquet" in there()


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


# -- the lease -----------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_by_name_until_the_first_has_ended(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path, "a"), resume=False):
        with pytest.raises(
            ValueError, match=rf"^{URL}: .*\b{os.getpid()} .*{socket.gethostname()}"
        ) as refused:
            RunDirectory.open(config(tmp_path, "b"), resume=True)
        assert "\n" not in str(refused.value)
    with RunDirectory.open(config(tmp_path, "b"), resume=True):
        pass


def owner(**changes: Any) -> Writer:
    """A process of another machine that has just renewed its lease."""
    now = time.time()
    return replace(Writer("t", "its folder", "other", 17, now - 100, now, 10.0), **changes)


@pytest.mark.parametrize(
    ("age_s", "released", "refused"),
    [(0, False, True), (15, False, True), (30, False, False), (0, True, False)],
)
def test_a_lease_lasts_three_renewals(age_s: float, released: bool, refused: bool) -> None:
    at_url = RemoteFolder(URL)
    at_url.write_json(WRITER, asdict(owner(renewed=time.time() - age_s, released=released)))
    if refused:
        with pytest.raises(ValueError, match=rf"^{URL}: .*\b17 .*\bother\b"):
            Lease(at_url, "ours", 10.0)
    else:
        Lease(at_url, "ours", 10.0).release()


def test_the_lease_of_a_process_of_the_same_folder_that_is_gone_is_free_at_once(tmp_path: Path) -> None:
    """Whether it was killed when it had pulled the run, or before."""
    url = f"file://{tmp_path}/run"
    for step in ("", "copy.take_up()"):
        code = textwrap.dedent(
            f"""
            import os
            from pathlib import Path
            from ultramed_rl.store.remote import RemoteCopy
            copy = RemoteCopy("{url}", Path("{tmp_path}/a"), 60.0)
            {step}
            os.kill(os.getpid(), 9)
            """
        )
        (tmp_path / "a").mkdir(exist_ok=True)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        assert not json.loads((tmp_path / "run" / WRITER).read_text())["released"]
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=f"^{url}: .*{socket.gethostname()}"):
        RemoteCopy(url, tmp_path / "b", 60.0)
    RemoteCopy(url, tmp_path / "a", 60.0).lease.release()


def test_a_lease_is_renewed_while_an_upload_goes_on(tmp_path: Path) -> None:
    at_url = RemoteFolder(URL)
    lease = Lease(at_url, "ours", 0.05)
    first, deadline = at_url.read_json(WRITER, Writer), time.monotonic() + 60
    assert first
    while (at_url.read_json(WRITER, Writer) or first).renewed <= first.renewed:
        assert time.monotonic() < deadline, "it was never renewed"
        time.sleep(0.01)
    lease.release()


def test_a_writer_that_was_overtaken_publishes_nothing_more_and_says_so(tmp_path: Path) -> None:
    overtaken = pytest.raises(RuntimeError, match=rf"^{URL}: .*\b17 .*\bother\b")
    with overtaken as ended, RunDirectory.open(config(tmp_path), resume=False) as store:
        RemoteFolder(URL).write_json(WRITER, asdict(owner()))
        finish_round(store, 0, {"round": 0.0})
    assert isinstance(ended.value.__cause__, LostLease)
    assert there() == {}
    assert json.loads(Staged.store["/bucket/runs/tiny/writer.json"].getvalue())["host"] == "other"


def test_the_loser_of_a_race_for_a_new_run_is_refused(tmp_path: Path) -> None:
    at_url = RemoteFolder(URL)

    def overtake(step: str, path: str) -> None:
        Staged.before = staticmethod(lambda step, path: None)
        at_url.write_json(WRITER, asdict(owner()))

    Staged.before = staticmethod(overtake)
    with pytest.raises(ValueError, match=rf"^{URL}: .*\b17 .*\bother\b"):
        Lease(at_url, "ours", 10.0)


# -- a store that fails --------------------------------------------------------------------------------------


def test_a_failure_that_passes_is_tried_again_and_nobody_hears_of_it(tmp_path: Path) -> None:
    failures = iter([True, True])

    def fail(step: str, path: str) -> None:
        if next(failures, False):
            raise ConnectionError("the network is down")

    (tmp_path / "a.txt").write_text("a")
    Staged.before = staticmethod(fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copying = RemoteCopy(URL, tmp_path, 30.0)
        copying.take_up()
        copying.start()
        copying.close()
    assert there() == {"a.txt": b"a"}


def test_a_failure_that_stays_is_warned_of_once_never_stops_the_run_and_is_the_end_of_it(
    tmp_path: Path,
) -> None:
    copying = RemoteCopy(URL, tmp_path, 0.02)
    copying.take_up()
    tries: list[str] = []

    def fail(step: str, path: str) -> None:
        if not path.endswith(WRITER) and ".tmp-" in path and WRITER not in path:
            tries.append(path)
            raise ConnectionError("the network is down")

    Staged.before = staticmethod(fail)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        (tmp_path / "a.txt").write_text("a")
        copying.start()
        deadline = time.monotonic() + 20
        while len(tries) < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RuntimeError) as ended:
            copying.close()
    assert len(tries) >= 10, "five tries a publication, and publication after publication"
    (warning,) = heard
    assert re.match(rf"{URL}: .*\(the network is down\).*\b0\.02 s\b", str(warning.message))
    assert re.match(rf"{URL}: .*\(the network is down\).*{tmp_path} .*--resume", str(ended.value))


def test_a_runs_own_error_is_not_hidden_by_a_copy_that_is_not_whole(tmp_path: Path) -> None:
    def fail(step: str, path: str) -> None:
        if step == "put":
            raise ConnectionError("the network is down")

    with (
        pytest.warns(UserWarning, match=rf"^{URL}: .*\(the network is down\).*--resume"),
        pytest.raises(RuntimeError, match="its own"),
        RunDirectory.open(config(tmp_path), resume=False),
    ):
        Staged.before = staticmethod(fail)
        raise RuntimeError("its own")


def test_after_an_outage_everything_is_published(tmp_path: Path) -> None:
    copying = RemoteCopy(URL, tmp_path, 0.02)
    copying.take_up()
    down = [True]

    def fail(step: str, path: str) -> None:
        if down and step == "put":
            raise ConnectionError("the network is down")

    Staged.before = staticmethod(fail)
    (tmp_path / "a.txt").write_text("a")
    with pytest.warns(UserWarning, match=rf"^{URL}: .*\(the network is down\).*\b0\.02 s\b"):
        copying.start()
        deadline = time.monotonic() + 20
        while copying.problem is None and time.monotonic() < deadline:
            time.sleep(0.01)
        down.clear()
        while "a.txt" not in there() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert there() == {"a.txt": b"a"}
    copying.close()


def test_a_store_that_cannot_be_reached_stops_a_run_before_it_starts_in_one_line(tmp_path: Path) -> None:
    def fail(step: str, path: str) -> None:
        raise PermissionError("403 Forbidden")

    Staged.before = staticmethod(fail)
    with pytest.raises(RuntimeError, match=rf"^{URL}: .*\(PermissionError: 403 Forbidden\)"):
        RunDirectory.open(config(tmp_path), resume=False)


# -- what can be kept there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directory", "named"),
    [
        ("s3://bucket/runs", r"ultramed_rl\[s3\]"),
        ("gs://bucket/runs", r"ultramed_rl\[gs\]"),
        ("nosuch://bucket/runs", "s3://.*gs://"),
    ],
)
def test_a_url_that_nothing_opens_is_refused_with_the_fix(tmp_path: Path, directory: str, named: str) -> None:
    package = {"s3": "s3fs", "gs": "gcsfs"}.get(directory.partition(":")[0])
    if package and importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=f"^{directory}.*{named}") as refused:
        check_url(config(tmp_path, url=directory))
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=f"^{directory}.*{named}"):
        RunDirectory.open(config(tmp_path, url=directory), resume=False)
    assert not list((tmp_path / "a").rglob("config.yaml"))


def test_a_url_with_one_slash_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.directory='s3:/bucket/runs': "):
        config(tmp_path, url="s3:/bucket/runs")


def test_two_urls_never_share_a_folder(tmp_path: Path) -> None:
    urls = ("s3://b/runs", "gs://b/runs", "s3://b@c/runs", "s3://b_c/runs", "s3://b/runs/more")
    folders = {config(tmp_path, url=url).run.folder for url in urls}
    assert len(folders) == len(urls) and all(tmp_path / "a" in folder.parents for folder in folders)
    assert config(tmp_path, url="s3://b/runs/").run.url == "s3://b/runs/tiny"


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


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


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
