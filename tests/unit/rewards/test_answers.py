"""Letters, numbers and grades out of running text; each expectation is what a reader would say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.config.rewards import Scale
from ultramed_rl.evaluation.reading.choice import read_letter
from ultramed_rl.evaluation.reading.text import read_number, read_reference_number
from ultramed_rl.rewards.judge import parse_grade

OPTIONS = {"A": "Aspirin", "B": "Metoprolol", "C": "warfarin 5 mg", "D": "E. coli"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("**C**", "C"),
        ("C.", "C"),
        ("C. Metoprolol", "C"),
        ("C) 5 mg daily", "C"),
        ("B\n\nExplanation: the others raise potassium.", "B"),
        ("The reasons are two.\n\nD", "D"),
        ("So, the answer is D.", "D"),
        ("The best option is D. Heparin. So, the answer is D.", "D"),
        ("the answer is c.", "C"),
        ("The answer is (b) Metoprolol", "B"),
        ("The correct answer is **A**.", "A"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("Final answer - E", "E"),
        ("Answer: option C", "C"),
        ("The correct option is: A) Aspirin", "A"),
        ("The answer is B because A is contraindicated.", "B"),
        (r"Therefore \boxed{C}", "C"),
        (r"Therefore $\boxed{\text{D}}$.", "D"),
        (r"First \boxed{A}, on reflection \boxed{B}", "B"),
        ("The answer is A. But wait. So the answer is B.", "B"),
        ("I would choose (D).", "D"),
        ("I'd go with option C", "C"),
        ("Option C is the most likely.", "C"),
        ("Sepsis is likely. (B) is the best answer.", "B"),
        ("The patient needs fluids, so **B. Fluids** fits.", "B"),
        ("A. Aspirin\nB. Metoprolol\nC. Warfarin\n\nI pick (C).", "C"),
        ("<think>The answer is A.</think>The answer is B.", "B"),
        ("The answer is A. No: the answer is not A. The answer is C.", "C"),
        ("C. Metoprolol\n(A) is wrong, (B) is wrong.", "C"),
        ("", None),
        ("I don't know.", None),
        ("The answer is A or B.", None),
        ("The answer is A and C.", None),
        ("The answer is A/B", None),
        (r"\boxed{A, C}", None),
        ("**A** or **B**", None),
        ("(A) and (C) are both fine", None),
        ("A. Aspirin\nB. Metoprolol", None),
        ("The answer is a beta blocker.", None),
        ("The answer is not A.", None),
        ("The answer is A. Then again, the answer is not A.", None),
        ("The answer is I think unclear", None),
        ("Give vitamin C", None),
        ("Hepatitis B is the best fit.", None),
        ("The answer is E. coli", None),
        ("E. coli is the most likely organism.", None),
        ("**E. coli**", None),
        ("The answer is B12.", None),
        ("The answer is A-fib.", None),
        ("A 45-year-old man needs rest.", None),
        ("**A 45-year-old man**", None),
        ("The answer is U.S. law", None),
    ],
)
def test_letters(answer: str, letter: str | None) -> None:
    assert read_letter(answer) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is C. warfarin 5 mg", "C"),
        ("C. warfarin 5 mg", "C"),
        ("The answer is E.", None),
        ("The answer is D. E. coli", "D"),
        ("(E)", None),
        ("The answer is C and I am sure.", "C"),
        ("The answer is A, B or C.", None),
    ],
)
def test_letters_of_known_options(answer: str, letter: str | None) -> None:
    assert read_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("42", 42.0),
        ("The answer is 42.", 42.0),
        ("The answer is about 4.5 mg.", 4.5),
        ("Answer: **1,250** mL", 1250.0),
        ("So it adds up.\n#### 72", 72.0),
        (r"Dose 3 times 5: \boxed{15}", 15.0),
        (r"\boxed{15 \text{ mg}}", 15.0),
        ("The answer is 1. Corrected: the answer is 2.", 2.0),
        ("It rises by 3.\nThat makes 81 mg.", 81.0),
        ("-3.5", -3.5),
        ("−3.5", -3.5),
        ("5mg", 5.0),
        ("$12.50", 12.5),
        ("45%", 45.0),
        ("1.5e3", 1500.0),
        ("1.5 x 10^3 cells", 1500.0),
        (r"2 × 10^{-2}", 0.02),
        (".5", 0.5),
        ("The answer = 7", 7.0),
        ("7 and again 7.0", 7.0),
        ("", None),
        ("None", None),
        ("Vitamin B12", None),
        ("COVID-19", None),
        ("5-10 mg", None),
        ("5 – 10 mg", None),
        ("The answer is 5 or 10.", None),
        ("The answer is 5 mg to 10 mg.", None),
        ("120/80", None),
        ("at 8:30", None),
        ("the 3rd day", None),
        ("2,5", None),
        ("Give 5 mg 3 times", None),
        ("1 + 1 + 2 = 4 points", 4.0),
        ("CrCl = (140 - 60) x 70 / (72 x 1.2) = 64.8", 64.8),
        ("Na = 140, K = 4", None),
        ("The answer is not 5 but 6.", 6.0),
        ("1e999", None),
    ],
)
def test_numbers(answer: str, number: float | None) -> None:
    found = read_number(answer)
    assert found is None if number is None else found == pytest.approx(number)


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("42", 42.0),
        ("81 mg", 81.0),
        ("≈ 4.5 mmol/L", 4.5),
        ("The answer is 4.5.", 4.5),
        ("Take 2 tablets of aspirin every 4 hours.", None),
        ("Aspirin 81 mg", None),
        ("Rest", None),
    ],
)
def test_reference_numbers(reference: str, number: float | None) -> None:
    assert read_reference_number(reference) == number


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("7", 7.0),
        ("7.5", 7.5),
        ("7/10", 7.0),
        ("**7**", 7.0),
        ("[[7]]", 7.0),
        ("Score: 7", 7.0),
        ("score is 7 out of 10", 7.0),
        ("Right, but wordy.\nGrade: 8", 8.0),
        ("**Grade:** 8/10", 8.0),
        ("Rating (1-10): 6", 6.0),
        (r"Grade: \boxed{9}", 9.0),
        ('{"score": 7, "reason": "clear"}', 7.0),
        ("<score>7</score>", 7.0),
        ("Accuracy score: 9\nStyle score: 5\nGrade: 7", 7.0),
        ("<think>Grade: 2</think>\nGrade: 9", 9.0),
        ("It names 3 drugs.\n10", 10.0),
        ("between 7 and 8", None),
        ("Score: between 7 and 8", None),
        ("7 or 8", None),
        ("Grade: 7 or 8", None),
        ("Grade: 7-8", None),
        ("Grade: 7, 8", None),
        ("Grade: 3\nGrade: 9\nDone.", None),
        ("Grade: 11", None),
        ("Grade: 0", None),
        ("Grade: -5", None),
        ("Grade: 4/5", None),
        ("Grade: 7/100", None),
        ("Grade: seven", None),
        ("It names 3 drugs.", None),
        ("", None),
    ],
)
def test_grades(reply: str, grade: float | None) -> None:
    assert parse_grade(reply, Scale()) == grade


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    letter, number, grade = read_letter(text), read_number(text), parse_grade(text, Scale())
    assert letter is None or len(letter) == 1
    assert number is None or math.isfinite(number)
    assert grade is None or 1 <= grade <= 10


@given(st.sampled_from("ABCDEFGH"), st.sampled_from("ABCDEFGH"))
def test_the_last_sentence_counts(first: str, last: str) -> None:
    assert read_letter(f"At first the answer is {first}. So, the answer is {last}.") == last


@pytest.mark.parametrize("text", ["answer " * 3000, "1," * 9000, "**A" * 5000, "(" * 9000, "\\boxed{" * 3000])
@pytest.mark.timeout(20)
def test_long_nonsense_takes_no_time(text: str) -> None:
    read_letter(text), read_number(text), parse_grade(text, Scale())
