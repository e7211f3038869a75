"""Public sets to records: every published form of question, with its key as the whole file means it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.config import DataConfig, parse_config
from ultramed_rl.data.factory.import_rows import import_rows, import_vignettes
from ultramed_rl.data.files import SourceError

COLUMNS = ["opa", "opb", "opc", "opd"]
ORGANS = ("Heart", "Liver", "Lung", "Skin")
LINES = "A. Heart\nB. Liver\nC. Lung\nD. Skin"
LETTERED = dict(zip("ABCD", ORGANS, strict=True))
MEDMCQA = {"question": "question", "options": COLUMNS, "answer": "cop", "id": "id"}
PUBMEDQA = {"kind": "Literature", "choices": ["yes", "no", "maybe"], "answer": "final_decision"}


def configured(uris: Sequence[str], limit: int | None = None, **step: Any) -> DataConfig:
    step = {"type": "records", "name": "S", "kind": "Exam", **step}
    if step["type"] == "vignettes":
        del step["kind"]
    devices = {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8}
    settings = {
        "type": "data",
        "run": {"name": "r"},
        "input": [*uris],
        "step": step,
        "cluster": devices,
        "limit": limit,
    }
    return parse_config(settings, kind=DataConfig)


def records(uris: Sequence[str], **step: Any) -> tuple[list[Mapping[str, Any]], Counter[str]]:
    config, counts = configured(uris, **step), Counter[str]()
    made = import_vignettes if step.get("type") == "vignettes" else import_rows
    return list(made(config, config.step, counts)), counts  # type: ignore[arg-type]


def read(folder: Path, rows: Sequence[Mapping[str, Any]], **step: Any) -> list[Mapping[str, Any]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return records([str(path)], **step)[0]


def asked(record: Mapping[str, Any]) -> tuple[str, str | None]:
    """The question and what its key says."""
    text, key = record["conversations"][0]["value"], record["answer"]
    said = dict(line.split(". ", 1) for line in text.split("\n") if line[1:3] == ". ")
    return text.split("\n\n")[-2] if said else text, said.get(key) if key else None


def medmcqa(number: int, cop: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": f"m{number}",
        "question": f"Which {number}?",
        **dict(zip(COLUMNS, ORGANS, strict=True)),
        "cop": cop,
        **more,
    }


@pytest.mark.parametrize(
    ("rows", "step", "said"),
    [
        ([medmcqa(n, n + 1) for n in range(4)], MEDMCQA, ORGANS),  # the authors' dev.json
        ([medmcqa(n, n) for n in range(4)], MEDMCQA, ORGANS),  # the hub's
        ([medmcqa(n, str(n + 1)) for n in range(4)], MEDMCQA, ORGANS),  # out of a table of texts
        ([medmcqa(n, float(n + 1)) for n in range(4)], MEDMCQA, ORGANS),  # out of pandas
        ([medmcqa(0, 2)], {**MEDMCQA, "first_place": 1}, ["Liver"]),
        ([medmcqa(0, 2)], {**MEDMCQA, "first_place": 0}, ["Lung"]),
        ([{"q": "Q?", "o": LETTERED, "k": "b"}], {"question": "q", "options": "o", "answer": "k"}, ["Liver"]),
        ([{"q": "Q?", "o": {"b": "two", "a": "one"}, "k": ["b"]}], {"question": "q", "options": "o", "answer": "k"}, ["two"]),
        ([{"q": "Q?", "o": {str(n): f"t{n}" for n in range(11)}, "k": "10"}], {"question": "q", "options": "o", "answer": "k"}, ["t10"]),
        ([{"q": "Q?", "o": list(ORGANS), "k": "Lung"}], {"question": "q", "options": "o", "answer": "k"}, ["Lung"]),
        ([{"q": "Q?", "o": LINES, "k": "C"}], {"question": "q", "options": "o", "answer": "k"}, ["Lung"]),
        ([{"qtext": "Q?", "answers": [{"aid": n + 1, "atext": t} for n, t in enumerate(ORGANS)], "ra": 3}], {"question": "qtext", "options": "answers", "answer": "ra"}, ["Lung"]),
        ([{"question": "Q?\nAnswer Choices: (A) Heart (B) Liver (C) Lung (D) Skin", "options": [{"letter": letter, "content": text} for letter, text in LETTERED.items()], "label": ["D"]}], {"question": "question", "options": "options", "answer": "label"}, ["Skin"]),
        ([{"question": "Q?", "choices": {"text": list(ORGANS), "label": ["1", "2", "3", "4"]}, "answerKey": "2"}], {"question": "question", "options": "choices", "answer": "answerKey"}, ["Liver"]),
        ([{"question": "Q?", **dict(zip("ABCDE", (*ORGANS, None), strict=True)), "answer": 4}], {"question": "question", "options": list("ABCDE"), "answer": "answer"}, ["Skin"]),
        ([{"q": "Q?", "final_decision": "Maybe"}], {**PUBMEDQA, "question": "q"}, ["maybe"]),
        ([{"q": "Q?", "final_decision": n} for n in (0, 2)], {**PUBMEDQA, "question": "q"}, ["yes", "maybe"]),
        ([{"chat": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}], {"kind": "Open-End", "question": "chat"}, [None]),
    ],
)  # fmt: skip
def test_every_form_of_question_becomes_a_record_with_its_own_key(
    tmp_path: Path, rows: list[dict[str, Any]], step: dict[str, Any], said: Sequence[str | None]
) -> None:
    made = [asked(record) for record in read(tmp_path, rows, **step)]
    assert [key for _, key in made] == [*said]
    assert all(question in ("Q?", "Why?") or question.startswith("Which ") for question, _ in made)


def test_a_transcript_gives_its_first_question(tmp_path: Path) -> None:
    rows = [{"Conversation": "[|Human|] What is A?\n[|AI|] It is B.\n[|Human|] "}]
    (record,) = read(tmp_path, rows, kind="Open-End", question="Conversation")
    assert [turn["value"] for turn in record["conversations"]] == ["What is A?"]


def test_a_rendered_question_is_a_misfit(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="1 rendered"):
        read(tmp_path, [{"q": "<|im_start|>user\nWhat?<|im_end|>"}], kind="Open-End", question="q")


def test_pubmedqas_own_file_is_read_by_its_ids(tmp_path: Path) -> None:
    row = {
        "QUESTION": "Does it?",
        "CONTEXTS": ["We tried.", "It did."],
        "final_decision": "no",
        "LONG_ANSWER": "Not so.",
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"21645374": row}, indent=4))
    step = {**PUBMEDQA, "question": "QUESTION", "context": "CONTEXTS", "reply": "LONG_ANSWER", "id": "id"}
    (record,), _ = records([str(tmp_path / "ori_pqal.json")], **step)
    text = "We tried.\nIt did.\n\nDoes it?\n\nA. yes\nB. no\nC. maybe"
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "Not so."}]
    assert record == {
        "id": "S,21645374",
        "type": "Literature",
        "conversations": turns,
        "answer": "B",
        "score": None,
    }


@given(st.sampled_from([0, 1]), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_no_key_is_moved_to_another_option(
    tmp_path_factory: pytest.TempPathFactory, first: int, places: list[int]
) -> None:
    rows = [medmcqa(n, place + first) for n, place in enumerate(places)]
    folder = tmp_path_factory.getbasetemp()
    try:
        made = read(folder, rows, **MEDMCQA)
    except SourceError:
        assert (0 if first == 0 else 3) not in places
    else:
        assert [asked(record)[1] for record in made] == [ORGANS[place] for place in places]
    assert [asked(r)[1] for r in read(folder, rows, **MEDMCQA, first_place=first)] == [
        ORGANS[p] for p in places
    ]


def test_a_part_of_an_input_is_read_as_the_rest_of_it_says(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(medmcqa(n, key)) + "\n" for n, key in enumerate([2, 3, 4, 1])))
    made, counts = records([str(path)], limit=2, **MEDMCQA)
    assert ([asked(record)[1] for record in made], counts["rows"]) == (["Liver", "Lung"], 2)


def test_files_of_one_input_speak_for_each_other_and_inputs_for_themselves(tmp_path: Path) -> None:
    for name, keys in (("a-1", [2, 3]), ("a-2", [4]), ("b", [0, 1])):
        rows = "".join(json.dumps(medmcqa(n, key)) + "\n" for n, key in enumerate(keys))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    made, counts = records([f"{tmp_path}/a-*.jsonl", f"{tmp_path}/b.jsonl"], **MEDMCQA)
    assert [asked(record)[1] for record in made] == ["Liver", "Lung", "Skin", "Heart", "Liver"]
    assert counts["rows"] == 5


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"cop": None}, "missing_key"),
        ({"cop": -1}, "missing_key"),
        ({"cop": 7}, "bad_letter"),
        ({"opc": ""}, "empty_option"),
        ({"opc": "Heart "}, "same_options"),
        ({"question": " "}, "no_question"),
        ({"id": None}, "no_id"),
        ({"question": 7}, "column"),
        ({"exp": ["a list"]}, "column"),
        ({"question": "half of a pair: \ud83d"}, "column"),
    ],
)
def test_a_misfit_is_counted_by_its_reason_up_to_a_twentieth(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    path, rows = tmp_path / "rows.jsonl", [medmcqa(n, n % 4) for n in range(19)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, medmcqa(19, 0) | change]))
    step = {**MEDMCQA, "reply": "exp"} if "exp" in change else MEDMCQA
    made, counts = records([str(path)], **step)
    assert (len(made), counts) == (19, {"rows": 20, "misfit": 1, f"misfit_{name}": 1})
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:18], medmcqa(19, 0) | change]))
    with pytest.raises(SourceError, match=rf"rows\.jsonl': 1 of 19 .*\b1 {name}\b.* 5%"):
        records([str(path)], **step)
    assert len(records([str(path)], **step, max_misfit_share=0.1)[0]) == 18


def test_a_file_without_the_column_says_which_there_are(tmp_path: Path) -> None:
    row = {"id": "1", "stem": "Q?", "o": list(ORGANS), "k": "A"}
    with pytest.raises(SourceError, match=r"'question'; its columns are id, stem, o, k\b"):
        read(tmp_path, [row], question="question", options="o", answer="k")
    with pytest.raises(
        SourceError, match=r"'cop'; its columns are id, stem, o, k\b"
    ):  # MedMCQA's test has none
        read(tmp_path, [row], question="stem", options="o", answer="cop")
    with pytest.raises(SourceError, match="'name'"):
        read(tmp_path, [row], question="stem", options="o", answer="k", id="name")
    for column in ("context", "reply"):  # some rows may have none
        with pytest.raises(SourceError, match=r"'why'; its columns are id, stem, o, k\b"):
            read(tmp_path, [row], question="stem", options="o", answer="k", **{column: "why"})
        more = read(
            tmp_path, [row, row | {"why": "So."}], question="stem", options="o", answer="k", **{column: "why"}
        )
        assert len(more) == 2


def test_vignettes_keep_the_limit_too(tmp_path: Path) -> None:
    good = {
        "original_question": "Question:\nWhich?\nOptions:\nA: one\nB: two",
        "answer_orig": "two",
        "answer_option": "B",
    }
    figure = good | {"original_question": "Question:\nSee the image shown.\nOptions:\nA: one\nB: two"}
    path = tmp_path / "swap.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [figure, *[good] * 19, good | {"answer_option": "A"}])
    )
    made, counts = records([str(path)], type="vignettes", name="M")
    assert (len(made), made[0]["id"]) == (19, "M,2")
    assert counts == {"rows": 21, "misfit": 1, "misfit_wrong_key": 1, "figure": 1}
    path.write_text(json.dumps({"text": "x"}))
    with pytest.raises(SourceError, match=r"swap\.jsonl': 1 of 1 .*malformed"):
        records([str(path)], type="vignettes", name="M")
