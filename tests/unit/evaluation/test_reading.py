"""What an answer is read as; each expectation is what a careful reader would say, "none" where he can't."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.reading.choice import read_choice

CYSTITIS = {"A": "Ciprofloxacin", "B": "Doxycycline", "C": "Nitrofurantoin", "D": "Ceftriaxone"}
PUBMED = {"A": "yes", "B": "no", "C": "maybe"}
STENT = {
    "A": "Aspirin",
    "B": "Aspirin and clopidogrel",
    "C": "Clopidogrel",
    "D": "Aspirin, clopidogrel and apixaban",
}
GERMS = {"A": "Hepatitis B virus", "B": "E. coli", "C": "Clostridioides difficile", "D": "Group A streptococcus",
         "E": "Klebsiella pneumoniae"}  # fmt: skip
TEN = dict(zip("ABCDEFGHIJ", ["Aspirin", "Ibuprofen", "Naproxen", "Celecoxib", "Ketorolac", "Diclofenac",
                              "Indomethacin", "Piroxicam", "Meloxicam", "Etodolac"], strict=True))  # fmt: skip
BOTH = {"A": "Smoking", "B": "Obesity", "C": "Both A and B", "D": "None of the above"}
DOSES = {"A": "5 mg", "B": "5.5 mg", "C": "15 mg", "D": "5"}
BLOOD = {"A": "AB", "B": "A", "C": "B", "D": "O"}
TWINS = {"A": "Rest", "B": "Surgery", "C": "Rest", "D": "No treatment"}
SETS = {"cystitis": CYSTITIS, "pubmed": PUBMED, "stent": STENT, "germs": GERMS, "ten": TEN, "both": BOTH,
        "doses": DOSES, "blood": BLOOD, "twins": TWINS}  # fmt: skip

Row = tuple[str, str, str, str]

LETTER_ALONE: list[Row] = [
    ("bare", "C", "cystitis", "C"),
    ("bare_small", "c", "cystitis", "C"),
    ("bare_stop", "C.", "cystitis", "C"),
    ("brackets", "(C)", "cystitis", "C"),
    ("square_brackets", "[C]", "cystitis", "C"),
    ("bold", "**C**", "cystitis", "C"),
    ("code", "`C`", "cystitis", "C"),
    ("leading_space", "   \n\n C\n\n", "cystitis", "C"),
    ("bullet", "- C", "cystitis", "C"),
    ("dollar", "$C$", "cystitis", "C"),
    ("end_token", "C<|eot_id|>", "cystitis", "C"),
    ("sentence_end_token", "C</s>", "cystitis", "C"),
    ("fullwidth", "Ｃ", "cystitis", "C"),
    ("last_line", "She is pregnant and afebrile.\n\nC", "cystitis", "C"),
    ("first_line", "C\n\nExplanation: quinolones harm cartilage.", "cystitis", "C"),
    ("repeated_lines", "C\nC\nC\nC", "cystitis", "C"),
    ("outside", "F", "cystitis", "none"),
    ("two", "A and C", "cystitis", "contradiction"),
    ("two_with_comma", "A, C", "cystitis", "contradiction"),
    ("two_lines", "A\nC", "cystitis", "contradiction"),
    ("glued", "AC", "cystitis", "none"),
]
LETTER_WITH_TEXT: list[Row] = [
    ("stop", "C. Nitrofurantoin", "cystitis", "C"),
    ("bracket", "C) Nitrofurantoin", "cystitis", "C"),
    ("brackets", "(C) Nitrofurantoin", "cystitis", "C"),
    ("colon", "C: Nitrofurantoin", "cystitis", "C"),
    ("dash", "C - Nitrofurantoin", "cystitis", "C"),
    ("long_dash", "C – Nitrofurantoin", "cystitis", "C"),
    ("text_in_brackets", "C (nitrofurantoin)", "cystitis", "C"),
    ("glued", "C.Nitrofurantoin", "cystitis", "C"),
    ("bold", "**C. Nitrofurantoin**", "cystitis", "C"),
    ("bold_letter", "**C.** Nitrofurantoin", "cystitis", "C"),
    ("heading", "### C. Nitrofurantoin", "cystitis", "C"),
    ("with_dose", "C. Nitrofurantoin 100 mg for 5 days", "cystitis", "C"),
    ("and_reasons", "C. Nitrofurantoin\n\n(A) is wrong, (B) is wrong.", "cystitis", "C"),
    ("small_text", "b. e. coli", "germs", "B"),
    ("disagrees", "B. Nitrofurantoin", "cystitis", "contradiction"),
    ("sentence_disagrees", "The answer is B. Nitrofurantoin.", "cystitis", "contradiction"),
    ("brackets_disagree", "The answer is nitrofurantoin (B).", "cystitis", "contradiction"),
    ("agrees_in_brackets", "The answer is nitrofurantoin (C).", "cystitis", "C"),
    ("agrees_with_option", "The answer is Nitrofurantoin, option C.", "cystitis", "C"),
    ("shorter_text_of_another", "The answer is B. Aspirin", "stent", "contradiction"),
    ("longest_text", "The answer is B. Aspirin and clopidogrel.", "stent", "B"),
    ("comma_in_text", "D. Aspirin, clopidogrel and apixaban", "stent", "D"),
    ("next_sentence_names_another", "The answer is B. Aspirin would not be enough.", "stent", "B"),
    ("letters_in_text", "The answer is C. Both A and B", "both", "C"),
    ("rejected", "A. Ciprofloxacin is contraindicated in pregnancy.", "cystitis", "none"),
    ("heading_of_a_plan", "B. Background: she is pregnant", "cystitis", "none"),
]
SENTENCES: list[Row] = [
    ("paper", "Nitrofurantoin is safe. So, the answer is C.", "cystitis", "C"),
    ("brackets", "The answer is (C)", "cystitis", "C"),
    ("small", "answer: c", "cystitis", "C"),
    ("final", "Final answer: C", "cystitis", "C"),
    ("final_without_colon", "Final answer C", "cystitis", "C"),
    ("with_text", "Answer: C) text", "cystitis", "C"),
    ("bold_lead", "**Answer:** C", "cystitis", "C"),
    ("bold_all", "**Answer: C. Nitrofurantoin**", "cystitis", "C"),
    ("bold_letter", "The correct answer is **C**.", "cystitis", "C"),
    ("bold_with_text", "The best answer is **C) Nitrofurantoin**, since she is pregnant.", "cystitis", "C"),
    ("heading", "## Answer\n\nC. Nitrofurantoin", "cystitis", "C"),
    ("heading_colon", "### Final Answer:\n\n**C**", "cystitis", "C"),
    ("next_line", "The correct answer is:\n\n(C) Nitrofurantoin", "cystitis", "C"),
    ("quotes", 'The answer is "C".', "cystitis", "C"),
    ("curly_quotes", "The answer is “C”.", "cystitis", "C"),
    ("option", "The answer is option C.", "cystitis", "C"),
    ("choice_letter", "Correct choice: C", "cystitis", "C"),
    ("correct_option_is", "Thus, the correct option is C because it is safe.", "cystitis", "C"),
    ("to_the_question", "The answer to the question is C.", "cystitis", "C"),
    ("most_likely", "The answer is most likely C.", "cystitis", "C"),
    ("should_be", "The answer should be C, given her pregnancy.", "cystitis", "C"),
    ("reason", "The answer is C because A is contraindicated.", "cystitis", "C"),
    ("small_reason", "the answer is c because a is contraindicated", "cystitis", "C"),
    ("not_another", "The answer is C, not B.", "cystitis", "C"),
    ("other_is_wrong", "The answer is C, A is wrong.", "cystitis", "C"),
    ("option_is_correct", "Option C is correct", "cystitis", "C"),
    ("option_with_text_is_correct", "Option C (nitrofurantoin) is the correct answer.", "cystitis", "C"),
    (
        "option_comma_text_is_correct",
        "Therefore, option C, nitrofurantoin, is the best choice.",
        "cystitis",
        "C",
    ),
    ("label_is_correct", "C. Nitrofurantoin is the correct answer.", "cystitis", "C"),
    ("text_is_correct", "Nitrofurantoin is the correct answer.", "cystitis", "C"),
    ("joined_text_is_correct", "Aspirin and clopidogrel is the correct answer.", "stent", "B"),
    ("one_wrong_one_right", "Option A is incorrect and option C is correct.", "cystitis", "C"),
    ("choose", "I would choose C", "cystitis", "C"),
    ("go_with", "I'd go with option C here.", "cystitis", "C"),
    ("chinese", "因此，正确答案是 C。", "cystitis", "C"),
    ("chinese_colon", "答案：C", "cystitis", "C"),
    ("chinese_brackets", "答案：【C】", "cystitis", "C"),
    ("chinese_choose", "故选C。", "cystitis", "C"),
    ("chinese_not", "答案不是C", "cystitis", "none"),
    ("json", '{"answer": "C"}', "cystitis", "C"),
    ("json_with_thought", '{"step_by_step_thinking": "A is out.", "answer_choice": "C"}', "cystitis", "C"),
    ("json_text", '```json\n{"answer": "Nitrofurantoin"}\n```', "cystitis", "C"),
    ("json_two", '{"answer": ["A", "C"]}', "cystitis", "contradiction"),
    ("tag", "<answer>C</answer>", "cystitis", "C"),
    ("tag_after_thought", "<think>A?</think>\n<answer> C. Nitrofurantoin </answer>", "cystitis", "C"),
    ("html_bold", "The answer is <b>C</b>.", "cystitis", "C"),
    ("elimination", "A, B and D are wrong, so C", "cystitis", "C"),
    ("elimination_leaves", "Ruling out A, B and D leaves C.", "cystitis", "C"),
    ("elimination_only", "By exclusion, only option C remains.", "cystitis", "C"),
    ("not_but", "The answer is not A but C.", "cystitis", "C"),
    ("closing_mention", "She is pregnant. The safest drug corresponds to option C.", "cystitis", "C"),
    ("outside", "The answer is F.", "cystitis", "none"),
    ("outside_at_last", "The answer is C. Sorry, the answer is F.", "cystitis", "none"),
    ("template_echo", "The answer is C. (Format: So, the answer is X.)", "cystitis", "C"),
    ("either", "The answer is either A or C.", "cystitis", "contradiction"),
    ("slash", "The answer is A/C.", "cystitis", "contradiction"),
    ("both_texts", "The answer is ciprofloxacin and nitrofurantoin.", "cystitis", "contradiction"),
    ("both_correct", "Both A and C are correct.", "cystitis", "contradiction"),
    ("two_verdicts", "Option A is correct. Option C is correct.", "cystitis", "contradiction"),
    ("labels_joined", "The answer is A. Ciprofloxacin and C. Nitrofurantoin.", "cystitis", "contradiction"),
    ("no_answer", "I cannot determine the answer without the culture.", "cystitis", "none"),
    (
        "labels_in_brackets",
        "The answer is A (Ciprofloxacin) and C (Nitrofurantoin).",
        "cystitis",
        "contradiction",
    ),
    ("letter_or_text", "The answer is C or ceftriaxone.", "cystitis", "contradiction"),
    (
        "list_of_options",
        "Select the best answer: A. Ciprofloxacin B. Doxycycline",
        "cystitis",
        "contradiction",
    ),
    ("format_echo", '{"answer": "A|B|C|D"}', "cystitis", "contradiction"),
    ("germ_behind_text", "The answer is C. Nitrofurantoin covers E. coli.", "cystitis", "C"),
    ("over_another", "We choose C over A.", "cystitis", "C"),
    ("therefore_inside", "The answer, therefore, is C.", "cystitis", "C"),
    ("arrow", "Answer -> C", "cystitis", "C"),
    ("answers_are", "The correct answers are A and C.", "cystitis", "contradiction"),
    ("chinese_option", "答案是C选项", "cystitis", "C"),
]
BOXES: list[Row] = [
    ("plain", r"\boxed{C}", "cystitis", "C"),
    ("text", r"The answer is $\boxed{\text{C}}$.", "cystitis", "C"),
    ("label", r"$\boxed{C. Nitrofurantoin}$", "cystitis", "C"),
    ("nested_fonts", r"\[ \boxed{\mathbf{\text{(C)}}} \]", "cystitis", "C"),
    ("option", r"\boxed{\text{Nitrofurantoin}}", "cystitis", "C"),
    ("last", r"\boxed{A}. On reflection, \boxed{C}", "cystitis", "C"),
    ("sentence_after", r"\boxed{A} Wait, that harms cartilage. The answer is C.", "cystitis", "C"),
    ("number_before", r"Clearance is \boxed{15}. Final answer: \boxed{C}", "cystitis", "C"),
    ("two", r"\boxed{A, C}", "cystitis", "contradiction"),
    ("disagrees", r"\boxed{B. Nitrofurantoin}", "cystitis", "contradiction"),
    ("outside", r"\boxed{F}", "cystitis", "none"),
    ("other_text", r"\boxed{Fosfomycin}", "cystitis", "none"),
    ("yes", r"\boxed{yes}", "pubmed", "A"),
]
TEXTS: list[Row] = [
    ("alone", "Nitrofurantoin", "cystitis", "C"),
    ("alone_small", "nitrofurantoin.", "cystitis", "C"),
    ("alone_bold", "**Nitrofurantoin**\n\nIt is safe in pregnancy.", "cystitis", "C"),
    ("sentence", "The answer is nitrofurantoin", "cystitis", "C"),
    ("paper", "So, the answer is Nitrofurantoin.", "cystitis", "C"),
    ("article", "The answer is the aspirin and clopidogrel.", "stent", "B"),
    ("reason", "The answer is nitrofurantoin, because she is pregnant.", "cystitis", "C"),
    ("longest", "So, the answer is aspirin and clopidogrel.", "stent", "B"),
    ("shorter", "So, the answer is aspirin.", "stent", "A"),
    ("more_than_any", "So, the answer is aspirin and ticagrelor.", "stent", "none"),
    ("list_more_than_any", "So, the answer is clopidogrel, ticagrelor.", "stent", "none"),
    ("other_form", "So, the answer is aspirin-free therapy.", "stent", "none"),
    ("swapped", "So, the answer is clopidogrel and aspirin.", "stent", "contradiction"),
    ("equal_texts", "The answer is rest.", "twins", "contradiction"),
    ("equal_texts_with_letter", "The answer is C. Rest", "twins", "C"),
    ("number", "The answer is 5.5 mg.", "doses", "B"),
    ("number_unit", "The answer is 5 mg.", "doses", "A"),
    ("number_alone", "The answer is 5.", "doses", "D"),
    ("number_longer", "The answer is 5 g.", "doses", "none"),
    ("number_range", "The answer is 5-10 mg.", "doses", "none"),
    ("number_spaced_range", "The answer is 5 - 10 mg.", "doses", "none"),
    ("number_decimal", "The answer is 5.25 mg.", "doses", "none"),
    ("letter_options_go_by_letter", "The answer is A.", "blood", "A"),
    ("letters_option", "The answer is AB.", "blood", "A"),
    ("option_of_letters", "The answer is both A and B.", "both", "C"),
    ("none_of_the_above", "The answer is none of the above.", "both", "D"),
    ("refused", "The answer is A. Then again: the answer is none of the options.", "cystitis", "none"),
    ("unlisted", "The answer is fosfomycin.", "cystitis", "none"),
    ("in_prose", "Nitrofurantoin is often given in pregnancy.", "cystitis", "none"),
    ("list_of_the_avoided", "Avoid in pregnancy:\n- Ciprofloxacin", "cystitis", "none"),
    ("negated_text", "The answer is not nitrofurantoin.", "cystitis", "none"),
]
GROUPS = {
    "letter_alone": LETTER_ALONE, "letter_with_text": LETTER_WITH_TEXT, "sentence": SENTENCES, "box": BOXES,
    "text": TEXTS,
}  # fmt: skip


def cases(groups: dict[str, list[Row]]) -> list[object]:
    """A test's parameters, with the group and the row's name as its id."""
    return [
        pytest.param(text, SETS[options], expected, id=f"{group}-{name}")
        for group, rows in groups.items()
        for name, text, options, expected in rows
    ]


@pytest.mark.parametrize(("text", "options", "expected"), cases(GROUPS))
def test_answers_are_read_as_a_careful_reader_would(
    text: str, options: dict[str, str], expected: str
) -> None:
    reading = read_choice(text, options)
    assert (reading.given or (reading.problem,)) == (expected,)
    assert bool(reading.given) != bool(reading.problem)


@given(st.text(max_size=300), st.sampled_from(sorted(SETS)), st.booleans())
def test_any_text_gives_an_option_or_a_problem(text: str, options: str, truncated: bool) -> None:
    reading = read_choice(text, SETS[options], truncated=truncated)
    assert bool(reading.given) != bool(reading.problem)
    assert set(reading.given) <= set(SETS[options]) and len(reading.given) <= 1


_PIECES = st.sampled_from(
    ["The answer is ", "Answer: ", "not ", "C", "B", "A. ", "(D)", "I ", " and ", ", ", "\n", "**", "\\boxed{", "}",
     "Nitrofurantoin", "ciprofloxacin", " is correct", "Option ", "so ", "<think>", "</think>", "?", ". ", "if "]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=30).map("".join))
def test_fragments_of_answers_in_any_order_give_an_option_or_a_problem(text: str) -> None:
    reading = read_choice(text, TEN)
    assert bool(reading.given) != bool(reading.problem) and set(reading.given) <= set(TEN)


_PROSE = st.text(string.ascii_lowercase + "      \n", max_size=300).filter(
    lambda text: "question" not in text
)


@given(_PROSE, st.sampled_from("ABCD"), st.booleans())
def test_the_sentence_that_is_asked_for_is_read_after_any_prose(
    prose: str, letter: str, by_text: bool
) -> None:
    said = CYSTITIS[letter] if by_text else letter
    assert read_choice(f"{prose}.\nSo, the answer is {said}.", CYSTITIS).given == (letter,)


@given(
    st.sampled_from("ABCD"), st.sampled_from([str.lower, str.upper, str.title]), st.text(" \n", max_size=5)
)
def test_case_and_space_change_nothing(letter: str, case: object, space: str) -> None:
    assert callable(case)
    for said in (
        letter,
        f"({letter})",
        CYSTITIS[letter],
        f"{letter}. {CYSTITIS[letter]}",
        f"the answer is {letter}",
    ):
        assert read_choice(space + case(said) + space, CYSTITIS).given == (letter,)


@pytest.mark.parametrize(
    "unit",
    ["word ", "C\n", "answer is ", "The answer is C, ", "Option A is correct. ", "((((*", "\n", " ", "**A", "\\boxed{",
     "\\text{", "<think>", "<answer>", "not A but ", "A. ", "- ", "Q:\n", "aspirin and ", "is correct ", "answer to a "],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_200_kb_of_anything_are_read_in_one_pass(unit: str) -> None:
    reading = read_choice(unit * (200_000 // len(unit)), CYSTITIS)
    assert bool(reading.given) != bool(reading.problem)
