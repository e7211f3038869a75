"""A phase's files: what is kept stays, a kill loses no key and doubles none, wherever it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rounds import HOSTILE, make_completion, make_prompt
from ultramed_rl.records import (
    Completion,
    Message,
    OptionLogprobs,
    PreferenceGroup,
    Prompt,
    ReferenceLogprobs,
    ScoredCompletion,
    TokenizedChat,
)
from ultramed_rl.store import shards
from ultramed_rl.store.artifacts import ArtifactFolder
from ultramed_rl.store.shards import RecordFiles, ShardedPhase, in_order, shard_files
from ultramed_rl.store.tables import read_records, records_of_table, schema_of, write_records
from ultramed_rl.token_ids import TokenIds


class Killed(BaseException):
    """The process is gone."""


def records(number: int) -> list[Completion]:
    """One key's."""
    return [make_completion(make_prompt(number), sample, 0) for sample in range(3)]


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_RECORDS", 6)


def open_phase(path: Path, version: int = 0) -> ShardedPhase[Completion]:
    return ShardedPhase(ArtifactFolder(path), "scored", Completion, version)


def test_files_are_written_as_records_come_and_read_back_in_their_order(tmp_path: Path) -> None:
    phase = open_phase(tmp_path)
    for number in range(5):
        phase.keep(records(number))
    parts = tmp_path / "scored.parts"
    assert len(shard_files(parts)) == 2 and len(phase.read()) == 12  # the fifth key waits
    found = phase.finish({"scored": 1.0})
    expected = [record for number in range(5) for record in records(number)]
    assert list(found) == expected and len(found) == 15
    assert found[0] == expected[0] and found[-1] == expected[-1] and found[5:8] == expected[5:8]
    with pytest.raises(IndexError):
        found[15]
    again = open_phase(tmp_path)
    assert again.finished and list(again.read()) == expected


def test_records_come_after_a_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_SECONDS", 0.0)
    phase = open_phase(tmp_path)
    phase.keep(records(0))
    assert list(phase.read()) == records(0)


@pytest.mark.parametrize("by_thread", [False, True])
def test_a_killed_run_keeps_whole_keys(tmp_path: Path, by_thread: bool) -> None:
    phase = open_phase(tmp_path)
    with pytest.raises(Killed):
        if by_thread:
            with phase.kept():
                keep_and_die(phase)
        else:
            keep_and_die(phase)
    (tmp_path / "scored.parts" / ".tmp-000001.parquet").write_bytes(b"PAR1")  # half written
    again = open_phase(tmp_path)
    assert not again.finished and list(again.read()) == [*records(0), *records(1)]
    again.keep(records(2))
    assert list(again.finish({"scored": 1.0})) == [*records(0), *records(1), *records(2)]


def test_what_is_kept_outlives_an_error(tmp_path: Path) -> None:
    phase = open_phase(tmp_path)
    with pytest.raises(KeyboardInterrupt), phase.kept():
        for number in range(3):
            phase.keep(records(number))
        raise KeyboardInterrupt
    assert list(open_phase(tmp_path).read()) == [*records(0), *records(1), *records(2)]


def test_what_is_made_of_records_is_never_in_a_file_before_them(tmp_path: Path) -> None:
    first, second = open_phase(tmp_path), ShardedPhase(ArtifactFolder(tmp_path), "later", Completion, 0)
    second.after = first
    first.keep(records(0))
    for number in range(2):
        second.keep(records(number))
    assert len(second.read()) == 6 and list(first.read()) == records(0)


def test_records_in_another_order_than_they_came() -> None:
    came = [*records(2), *records(0), *records(1)]
    ids = [make_prompt(number).prompt_id for number in range(3)]
    assert in_order(came, lambda c: c.prompt_id, ids) == [*records(0), *records(1), *records(2)]
    for asked, named in ((ids[:2], ids[2]), ([*ids, "another"], "another")):
        with pytest.raises(AssertionError, match=rf"\['{named}'\]"):
            in_order(came, lambda c: c.prompt_id, asked)


def keep_and_die(phase: ShardedPhase[Completion]) -> None:
    for number in range(3):
        phase.keep(records(number))
    raise Killed


def test_a_kill_between_the_rename_and_the_manifest_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = open_phase(tmp_path)
    phase.keep(records(0))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ArtifactFolder, "write_manifest", raise_killed)
        phase.finish({"scored": 1.0})
    assert not (tmp_path / "scored.parts").exists() and (tmp_path / "scored.parquet").is_dir()
    again = open_phase(tmp_path)
    assert not again.finished and list(again.read()) == records(0)
    again.keep(records(1))
    assert list(again.finish({"scored": 1.0})) == [*records(0), *records(1)]
    assert ArtifactFolder(tmp_path).manifest("scored")["rows"] == 6


def raise_killed(*_: object, **__: object) -> None:
    raise Killed


def test_what_was_kept_for_other_inputs_is_dropped(tmp_path: Path) -> None:
    phase = open_phase(tmp_path, 0)
    phase.keep(records(0))
    phase.flush()
    assert list(open_phase(tmp_path, 1).read()) == []


def test_a_finished_phase_of_other_inputs_is_refused(tmp_path: Path) -> None:
    open_phase(tmp_path, 0).finish({"scored": 1.0})
    kept = ArtifactFolder(tmp_path).manifest("scored")["inputs"][:12]
    with pytest.raises(ValueError, match=rf"/scored\.parquet: .*\({kept}, .*[0-9a-f]{{12}}\)"):
        open_phase(tmp_path, 1)


@pytest.mark.parametrize("when", ["keep", "end"])
def test_what_goes_wrong_in_the_thread_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr("ultramed_rl.store.shards.write_table", fail)
    phase = open_phase(tmp_path)
    with pytest.raises(RuntimeError, match="no space left"), phase.kept():
        for number in range(2 if when == "end" else 4):
            phase.keep(records(number))
        assert when == "end", "the second file was begun though the first one failed"


def test_files_written_by_the_thread_are_those_written_in_turn(tmp_path: Path) -> None:
    found = []
    for name in ("by a thread", "in turn"):
        phase = open_phase(tmp_path / name)
        if name == "by a thread":
            with phase.kept():
                for number in range(9):
                    phase.keep(records(number))
        else:
            for number in range(9):
                phase.keep(records(number))
        phase.finish({"scored": 1.0})
        files = shard_files(tmp_path / name / "scored.parquet")
        found.append([file.read_bytes() for file in files])
    assert len(found[0]) > 1
    assert found[0] == found[1]


def test_a_plain_file_of_records_is_read_the_same(tmp_path: Path) -> None:
    write_records(records(0), Completion, tmp_path / "scored.parquet")
    assert list(RecordFiles(tmp_path / "scored.parquet", Completion)) == records(0)
    assert len(RecordFiles(tmp_path / "nothing.parquet", Completion)) == 0


TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(TokenIds)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.just(HOSTILE)
COMPLETIONS = st.builds(
    Completion,
    TEXTS,
    st.integers(0, 9),
    TEXTS,
    TOKENS,
    st.sampled_from(["stop", "length"]),
    st.floats(),
    st.just(3),
)
SCORED = st.builds(
    ScoredCompletion, COMPLETIONS, st.floats(), st.dictionaries(TEXTS, st.floats(), max_size=2)
)


TURNS = st.tuples(TEXTS, TEXTS).map(lambda turn: Message(role=turn[0], content=turn[1]))
CHATS = st.lists(TURNS, max_size=2).map(tuple)
PROMPTS = st.builds(
    Prompt, TEXTS, CHATS, TOKENS | TOKENS.map(tuple), st.none() | TEXTS, TEXTS, st.integers(0, 9)
)
GROUPS = st.builds(
    PreferenceGroup,
    PROMPTS,
    st.lists(COMPLETIONS, min_size=1, max_size=3).map(tuple),
    st.lists(st.floats(), min_size=1, max_size=3).map(tuple),
    st.integers(0, 2),
)
NUMBERS = st.lists(st.floats(), max_size=3).map(tuple)
RECORDS = {
    Prompt: PROMPTS,
    Completion: COMPLETIONS,
    ScoredCompletion: SCORED,
    PreferenceGroup: GROUPS,
    ReferenceLogprobs: st.builds(ReferenceLogprobs, TEXTS, NUMBERS, st.none() | st.floats()),
    OptionLogprobs: st.builds(OptionLogprobs, TEXTS, NUMBERS, st.integers(0, 9)),
    TokenizedChat: st.builds(TokenizedChat, TEXTS, TOKENS, st.lists(st.booleans(), max_size=3).map(tuple)),
}


def plain_row(record: Any) -> dict[str, Any]:
    """A record's row as the schema has it, of Python's own values."""
    if isinstance(record, ScoredCompletion):
        return {
            **plain_row(record.completion),
            "reward": record.reward,
            "terms": record.terms,
            "details": record.details,
        }
    if isinstance(record, PreferenceGroup):
        prompt = plain_row(record.prompt)
        said = [[{"role": "assistant", "content": c.text}] for c in record.completions]
        return {
            **prompt,
            "prompt": prompt["messages"],
            "prompt_token_ids": prompt["token_ids"],
            "group_id": record.group_id,
            "chosen": said[0],
            "rejected": said[-1],
            "margin": record.margin,
            "completions": [plain_row(c) for c in record.completions],
            "rewards": list(record.rewards),
            "desirable": record.desirable,
        }
    values = vars(record)
    return {name: list(v) if isinstance(v, tuple | TokenIds) else v for name, v in values.items()}


@pytest.mark.parametrize("kind", list(RECORDS), ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_columns_hold_what_rows_would(
    tmp_path_factory: pytest.TempPathFactory, kind: type, data: st.DataObject
) -> None:
    """Columns are built of whole lists; rows are the plain way."""
    found = data.draw(st.lists(RECORDS[kind], max_size=4))
    path = tmp_path_factory.mktemp("columns") / "x.parquet"
    write_records(found, kind, path)
    plain = pa.Table.from_pylist([plain_row(record) for record in found], schema=schema_of(kind))
    written = pq.read_table(path)
    assert written.schema.equals(schema_of(kind))
    assert repr(written.to_pylist()) == repr(plain.to_pylist())  # by repr: NaN equals itself
    numbers = lambda record: repr(plain_row(record))  # a tuple of ids comes back as TokenIds
    assert list(map(numbers, read_records(kind, path))) == list(map(numbers, found))
    assert list(map(numbers, records_of_table(kind, written.slice(1)))) == list(map(numbers, found[1:]))


def test_records_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"\bCompletion\b"):
        write_records([make_prompt(0)], Completion, tmp_path / "x.parquet")
