"""TokenIds is a sequence of ints like any other, whatever was done to it on the way."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.records import Completion, Prompt
from ultramed_rl.store.digests import digest_inputs
from ultramed_rl.store.tables import read_records, write_records
from ultramed_rl.token_ids import TokenIds

IDS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40)


@given(IDS, st.slices(40))
def test_it_is_the_sequence_that_it_was_made_of(ids: list[int], part: slice) -> None:
    made = TokenIds(ids)
    assert list(made) == ids and len(made) == len(ids) and bool(made) == bool(ids)
    assert made == tuple(ids) == made and made == ids and hash(made) == hash(tuple(ids))
    assert list(made[part]) == ids[part]
    assert [made[place] for place in range(-len(ids), len(ids))] == ids + ids
    assert pickle.loads(pickle.dumps(made, protocol=5)) == TokenIds(made) == made


@given(IDS, IDS)
def test_it_differs_where_the_numbers_do(ids: list[int], others: list[int]) -> None:
    assert (TokenIds(ids) == TokenIds(others)) == (TokenIds(ids) == tuple(others)) == (ids == others)


@given(IDS, st.integers(1, 2**31 - 1))
def test_it_knows_whether_a_vocabulary_holds_it(ids: list[int], size: int) -> None:
    assert TokenIds(ids).within(size) == all(0 <= token < size for token in ids)


def test_an_id_that_has_no_place_is_refused() -> None:
    with pytest.raises(OverflowError):
        TokenIds([2**31])
    with pytest.raises(IndexError):
        TokenIds([1])[1]


def test_its_pickle_is_as_small_as_its_bytes() -> None:
    assert len(pickle.dumps(TokenIds(range(100_000, 101_000)), protocol=5)) < 4 * 1000 + 100


def test_records_with_packed_ids_are_those_with_tuples(tmp_path: Path) -> None:
    messages = ({"role": "user", "content": "Why?"},)
    plain = [Completion(f"p{n}", 0, "Because.", tuple(range(n)), "stop", -1.0, 0) for n in range(4)]
    packed = [Completion(f"p{n}", 0, "Because.", TokenIds(range(n)), "stop", -1.0, 0) for n in range(4)]
    assert plain == packed and digest_inputs(plain) == digest_inputs(packed)
    for number, records in enumerate((plain, packed)):
        write_records(records, Completion, tmp_path / f"{number}.parquet")
        assert read_records(Completion, tmp_path / f"{number}.parquet") == plain
    prompts = [Prompt("p", messages, (1, 2, 3)), Prompt("q", messages, ())]
    write_records(prompts, Prompt, tmp_path / "prompts.parquet")
    assert read_records(Prompt, tmp_path / "prompts.parquet") == prompts
