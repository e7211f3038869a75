"""Solved questions like a record's, found by hand-made vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.unit.data.factory.test_steps import drive
from ultramed_rl.config.factory_steps import Answer
from ultramed_rl.data.factory.answer import AnswerStep, ExemplarIndex
from ultramed_rl.data.factory.instructions import Instruction, answered_row, new_row
from ultramed_rl.data.factory.step import Row
from ultramed_rl.evaluation.reading.choice import read_letter

OPTIONS = {"A": "a drug", "B": "rest"}
RIGHT = "So, the answer is B."
# Unit vectors at these degrees from a gout: cosines fall from 1.
DEGREES = {"gout": 0.0, "arthritis": 10.0, "fever": 40.0, "asthma": 60.0, "stroke": 80.0}


def embed(texts: Sequence[str]) -> np.ndarray:
    angles = [next(angle for word, angle in DEGREES.items() if word in text.lower()) for text in texts]
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def choice(name: str, word: str, answer: str = "", options: dict[str, str] = OPTIONS) -> Row:
    row = new_row(name, "Exam", Instruction(f"What helps against {word}?", options, "B"))
    return answered_row(row, answer) if answer else row


def open_row(name: str, word: str, answer: str = "") -> Row:
    row = new_row(name, "Open-End", Instruction(f"Tell me about {word}."))
    return answered_row(row, answer) if answer else row


def words_of(found: Sequence[tuple[str, str]]) -> list[str]:
    return [next(word for word in DEGREES if word in question) for question, _ in found]


SOLVED = [
    choice("1", "stroke", RIGHT),
    choice("2", "fever", RIGHT),
    open_row("3", "asthma", "It is a disease."),
    choice("4", "arthritis", f"It is a drug.\n\n{RIGHT}"),
]


def test_the_nearest_of_the_same_form_come_first() -> None:
    index = ExemplarIndex(iter(SOLVED), embed, most=2)
    found = index(choice("x", "gout"))
    assert words_of(found) == ["arthritis", "fever"] and len(index) == 4
    assert found[0] == (
        "What helps against arthritis?\n\nA. a drug\nB. rest",
        f"It is a drug.\n\n{RIGHT}",
    )
    assert words_of(index(open_row("x", "gout"))) == ["asthma"]
    assert words_of(ExemplarIndex(SOLVED, embed, most=9)(choice("x", "asthma"))) == [
        "stroke",
        "fever",
        "arthritis",
    ]  # 20, 20 and 50 degrees off: of equals the first in the rows


@pytest.mark.parametrize(
    "row",
    [
        choice("1", "fever"),
        choice("1", "fever", "It is a drug. So, the answer is A."),
        choice("1", "fever", "So, the answer is B. Or is it?"),
        open_row("1", "fever"),
        {**choice("1", "fever", RIGHT), "type": "Open-End", "answer": None},
        {"id": "1"},
        {**choice("1", "fever", RIGHT), "answer": "C"},
    ],
)
def test_what_is_not_solved_is_no_exemplar(row: Row) -> None:
    index = ExemplarIndex([row], embed)
    assert len(index) == 0
    assert index(choice("x", "gout")) == index(open_row("x", "gout")) == ()


def test_the_question_itself_is_never_shown_by_id_or_by_words() -> None:
    others = {"A": "rest", "B": "water"}
    rows = [
        choice("same id", "gout and more", RIGHT),
        choice("same words", "GOUT", RIGHT, others),
        choice("y", "fever", RIGHT),
    ]
    assert words_of(ExemplarIndex(rows, embed)(choice("same id", "gout"))) == ["fever"]


def test_one_question_is_shown_once_and_the_first_of_equals_wins() -> None:
    rows = [choice(f"{n}", f"fever {'I' * n}", RIGHT) for n in range(40)]
    twice = [choice("again", "fever", RIGHT), *rows, *rows]
    index = ExemplarIndex(twice, embed, most=3)
    asked = [question.split("\n")[0] for question, _ in index(choice("x", "gout"))]
    assert asked == [f"What helps against fever{more}?" for more in ("", " I", " II")]
    backwards = ExemplarIndex(twice[::-1], embed, most=1)
    assert backwards(choice("x", "gout"))[0][0].startswith(f"What helps against fever {'I' * 39}?")


def test_many_near_copies_do_not_hide_what_lies_behind_them() -> None:
    copies = [choice(f"{n}", "gout", RIGHT) for n in range(2000)]
    index = ExemplarIndex([*copies, choice("far", "stroke", RIGHT)], embed, most=1)
    assert words_of(index(choice("x", "gout"))) == ["stroke"]


def test_without_solved_questions_or_with_none_wanted_there_are_none() -> None:
    assert ExemplarIndex([], embed)(choice("x", "gout")) == ()
    assert ExemplarIndex(SOLVED, embed, most=0)(choice("x", "gout")) == ()
    assert ExemplarIndex(SOLVED, embed)(new_row("x", "Open-End", Instruction("???"))) == ()


def test_vectors_that_are_no_unit_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^embed .* 2 .* 2; .* 1$"):
        ExemplarIndex(SOLVED, lambda texts: 2 * embed(texts))


def test_the_answer_step_shows_them_from_its_second_attempt_on() -> None:
    step = AnswerStep(Answer(exemplars=2), read_letter, ExemplarIndex(SOLVED, embed, most=2))
    _, requests = drive(step, choice("x", "gout"), "So, the answer is A.")
    asked = [turn["content"] for turn in requests[-1].messages if turn["role"] == "user"]
    assert ["arthritis" in asked[0], "fever" in asked[1], "gout" in asked[2]] == [True] * 3
