"""A run's copy at a URL: at every instant one that can be taken up, on any machine."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rounds import make_completion, make_prompt
from tests.staged import (
    TICK_S,
    Killed,
    Staged,
    copy_of,
    empty_store,
    here,
    there,
)
from tests.tiny import tiny_run
from ultramed_rl.config import parse_config
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.store import ArtifactFolder, RoundRecord, RunDirectory, StageDirectory
from ultramed_rl.store.remote import (
    Version,
    list_finished,
    needless_files,
    version_of,
)
from ultramed_rl.store.shards import ShardedPhase


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


def test_the_best_rounds_checkpoint_is_pulled_as_the_last_one_is() -> None:
    kinds = ("checkpoint", "reference_model")
    weights = [f"rounds/{index:03d}/{kind}/model.safetensors" for index in range(3) for kind in kinds]
    files = [f"rounds/{index:03d}/{name}.json" for index in range(3) for name in ("commit", "checkpoint")]
    assert needless_files([*weights, *files]) == set(weights[:4])
    assert needless_files([*weights, *files], "rounds/000/checkpoint") == set(weights[1:4])
