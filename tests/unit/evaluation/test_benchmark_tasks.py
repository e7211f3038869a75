"""Benchmark tasks: every form of row becomes its item, and no row breaks one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.choices import split_options
from ultramed_rl.evaluation.items import Item, Row
from ultramed_rl.evaluation.suite import load_items
from ultramed_rl.evaluation.tasks import TASKS, find_task

CHOICE = {
    "question": "Which organ fails?",
    "options": {"A": "Heart", "B": "Liver", "C": "Lung", "D": "Skin"},
    "answer_idx": "B",
}
ORGANS = ("Heart", "Liver", "Lung", "Skin")
ABSTRACT = ("We asked 20 people.", "Most said so.")
DECISIONS = ("yes", "no", "maybe")
ASKED = Item("", "Does it work?", DECISIONS, "C", "We asked 20 people.\nMost said so.")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(name: str, row: Mapping[str, Any]) -> Item | None:
    return find_task(name).read(Row(row))


# -- rows to items -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "item"),
    [
        ("medqa", CHOICE, Item("", CHOICE["question"], ORGANS, "B")),
        (  # a table's struct fills what a row doesn't have
            "medqa",
            CHOICE | {"options": CHOICE["options"] | {"E": None}},
            Item("", CHOICE["question"], ORGANS, "B"),
        ),
        (
            "medqa",
            {"id": "x7", "sent1": "Q?", "sent2": "", "label": 3}
            | {f"ending{i}": ORGANS[i] for i in range(4)},
            Item("x7", "Q?", ORGANS, "D"),
        ),
        (
            "medqa",
            {"question": "Q?", "options": 'A. one \nB. two\nand more\nC. \n"', "answer": "A. one"},
            Item("", "Q?", ("one ", "two\nand more", ""), "A"),
        ),
        (
            "medmcqa",
            {"id": "7a", "question": "Q?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 0}
            | {"subject_name": "Anatomy"},
            Item("7a", "Q?", ("1", "2", "3", "4"), "A", subject="Anatomy"),
        ),
        (
            "pubmedqa",
            {
                "question": "Does it work?",
                "passage": f"Context (1): {ABSTRACT[0]}\nContext (2): {ABSTRACT[1]}\n",
                "answer": "maybe",
            },
            ASKED,
        ),
        (
            "pubmedqa",
            {
                "id": "p1",
                "data": {
                    "Question": "Does it work?",
                    "Context": list(ABSTRACT),
                    "Options": {"A": "yes", "B": "no", "C": "maybe"},
                    "Correct Option": "C",
                },
            },
            replace(ASKED, item_id="p1"),
        ),
        (
            "pubmedqa",
            {"data": {"Question": "Q?", "Context": "One text.", "Correct Answer": "Yes"}},
            Item("", "Q?", DECISIONS, "A", "One text."),
        ),
        (
            "pubmedqa",
            {"QUESTION": "Does it work?", "CONTEXTS": list(ABSTRACT), "final_decision": "maybe"},
            ASKED,
        ),
        (
            "pubmedqa",
            {
                "pubid": 21,
                "question": "Does it work?",
                "context": {"contexts": list(ABSTRACT)},
                "final_decision": "maybe",
            },
            replace(ASKED, item_id="21"),
        ),
        (
            "mmlu_medical",
            {"question": "Q?", "subject": "anatomy", "choices": list(ORGANS), "answer": 2},
            Item("", "Q?", ORGANS, "C", subject="anatomy"),
        ),
        ("mmlu_medical", {"question": "Q?", "subject": "law", "choices": list(ORGANS), "answer": 2}, None),
        (
            "mmlu_pro_health",
            {"question_id": 70, "question": "Q?", "options": list("abcdefghij"), "answer": "J"}
            | {"answer_index": 9, "category": "health"},
            Item("70", "Q?", tuple("abcdefghij"), "J"),
        ),
        ("mmlu_pro_health", {"category": "law"}, None),
        (
            "medxpertqa",
            {
                "id": "Text-1",
                "question": "Note: (A) is a sign.\nWhat next?\nAnswer Choices: (A) Heart (B) Liver (C) Lung (D) Skin",
                "options": CHOICE["options"],
                "label": "C",
                "body_system": "Skeletal",
            },
            Item("Text-1", "Note: (A) is a sign.\nWhat next?", ORGANS, "C", subject="Skeletal"),
        ),
        (
            "medxpertqa",  # the authors' own file; and a tail that doesn't list the options stays
            {
                "id": "Text-2",
                "question": "Q?\nAnswer Choices: (A) or none",
                "options": [{"letter": "A", "content": "a"}, {"letter": "B", "content": "b"}],
                "label": ["B"],
            },
            Item("Text-2", "Q?\nAnswer Choices: (A) or none", ("a", "b"), "B"),
        ),
        (
            "medqa",
            CHOICE | {"answer_idx": "b"},
            Item("", CHOICE["question"], ORGANS, "B"),
        ),
        (
            "mmlu_pro_health",  # ten options, of which the last are none
            {"question_id": 71, "question": "Q?", "options": [*ORGANS, *["N/A"] * 6], "answer": "D"}
            | {"answer_index": 3, "category": "health", "cot_content": "", "pred": "A"},
            Item("71", "Q?", ORGANS, "D"),
        ),
        (
            "kqa",
            {"Question": "May I?", "Must_have": ["Yes. "], "Nice_to_have": [], "Free_form_answer": "Yes."},
            Item("", "May I?", required=("Yes.",)),
        ),
        (
            "alpaca_eval",
            {"dataset": "koala", "instruction": "Say hi.", "output": "Hi!", "generator": "gpt4_1106_preview"},
            Item("", "Say hi.", subject="koala", beside=("Hi!",)),
        ),
        (
            "mt_bench",
            {"category": "math", "prompt": ["1 + 1?", "Twice?"], "reference": ["2", "4"], "prompt_id": 7},
            Item("7", "1 + 1?", subject="math", follow_up="Twice?", beside=("2", "4")),
        ),
        (
            "mt_bench",
            {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
            Item("81", "Write.", subject="writing", follow_up="Again."),
        ),
    ],
)
def test_every_form_of_row_gives_its_item(name: str, row: Mapping[str, Any], item: Item | None) -> None:
    assert read(name, row) == item


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("factoid", "TP53", (("TP53",),)),
        ("factoid", ["TP53", "p53"], (("TP53", "p53"),)),
        ("factoid", [["TP53"], ["p53", "TP53", " "]], (("TP53", "p53"),)),
        ("list", [["aspirin", "ASA"], ["ibuprofen"]], (("aspirin", "ASA"), ("ibuprofen",))),
        ("list", ["aspirin", "ibuprofen"], (("aspirin",), ("ibuprofen",))),
    ],
)
def test_a_factoid_wants_one_entity_and_a_list_one_per_entry(kind: str, answer: Any, expected: Any) -> None:
    row = {"id": "55", "body": "Which?", "type": kind, "exact_answer": answer, "snippets": [{"text": "S."}]}
    assert read(f"bioasq_{kind}", row) == Item("55", "Which?", context="S.", expected=expected)
    assert read("bioasq_yesno", row) is None


def test_bioasqs_file_gives_each_task_its_own_questions(tmp_path: Path) -> None:
    questions: list[dict[str, Any]] = [
        {"id": "1", "body": "Is it?", "type": "yesno", "exact_answer": "Yes"},
        {"id": "2", "body": "Isn't it?", "type": "yesno", "exact_answer": ["no"]},
        {"id": "3", "body": "Which?", "type": "factoid", "exact_answer": "TP53"},
        {"id": "4", "body": "Tell.", "type": "summary", "ideal_answer": "Well."},
    ]
    path = tmp_path / "bioasq.json"
    path.write_text(json.dumps({"questions": questions}))
    loaded = load_items(find_task("bioasq_yesno"), str(path))
    assert [(i.item_id, i.options, i.answer) for i in loaded.items] == [
        ("1", ("yes", "no"), "A"),
        ("2", ("yes", "no"), "B"),
    ]
    assert (loaded.counts["rows"], loaded.counts["left_out"]) == (4, 2)
    with pytest.raises(ValueError, match="'bioasq_list': .*\\b4\\b"):
        load_items(find_task("bioasq_list"), str(path))


def test_medmcqas_own_file_counts_its_keys_from_one(tmp_path: Path) -> None:
    row = dict(zip(("opa", "opb", "opc", "opd"), ORGANS, strict=True)) | {
        "subject_name": "Surgery",
        "exp": None,
    }
    rows = [row | {"question": f"Q{n}?", "cop": n, "id": f"m{n}"} for n in (4, 1, 3, 2)]
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # lines, whatever its name says
    items = load_items(find_task("medmcqa"), str(path)).items
    assert [(item.item_id, item.lettered[item.answer]) for item in items] == [
        ("m4", "Skin"),
        ("m1", "Heart"),
        ("m3", "Lung"),
        ("m2", "Liver"),
    ]
    path.write_text(json.dumps(rows[2]))
    with pytest.raises(ValueError, match=r"dev\.json'.*first_place .*\bmedmcqa to 0 or 1$"):
        load_items(find_task("medmcqa"), str(path))
    assert load_items(find_task("medmcqa"), str(path), first_place=1).items[0].answer == "C"
    assert load_items(find_task("medmcqa"), str(path), first_place=0).items[0].answer == "D"


def test_of_pubmedqas_own_file_the_tests_half_is_asked(tmp_path: Path) -> None:
    row = {"QUESTION": "Does it work?", "CONTEXTS": list(ABSTRACT), "MESHES": [], "YEAR": "2011"}
    rows = {f"{n}": row | {"final_decision": DECISIONS[n % 3]} for n in range(40)}
    path = tmp_path / "ori_pqal.json"
    path.write_text(json.dumps(rows, indent=4))
    with pytest.raises(ValueError, match=r"ori_pqal\.json'.*\btest_ground_truth\.json\b"):
        load_items(find_task("pubmedqa"), str(path))
    truth = {name: row["final_decision"] for name, row in rows.items() if int(name) % 2}
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth, indent=4))
    loaded = load_items(find_task("pubmedqa"), str(path))
    assert (loaded.counts["rows"], loaded.counts["left_out"], len(loaded.items)) == (40, 20, 20)
    assert loaded.items[2] == replace(ASKED, item_id="5")
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth | {"1": "yes"}))
    assert load_items(find_task("pubmedqa"), str(path)).counts["misfit_wrong_key"] == 1
    (tmp_path / "test_set.json").write_text(
        path.read_text()
    )  # the authors' split makes a file of the test alone
    assert len(load_items(find_task("pubmedqa"), str(tmp_path / "test_set.json")).items) == 40


def test_a_question_with_pictures_is_no_question_of_texts() -> None:
    row = {
        "id": "MM-0",
        "question": "Q?",
        "options": CHOICE["options"],
        "label": ["A"],
        "images": [{"image_path": "a.jpeg"}],
    }
    with pytest.raises(Misfit) as misfit:
        read("medxpertqa", row)
    assert misfit.value.name == "picture"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.sampled_from(["", "A", "yes", "A. x\nB. y", "\ud83d", "health"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["A", "B", "contexts", "text", "letter", "content", "Options"]), inner
        )
    ),
    max_leaves=6,
)
COLUMNS = sorted(
    {
        *("id", "question", "options", "answer", "answer_idx", "sent1", "label", "ending0", "ending1", "cop"),
        *(
            "opa",
            "opb",
            "subject_name",
            "passage",
            "data",
            "QUESTION",
            "CONTEXTS",
            "final_decision",
            "context",
        ),
        *(
            "choices",
            "subject",
            "category",
            "answer_index",
            "body_system",
            "body",
            "exact_answer",
            "snippets",
        ),
        *("Question", "Must_have", "Nice_to_have", "Correct Option", "Context"),
    }
)


@given(st.sampled_from(sorted(TASKS)), st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=8), st.data())
@settings(max_examples=400, deadline=None)
def test_no_row_however_odd_breaks_a_task(name: str, row: dict[str, Any], data: st.DataObject) -> None:
    if name.startswith("bioasq"):
        row["type"] = data.draw(st.sampled_from(["yesno", "factoid", "list"]))
    if data.draw(st.booleans()):
        row |= {"data": dict(row)}
    try:
        item = read(name, row)
    except Misfit:
        return
    if item is not None:
        find_task(name).ask(item).encode()
        assert item.question.strip()
        assert (
            (item.answer in item.lettered)
            if item.options
            else (item.expected or item.required or item.optional)
        )


def test_lines_that_only_look_like_options_stay_in_their_option() -> None:
    assert split_options("A. first\nB. see\nE. coli\nC. last") == ("first", "see\nE. coli", "last")
