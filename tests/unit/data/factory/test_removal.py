"""Rows told apart by a search's findings: every row once, every finding once."""

from __future__ import annotations

import pytest

from ultramed_rl.config.factory import Columns, Decontaminate, Deduplicate
from ultramed_rl.data.factory.decontaminate import BenchmarkItem, Decontaminator
from ultramed_rl.data.factory.deduplicate import DuplicateKeys, find_duplicates
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.factory.instructions import split_removed

COLUMNS = Columns(id="name", instruction="text")
ROWS = [{"name": name, "text": f"What is {name}?"} for name in ("gout", "a stroke", "sepsis")]


def test_rows_keep_their_order_and_removed_ones_have_their_record() -> None:
    found = list(split_removed(iter(ROWS), COLUMNS, {"a stroke": {"reason": "near"}}))
    assert found == [(ROWS[0], None), (ROWS[1], {"reason": "near"}), (ROWS[2], None)]
    assert [removal for _, removal in split_removed(ROWS, COLUMNS, {})] == [None] * 3


def test_numbers_as_ids_are_met_as_the_text_that_a_search_reports() -> None:
    rows = [{"name": 7, "text": "What is gout?"}]
    assert list(split_removed(rows, COLUMNS, {"7": "exact"})) == [(rows[0], "exact")]


def test_what_deduplicate_and_decontaminate_find_is_met_in_the_rows_they_searched() -> None:
    again = {"name": "copy", "text": "WHAT is gout"}
    rows = [*ROWS, again]
    duplicates = find_duplicates(
        [DuplicateKeys(Deduplicate(columns=COLUMNS))(rows)],
        Deduplicate(columns=COLUMNS),
    )
    removals = {one.record_id: one for one in duplicates}
    removed = [(row["name"], one.kept_id) for row, one in split_removed(rows, COLUMNS, removals) if one]
    assert removed == [("copy", "gout")]
    items = [BenchmarkItem("medqa", "q1", "What is sepsis?")]
    search = Decontaminator(items, Decontaminate(columns=COLUMNS, tasks=["medqa"]), HashedEmbedder())
    reported = {str(one["record_id"]): one for one in search(ROWS).to_pylist()}
    assert [one and one["rule"] for _, one in split_removed(ROWS, COLUMNS, reported)] == [None, None, "exact"]


@pytest.mark.parametrize(
    ("rows", "removals", "words"),
    [
        ([*ROWS, ROWS[0]], {"gout": 1}, r"^id 'gout': [^\d]+$"),
        (ROWS, {"gout": 1, "flu": 2, "flue": 3}, r"^id 'flu': .*\(2 "),
        ([], {"flu": 2}, r"^id 'flu': .*\(1 "),
        ([{"text": "What?"}], {}, r"^row .*: .*'name'; .*columns\.id$"),
    ],
)
def test_findings_of_other_rows_are_refused(
    rows: list[dict[str, str]], removals: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        list(split_removed(rows, COLUMNS, removals))
    assert "\n" not in str(error.value)


def test_an_id_that_stands_twice_and_stays_is_nobodys_business() -> None:
    assert len(list(split_removed([*ROWS, ROWS[0]], COLUMNS, {"sepsis": 1}))) == 4
