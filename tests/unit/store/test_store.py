"""The run directory: artifacts come back as they were, are never computed twice, and never lie."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rounds import make_completion, make_prompt
from tests.tiny import tiny_run
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.records import (
    Checkpoint,
    Completion,
    PreferenceGroup,
    Prompt,
    ReferenceLogprobs,
    ScoredCompletion,
)
from ultramed_rl.store import RoundRecord, RunDirectory, artifacts
from ultramed_rl.store.atomic import write_whole
from ultramed_rl.store.digests import digest_inputs, digest_path, key_number
from ultramed_rl.store.run_reader import read_commit
from ultramed_rl.store.shards import ShardedPhase

PROMPT = Prompt(
    "p-1",
    ({"role": "system", "content": "Sei präzise."}, {"role": "user", "content": "何が原因? 🩺\n\n\u2028"}),
    (1, 259, 151_935),
    "β-blockers",
    "vignette",
)
GOOD = Completion("p-1", 0, "Bêta‑bloquants 💊\x00", (5, 6, 2), "stop", -3.25, 7)
BAD = Completion("p-1", 3, "", (), "length", -0.0, 7)
SCORED = [ScoredCompletion(GOOD, 1.5), ScoredCompletion(BAD, -math.inf)]
PAIR = PreferenceGroup(PROMPT, (GOOD, BAD), (1.5, -2.25))
RECORDS: list[tuple[type, list[Any]]] = [
    (Prompt, [PROMPT, Prompt("bare", ())]),
    (Completion, [GOOD, BAD]),
    (ScoredCompletion, SCORED),
    (PreferenceGroup, [PAIR]),
    (
        ReferenceLogprobs,
        [ReferenceLogprobs("p-1:0>3", (-12.5, -1e-9)), ReferenceLogprobs("p-2:0", (-1.0,), -7.5)],
    ),
]


def config(root: Path, **changes: Any) -> RunConfig:
    return parse_config(tiny_run(root, **changes))


def never(*_: Any) -> Any:
    raise AssertionError("computed again")


@pytest.fixture
def record(tmp_path: Path) -> RoundRecord:
    return RoundRecord(tmp_path / "rounds" / "000", 0)


# -- records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "records"), RECORDS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_kind_reads_back_as_it_was(record: RoundRecord, kind: type, records: list[Any]) -> None:
    for name, content in (("some", records), ("none", [])):
        assert record.phase(name, lambda content=content: content, kind=kind) == content
        assert record.phase(name, never, kind=kind) == content


def test_a_reward_that_is_not_a_number_is_kept(record: RoundRecord) -> None:
    record.phase("scored", lambda: [ScoredCompletion(GOOD, math.nan)], kind=ScoredCompletion)
    (back,) = record.phase("scored", never, kind=ScoredCompletion)
    assert math.isnan(back.reward) and back.completion == GOOD


def test_pairs_load_as_conversations(record: RoundRecord, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    record.phase("pairs", lambda: [PAIR, PAIR], kind=PreferenceGroup)
    file = str(record.path / "pairs.parquet")
    table = datasets.load_dataset(
        "parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache")
    )
    row = table[1]
    assert row["prompt"] == list(PROMPT.messages)
    assert row["chosen"] == [{"role": "assistant", "content": GOOD.text}]
    assert row["rejected"] == [{"role": "assistant", "content": ""}]
    assert (row["margin"], row["completions"][1]["finish_reason"]) == (3.75, "length")
    assert row["group_id"] == "p-1:0>3" and row["completions"][0]["token_ids"] == [5, 6, 2]


# -- phases ------------------------------------------------------------------------------------------------


def test_a_round_knows_which_of_its_prompts_gave_no_pair(record: RoundRecord) -> None:
    """Four of five were asked, one of these was set aside."""
    prompts = [make_prompt(number) for number in range(5)]
    record.phase("prompts", lambda: prompts, kind=Prompt)
    scored: ShardedPhase[ScoredCompletion] = ShardedPhase(record, "scored", ScoredCompletion)
    for prompt in (prompts[3], prompts[0], prompts[1]):
        scored.keep([ScoredCompletion(make_completion(prompt, 0, 0), 1.0)])
    scored.finish({}, set_aside={"p0-2": "no engine could answer it"}, asked=4)
    pair = PreferenceGroup(prompts[1], (make_completion(prompts[1], 0, 0),), (1.0,))
    record.phase("pairs", lambda: [pair], kind=PreferenceGroup)
    asked = record.asked()
    assert asked.by_source == {0: 4}
    assert asked.numbers.tolist() == [key_number(f"p0-{number}") for number in range(4)]
    assert asked.unpaired.tolist() == [True, False, False, True]


def test_a_phase_gets_its_inputs_and_keeps_its_seconds(record: RoundRecord) -> None:
    seen: list[Any] = []

    def compute(prompts: list[Prompt], version: int) -> list[Completion]:
        seen.append((prompts, version))
        return [GOOD]

    record.phase("completions", compute, [PROMPT], 7, kind=Completion)
    assert seen == [([PROMPT], 7)]
    manifest = json.loads((record.path / "completions.json").read_text())
    assert manifest["rows"] == 1 and manifest["digest"] == digest_path(record.path / "completions.parquet")
    later = RoundRecord(record.path, 0)
    assert later.phase("completions", never, [PROMPT], 7, kind=Completion) == [GOOD]
    assert later.seconds == {"completions": manifest["seconds"]}


@pytest.mark.parametrize(
    "other",
    [
        ([PROMPT], 8),
        ([PROMPT, PROMPT], 7),
        ([Prompt(PROMPT.prompt_id, PROMPT.messages, (1, 259, 4), PROMPT.answer, PROMPT.kind)], 7),
        ([GOOD], 7),
    ],
    ids=["number", "one more", "token ids", "another kind"],
)
def test_other_inputs_are_refused(record: RoundRecord, other: tuple[Any, ...]) -> None:
    record.phase("completions", lambda *_: [GOOD], [PROMPT], 7, kind=Completion)
    kept = json.loads((record.path / "completions.json").read_text())["inputs"][:12]
    refusal = rf"^{record.path}/completions\.parquet: .*\({kept}, .*[0-9a-f]{{12}}\); .* completions\.json "
    with pytest.raises(ValueError, match=refusal) as caught:
        record.phase("completions", never, *other, kind=Completion)
    assert "\n" not in str(caught.value)


def test_the_digest_of_inputs_is_fixed() -> None:
    """Runs on disk are resumed by it: it may not depend on the machine, the process or the day."""
    assert digest_inputs((0, [PROMPT, GOOD], Checkpoint("a", 1, {"x": 0.5}), "s")) == digest_inputs(
        (0, [PROMPT, GOOD], Checkpoint("a", 1, {"x": 0.5}), "s")
    )
    by_hand = b'int[1]0\nlist[1]{"metrics": {}, "path": "a", "record": "Checkpoint", "version": 1}\n'
    assert digest_inputs((0, [Checkpoint("a", 1)])) == hashlib.sha256(by_hand).hexdigest()
    assert digest_inputs(([1], [2])) != digest_inputs(([1, 2], []))
    with pytest.raises(TypeError, match="object"):
        digest_inputs((object(),))


def digest_of(record: RoundRecord, name: str) -> str:
    """As a refusal shows what was written."""
    return json.loads((record.path / f"{name}.json").read_text())["digest"][:12]


def test_changed_bytes_are_refused(record: RoundRecord) -> None:
    record.phase("prompts", lambda: [PROMPT], kind=Prompt)
    file, kept = record.path / "prompts.parquet", digest_of(record, "prompts")
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{file}: .*\({kept}, .*[0-9a-f]{{12}}\); .* prompts\.json "):
        record.phase("prompts", never, kind=Prompt)
    file.unlink()
    with pytest.raises(ValueError, match=rf"^{file}: .*\bprompts\.json .* prompts\.json "):
        record.phase("prompts", never, kind=Prompt)


def test_a_mangled_manifest_is_named(record: RoundRecord) -> None:
    record.phase("prompts", lambda: [PROMPT], kind=Prompt)
    (record.path / "prompts.json").write_text("{")
    with pytest.raises(ValueError, match=rf"^{record.path}/prompts\.json: .*JSON"):
        record.phase("prompts", never, kind=Prompt)


def test_an_artifact_without_a_manifest_is_computed_again(record: RoundRecord) -> None:
    """The driver was killed between the two renames."""
    record.phase("prompts", lambda: [PROMPT], kind=Prompt)
    record.phase_directory("checkpoint", fill("old"))
    (record.path / "prompts.json").unlink()
    (record.path / "checkpoint.json").unlink()
    assert record.phase("prompts", lambda: [], kind=Prompt) == []
    path, _ = record.phase_directory("checkpoint", fill("new"))
    assert (path / "model" / "weights").read_text() == "new"


def fill(text: str, **metrics: float) -> Callable[[Path], dict[str, float]]:
    def compute(directory: Path) -> dict[str, float]:
        (directory / "model").mkdir()
        (directory / "model" / "weights").write_text(text)
        return metrics

    return compute


def test_a_directory_reads_back_with_its_numbers(record: RoundRecord) -> None:
    path, metrics = record.phase_directory("checkpoint", fill("w", loss=0.5, norm=math.inf), [PAIR])
    assert path == record.path / "checkpoint" and metrics == {"loss": 0.5, "norm": math.inf}
    again, kept = record.phase_directory("checkpoint", never, [PAIR])
    assert again == path and kept["loss"] == 0.5 and math.isnan(kept["norm"])
    (path / "model" / "weights").write_text("x")
    changed = rf"^{path}: .*\({digest_of(record, 'checkpoint')}, .*[0-9a-f]{{12}}\)"
    with pytest.raises(ValueError, match=changed):
        record.phase_directory("checkpoint", never, [PAIR])
    (path / "model" / "weights").rename(path / "model" / "weight")
    with pytest.raises(ValueError, match=changed):
        record.phase_directory("checkpoint", never, [PAIR])


def test_a_compute_that_fails_leaves_nothing_finished(record: RoundRecord) -> None:
    def broken(directory: Path) -> dict[str, float]:
        (directory / "half").write_text("h")
        raise KeyError("boom")

    with pytest.raises(KeyError):
        record.phase_directory("checkpoint", broken)
    assert not record.finished("checkpoint") and not (record.path / "checkpoint").exists()
    record.phase_directory("checkpoint", fill("w"))
    assert not (record.path / "checkpoint" / "half").exists()


# -- a full disk -------------------------------------------------------------------------------------------


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_explained(error: BaseException, record: RoundRecord, name: str) -> None:
    text = str(error)
    assert re.match(rf"{record.path / name}: .*\(\d+ bytes .*--resume", text)
    assert "\n" not in text and [p.name for p in record.path.iterdir()] == []


def test_a_full_disk_says_what_to_do(record: RoundRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_records", full_disk)
        with pytest.raises(RuntimeError) as caught:
            record.phase("prompts", lambda: [PROMPT], kind=Prompt)
    assert_explained(caught.value, record, "prompts.parquet")
    assert record.phase("prompts", lambda: [PROMPT], kind=Prompt) == [PROMPT]


def test_a_full_disk_in_other_words(record: RoundRecord) -> None:
    """Safetensors, and errors out of a Ray actor, have no errno."""

    def save(directory: Path) -> dict[str, float]:
        (directory / "model.safetensors").write_text("half")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(RuntimeError) as caught:
        record.phase_directory("checkpoint", save)
    assert_explained(caught.value, record, "checkpoint")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_really_full(record: RoundRecord) -> None:
    def write(temporary: Path) -> None:
        temporary.symlink_to("/dev/full")
        temporary.write_text("more than nothing")

    with pytest.raises(RuntimeError) as caught:
        write_whole(record.path / "x.json", write)
    assert_explained(caught.value, record, "x.json")
    assert Path("/dev/full").exists()


# -- the run directory -------------------------------------------------------------------------------------


def test_a_new_directory_holds_the_config(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=True) as store:
        assert (store.path / "config.yaml").is_file() and store.path == tmp_path / "runs" / "tiny"
        assert store.initial.path.name == "initial" and store.round(12).path.name == "012"
        assert store.committed_rounds() == 0
    with RunDirectory.open(config(tmp_path), resume=True):
        pass
    with pytest.raises(ValueError, match=r"^\S+/runs/tiny: .*--resume.*run\.name"):
        RunDirectory.open(config(tmp_path), resume=False)


def test_a_changed_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    RunDirectory.open(config(tmp_path), resume=False).__exit__(None, None, None)
    with pytest.raises(ValueError, match=r"objective\.beta: 0\.1 -> 0\.2"):
        RunDirectory.open(config(tmp_path, objective__beta=0.2), resume=True)
    harmless = {"tracking__project": "other", "cluster__address": "auto", "cluster__start_timeout_s": 5.0}
    with RunDirectory.open(config(tmp_path, **harmless), resume=True) as store:
        assert "project: other" in (store.path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("key", "value", "harmless"),
    [
        ("url", "http://elsewhere:5001/get_reward", True),
        ("token_env", "OTHER", True),
        ("timeout_s", 9.0, True),
        ("weight", 0.5, False),
        ("tokenizer", "other", False),
    ],
)
def test_a_reward_server_may_have_moved(tmp_path: Path, key: str, value: Any, harmless: bool) -> None:
    """Its address never told what answers there; what it counts for is another matter."""
    term = {"type": "http", "url": "http://here:5000/get_reward"}
    RunDirectory.open(config(tmp_path, reward__terms=[term]), resume=False).__exit__(None, None, None)
    moved = config(tmp_path, reward__terms=[{**term, key: value}])
    if harmless:
        RunDirectory.open(moved, resume=True).__exit__(None, None, None)
    else:
        with pytest.raises(ValueError, match=rf"reward\.terms\.0\.{key}: "):
            RunDirectory.open(moved, resume=True)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        RunDirectory.open(config(tmp_path), resume=False),
        pytest.raises(ValueError, match=rf"^{tmp_path}/runs/tiny/\.lock: "),
    ):
        RunDirectory.open(config(tmp_path), resume=True)
    with RunDirectory.open(config(tmp_path), resume=True):
        pass


def test_a_refused_opener_frees_the_lock(tmp_path: Path) -> None:
    RunDirectory.open(config(tmp_path), resume=False).__exit__(None, None, None)
    with pytest.raises(ValueError, match="--resume") as caught:
        RunDirectory.open(config(tmp_path), resume=False)
    with RunDirectory.open(config(tmp_path), resume=True):
        assert caught.value is not None, "held, so that its frames live on"


def test_a_killed_owner_frees_the_lock_and_its_leftovers_go(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from tests.unit.store.test_store import config
        from ultramed_rl.store import RunDirectory

        def killed(directory):
            (directory / "half").write_text("h")
            os.kill(os.getpid(), signal.SIGKILL)

        store = RunDirectory.open(config(Path({str(tmp_path)!r})), resume=False)
        store.round(0).phase_directory("checkpoint", killed)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    run = tmp_path / "runs" / "tiny"
    assert list(run.rglob("half")), "nothing was left over"
    with RunDirectory.open(config(tmp_path), resume=True) as store:
        assert not list(run.rglob("half")) and not list(run.rglob(".tmp-*"))
        assert not store.round(0).finished("checkpoint")


def test_looking_at_a_round_leaves_the_phase_in_progress_alone(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:

        def compute(directory: Path) -> dict[str, float]:
            store.round(0), store.initial, store.committed_rounds()
            return fill("w")(directory)

        path, _ = store.round(0).phase_directory("checkpoint", compute)
        assert (path / "model" / "weights").is_file()


# -- rounds ------------------------------------------------------------------------------------------------


def commit_rounds(store: RunDirectory, count: int) -> None:
    for index in range(count):
        store.round(index).phase("prompts", lambda _: [PROMPT], index, kind=Prompt)
        store.round(index).phase_directory("checkpoint", fill(f"w{index}"), index)
        store.round(index).commit({"loss": 0.5, "norm": math.nan})


def test_leading_committed_rounds_count(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        commit_rounds(store, 3)
        assert store.committed_rounds() == 3 and read_commit(store.round(2).path)
        metrics = read_commit(store.round(0).path)
        assert metrics is not None
        assert metrics["loss"] == 0.5 and math.isnan(metrics["norm"])
        phases = json.loads((store.round(0).path / "commit.json").read_text())["phases"]
        assert sorted(phases) == ["checkpoint", "prompts"]

        store.round(2).phase("later", lambda: [GOOD], kind=Completion)
        assert store.committed_rounds() == 3, "a later look at a round doesn't undo it"
        (store.round(1).path / "commit.json").unlink()
        assert store.committed_rounds() == 1


@pytest.mark.parametrize("damage", ["commit", "manifest"])
def test_a_commit_that_does_not_verify_does_not_count(tmp_path: Path, damage: str) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        commit_rounds(store, 2)
        folder = store.round(1).path
        if damage == "commit":
            (folder / "commit.json").write_text("{")
        else:
            (folder / "checkpoint.json").unlink()
        assert store.committed_rounds() == 1 and read_commit(store.round(1).path) is None


def test_pruning_keeps_the_last_checkpoints_and_every_commit(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        commit_rounds(store, 3)
        for _ in range(2):
            store.prune_checkpoints(keep=1)
            assert [(store.round(i).path / "checkpoint").is_dir() for i in range(3)] == [False, False, True]
            assert store.committed_rounds() == 3
        assert json.loads((store.round(0).path / "checkpoint.json").read_text())["pruned"] is True
        with pytest.raises(ValueError, match=r"/rounds/000/checkpoint: .*run\.keep_checkpoints"):
            store.round(0).phase_directory("checkpoint", never, 0)


# -- metrics -----------------------------------------------------------------------------------------------


def test_metrics_of_an_unfinished_round_are_forgotten(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path), resume=False) as store:
        store.discard_metrics_after(0)
        for index in range(3):
            store.append_metrics({"step_index": index, "round": index, "loss": math.nan, "step": 0})
        store.append_metrics({"round_index": 3, "peak_memory_policy": 1.0})
        file = store.path / "metrics.jsonl"
        file.write_text(file.read_text() + '{"round": 0, "lo')

        store.discard_metrics_after(2)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["round"] for row in rows] == [0, 1]
        assert all(row["loss"] is None and row["time"] > 0 for row in rows)
        store.append_metrics({"round": 2})
        assert json.loads(file.read_text().splitlines()[-1])["round"] == 2
