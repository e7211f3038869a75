"""Phases that are kept as they come: a killed one repeats only what it had not written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ultramed_rl.records import OptionLogprobs
from ultramed_rl.store import ArtifactFolder, parts
from ultramed_rl.store.parts import phase_in_parts

KEYS = [f"q{i}" for i in range(7)]


class Killed(BaseException):
    """What no code catches."""


def records(keys: Sequence[str]) -> Iterator[list[OptionLogprobs]]:
    for key in keys:
        yield [OptionLogprobs(key, (-1.0, -float(key[1:])), 0)]


def run(
    folder: Path, asked: list[str], inputs: str = "a", killed_after: int | None = None
) -> list[OptionLogprobs]:
    """The phase, with every key that is computed added to `asked`."""

    def compute(done: set[str]) -> Iterator[list[OptionLogprobs]]:
        for number, batch in enumerate(records([key for key in reversed(KEYS) if key not in done])):
            if number == killed_after:
                raise Killed
            asked.append(batch[0].question_id)
            yield batch

    return phase_in_parts(
        ArtifactFolder(folder),
        "likelihood",
        compute,
        inputs,
        kind=OptionLogprobs,
        key=lambda record: record.question_id,
        order=KEYS,
    )


def test_records_stand_in_the_order_asked_for_and_are_read_back(tmp_path: Path) -> None:
    asked: list[str] = []
    first = run(tmp_path, asked)
    assert [record.question_id for record in first] == KEYS
    assert run(tmp_path, asked) == first
    assert asked == KEYS[::-1], "a finished phase was computed again"
    assert not (tmp_path / "likelihood.parts").exists()


@pytest.mark.parametrize("size", [1, 2, 100])
def test_only_what_was_not_kept_is_computed_again(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_RECORDS", size)
    asked: list[str] = []
    with pytest.raises(Killed):
        run(tmp_path, asked, killed_after=5)
    assert len(asked) == 5
    whole = run(tmp_path, asked)
    assert sorted(asked) == sorted(KEYS), "a record was lost or computed twice"
    assert whole == run(tmp_path / "other", [])


def test_a_hard_kill_loses_what_was_in_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_RECORDS", 2)
    kept = parts.Parts(tmp_path / "likelihood.parts", OptionLogprobs, ("a",))
    stream = kept.keep_as_they_come(records(KEYS))
    for _ in range(5):
        next(stream)
    # The process is gone here: nothing closes the stream. Two whole parts of two are on disk.
    found = parts.Parts(tmp_path / "likelihood.parts", OptionLogprobs, ("a",)).read()
    assert [record.question_id for record in found] == KEYS[:4]


def test_a_part_that_a_kill_left_half_written_is_no_part(tmp_path: Path) -> None:
    kept = parts.Parts(tmp_path / "likelihood.parts", OptionLogprobs, ("a",))
    kept.keep([record for (record,) in records(KEYS[:2])])
    (kept.path / ".tmp-000001.parquet").write_bytes(b"PAR1")
    assert [record.question_id for record in kept.read()] == KEYS[:2]


def test_parts_of_other_inputs_are_forgotten(tmp_path: Path) -> None:
    asked: list[str] = []
    with pytest.raises(Killed):
        run(tmp_path, asked, killed_after=3)
    asked.clear()
    run(tmp_path, asked, inputs="b")
    assert asked == KEYS[::-1]


def test_a_record_nobody_asked_for_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="lost or unasked"):
        phase_in_parts(
            ArtifactFolder(tmp_path),
            "likelihood",
            lambda done: records(["q1", "q9"]),
            kind=OptionLogprobs,
            key=lambda record: record.question_id,
            order=["q1", "q2"],
        )
