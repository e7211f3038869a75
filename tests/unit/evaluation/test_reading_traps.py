"""Answers that are easily misread: doubts, judgements, letters that are no answer, long and cut texts."""

from __future__ import annotations

import pytest

from tests.unit.evaluation.test_reading import CYSTITIS, Row, cases
from ultramed_rl.evaluation.reading.choice import read_choice

ECHO = "A. Ciprofloxacin\nB. Doxycycline\nC. Nitrofurantoin\nD. Ceftriaxone\n"
LONG_THOUGHT = """Let's work through this step by step.

**Patient summary:** a 24-year-old pregnant woman (G1P0, 22 weeks) with dysuria, no fever, no flank pain.

1. **Ciprofloxacin (A)**: fluoroquinolones harm cartilage. Option A is not appropriate.
2. **Doxycycline (B)**: stains teeth after week 16, so B is wrong.
3. **Nitrofurantoin (C)**: safe in the second trimester.
4. **Ceftriaxone (D)**: parenteral; kept for pyelonephritis. If the answer were D, she would have fever.

Some would choose A because of its spectrum, and hepatitis B or vitamin C play no role here.

"""
PER_OPTION = """A. Ciprofloxacin
Harms cartilage.

B. Doxycycline
Stains teeth.

C. Nitrofurantoin
Is used in pregnancy.

D. Ceftriaxone
Is given by injection.
"""

JUDGEMENTS: list[Row] = [
    ("alone", "Yes.", "pubmed", "A"),
    ("capital", "NO", "pubmed", "B"),
    ("reason", "Maybe, because the groups were small.", "pubmed", "C"),
    ("clause", "Yes, the drug lowers mortality in this trial.", "pubmed", "A"),
    ("line", "No\n\nThe difference was not significant.", "pubmed", "B"),
    ("sentence", "So, the answer is yes", "pubmed", "A"),
    ("bold", "So, the answer is **maybe**.", "pubmed", "C"),
    ("colon", "Answer: no", "pubmed", "B"),
    ("letter", "The answer is A", "pubmed", "A"),
    ("label", "So, the answer is B. no.", "pubmed", "B"),
    ("label_disagrees", "So, the answer is B. yes.", "pubmed", "contradiction"),
    ("to_the_question", "The answer to the research question is: maybe.", "pubmed", "C"),
    ("sentence_with_reason", "The answer is yes, as mortality fell.", "pubmed", "A"),
    ("torn", "Yes and no.", "pubmed", "contradiction"),
    ("torn_but", "Yes, but maybe no.", "pubmed", "none"),
    ("no_longer", "The answer is no longer in doubt.", "pubmed", "none"),
    ("no_difference", "No difference was found between the groups.", "pubmed", "none"),
    ("unclear", "The answer is yes? The answer is unclear.", "pubmed", "none"),
    ("self_talk", "The trial was large.\nNo, wait.\nIt was small.", "pubmed", "none"),
    ("changed", "The answer is no. Wait: mortality fell. The answer is yes.", "pubmed", "A"),
    ("format_echo", "Answer: yes/no/maybe", "pubmed", "contradiction"),
    ("format_in_lead", "Answer (yes/no/maybe): yes", "pubmed", "A"),
    ("options_behind_lead", "Answer: A. yes\nB. no\nC. maybe", "pubmed", "contradiction"),
    ("maybe_not", "Answer: Maybe not", "pubmed", "none"),
    ("long_dash", "Yes—mortality fell.", "pubmed", "A"),
    ("therefore", "Mortality did not change. Therefore, no.", "pubmed", "B"),
]
TEN_OPTIONS: list[Row] = [
    ("last", "The answer is (J).", "ten", "J"),
    ("ninth", "The answer is I.", "ten", "I"),
    ("ninth_brackets", "The answer is (I)", "ten", "I"),
    ("ninth_label", "The answer is I. Meloxicam", "ten", "I"),
    ("ninth_line", "I. Meloxicam", "ten", "I"),
    ("ninth_alone", "I", "ten", "I"),
    ("ninth_box", r"\boxed{I}", "ten", "I"),
    ("pronoun", "The answer is I think unclear.", "ten", "none"),
    ("pronoun_believes", "Answer: I believe more data are needed", "ten", "none"),
    ("pronoun_then_letter", "Answer: I would choose H", "ten", "H"),
    ("pronoun_joined", "The answer is G and I am sure.", "ten", "G"),
    ("outline", "I. Meloxicam\nselective\nII. Others\nnot selective", "ten", "none"),
    ("type_one_error", "The answer is type I error.", "ten", "none"),
    ("outside", "The answer is K.", "ten", "none"),
]
TRAPS: list[Row] = [
    ("vitamin", "Give vitamin C.", "cystitis", "none"),
    ("vitamin_stated", "The answer is vitamin C.", "cystitis", "none"),
    ("vitamin_chosen", "I would choose vitamin C.", "cystitis", "none"),
    ("vitamin_bold", "She lacks vitamin **C**.", "cystitis", "none"),
    ("hepatitis", "The answer is hepatitis B.", "cystitis", "none"),
    ("hepatitis_verdict", "Hepatitis B is the best answer.", "cystitis", "none"),
    ("hepatitis_option", "The answer is hepatitis B virus.", "germs", "A"),
    ("e_coli", "The answer is E. coli.", "germs", "B"),
    ("e_coli_capital", "The answer is E. Coli", "germs", "B"),
    ("e_coli_elsewhere", "The answer is E. coli.", "cystitis", "none"),
    ("e_coli_in_prose", "E. coli is the most likely organism.", "germs", "none"),
    ("e_coli_bold", "This is usually due to **E. coli**.", "germs", "none"),
    ("c_diff", "The answer is C. diff", "cystitis", "none"),
    ("group_a", "The answer is group A streptococcus.", "germs", "D"),
    ("group_a_elsewhere", "The answer is group A streptococcus.", "cystitis", "none"),
    ("b_cells", "The answer is B cell lymphoma.", "cystitis", "none"),
    ("b_lymphocytes", "I would choose B lymphocytes.", "cystitis", "none"),
    ("b12", "The answer is B12.", "cystitis", "none"),
    ("c_reactive", "The answer is C-reactive protein.", "cystitis", "none"),
    ("d_dimer", "Answer: D-dimer", "cystitis", "none"),
    ("article", "The answer is a beta blocker.", "cystitis", "none"),
    ("article_capital", "Answer: A beta blocker", "cystitis", "none"),
    ("vignette", "A 24-year-old woman needs treatment.", "cystitis", "none"),
    ("celsius", "Her temperature is 37 °C", "cystitis", "none"),
    ("celsius_sign", "Her temperature is 37 ℃", "cystitis", "none"),
    ("step", "Step A is to take a culture.", "cystitis", "none"),
    ("genotype", "The genotype is (A).", "cystitis", "none"),
]
DOUBTS: list[Row] = [
    ("not", "The answer is not B.", "cystitis", "none"),
    ("cannot", "The answer cannot be B.", "cystitis", "none"),
    ("not_chosen", "I would not choose B.", "cystitis", "none"),
    ("if", "If the answer is B, she would have fever.", "cystitis", "none"),
    ("wrong", "The wrong answer is B.", "cystitis", "none"),
    ("another", "Another option is B.", "cystitis", "none"),
    ("asked", "Is the answer B?", "cystitis", "none"),
    ("asked_is", "The answer is B?", "cystitis", "none"),
    ("some", "Some would think the answer is B.", "cystitis", "none"),
    ("not_sure", "I am not sure whether the answer is B.", "cystitis", "none"),
    ("incorrect", "Option B is incorrect.", "cystitis", "none"),
    ("incorrect_label", "B) Doxycycline: incorrect.", "cystitis", "none"),
    ("not_the_best", "Option B is not the best answer.", "cystitis", "none"),
    ("isnt", "Option B isn't correct.", "cystitis", "none"),
    ("stated_wrong", "Answer: B is incorrect.", "cystitis", "none"),
    ("excluded", "We can exclude option B.", "cystitis", "none"),
    ("considered", "Let us first consider option B.", "cystitis", "none"),
    ("false_that", "It is wrong that the answer is B.", "cystitis", "none"),
    ("taken_back", "The answer is B. Wait, the answer isn't B.", "cystitis", "none"),
    ("corrected", "The answer is A. No, quinolones harm cartilage. The answer is C.", "cystitis", "C"),
    ("corrected_verdict", "Option A is correct. Wait, no. Option C is correct.", "cystitis", "C"),
    ("corrected_text", "The answer is A. Actually, the answer is nitrofurantoin.", "cystitis", "C"),
    ("rejected_in_brackets", "Answer: C (wrong)", "cystitis", "none"),
    ("text_rejected_in_brackets", "Answer: Ciprofloxacin (wrong)", "cystitis", "none"),
    ("others_rejected", "Correct answer: C. Incorrect: A, B, D", "cystitis", "C"),
    ("taken_back_at_once", "So the answer is A, I mean C.", "cystitis", "C"),
    ("taken_back_next_line", "The answer is A.\n\nWait, that harms cartilage.", "cystitis", "none"),
    ("another_case_if", "The answer is C. If she had fever, the answer would be D.", "cystitis", "C"),
    ("another_case", "The answer is C. In a man, the correct answer would be A.", "cystitis", "C"),
    ("another_case_is", "The answer is C. For pyelonephritis, the answer is D.", "cystitis", "contradiction"),
    ("corrected_by_would", "The answer is A. On reflection, the answer would be C.", "cystitis", "C"),
    ("corrected_by_case", "The answer is A. Since she had no fever, the answer is C.", "cystitis", "C"),
    ("conditional_alone", "The answer would be C.", "cystitis", "C"),
    ("isnt_but_is", "The correct answer isn't A; it's C", "cystitis", "C"),
    ("recommended", "A good choice is ciprofloxacin.", "cystitis", "none"),
    ("drug_of_choice", "The drug of choice is ciprofloxacin.", "cystitis", "none"),
    ("described", "A) Ciprofloxacin is a fluoroquinolone. It is a good drug.", "cystitis", "none"),
]
LONG: list[Row] = [
    ("paper", LONG_THOUGHT + "So, the answer is C.", "cystitis", "C"),
    ("text", LONG_THOUGHT + "So, the answer is Nitrofurantoin.", "cystitis", "C"),
    ("heading", LONG_THOUGHT + "### Final Answer\n\n**C. Nitrofurantoin**", "cystitis", "C"),
    ("box", LONG_THOUGHT + "$$\\boxed{C}$$", "cystitis", "C"),
    ("no_answer", LONG_THOUGHT, "cystitis", "none"),
    ("per_option", PER_OPTION, "cystitis", "contradiction"),
    ("per_option_and_answer", PER_OPTION + "\nSo, the answer is C.", "cystitis", "C"),
    ("echo", ECHO, "cystitis", "none"),
    ("echo_then_answer", ECHO + "\nSo, the answer is C.", "cystitis", "C"),
    ("echo_then_label", ECHO + "\nC. Nitrofurantoin", "cystitis", "C"),
    ("echo_then_first", ECHO + "\nA. Ciprofloxacin", "cystitis", "A"),
    ("echo_then_text", "The options are:\n" + ECHO + "\nNitrofurantoin", "cystitis", "C"),
    ("answer_then_echo", "The answer is C.\n\nOptions:\n" + ECHO, "cystitis", "C"),
    (
        "echo_in_line",
        "Options: A. Ciprofloxacin B. Doxycycline C. Nitrofurantoin. Answer: C",
        "cystitis",
        "C",
    ),
    ("thought", "<think>\nThe answer is A.\n</think>\n\nThe answer is C.", "cystitis", "C"),
    ("empty_thought", "<think>\n\n</think>\n\nC", "cystitis", "C"),
    ("thought_without_start", "Perhaps the answer is A.\n</think>\nThe answer is C.", "cystitis", "C"),
    ("thought_without_end", "<think>\nThe answer is A, I am sure: the answer is A.", "cystitis", "none"),
    ("thought_only", "<think>The answer is A.</think>", "cystitis", "none"),
    ("loop", "So, the answer is C. " * 300, "cystitis", "C"),
    ("loop_of_words", "She should take the drug. " * 300, "cystitis", "none"),
    (
        "next_question",
        "So, the answer is C.\n\nQuestion: A man has gout.\n" + ECHO + "So, the answer is A.",
        "cystitis",
        "C",
    ),
    ("next_turn", "C<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\nThe answer is A.", "cystitis", "C"),
    ("question_echo", "Question: Which drug is safe?\n" + ECHO + "Answer: C", "cystitis", "C"),
    ("empty", "", "cystitis", "none"),
    ("space", " \n\t \n", "cystitis", "none"),
    ("punctuation", "...", "cystitis", "none"),
    (
        "per_option_bold",
        "**A. Ciprofloxacin** harms.\n\n**C. Nitrofurantoin** is safe.",
        "cystitis",
        "contradiction",
    ),
    ("next_question_heading", "C\n\n## Question 2\nThe answer is A", "cystitis", "C"),
    ("next_instruction", "The answer is C\n\n### Instruction:\nAnd gout?\nThe answer is A", "cystitis", "C"),
]
GROUPS = {"judgement": JUDGEMENTS, "ten": TEN_OPTIONS, "trap": TRAPS, "doubt": DOUBTS, "long": LONG}


@pytest.mark.parametrize(("text", "options", "expected"), cases(GROUPS))
def test_misleading_answers_are_not_misread(text: str, options: dict[str, str], expected: str) -> None:
    reading = read_choice(text, options)
    assert (reading.given or (reading.problem,)) == (expected,)
    assert bool(reading.given) != bool(reading.problem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She is pregnant, so", "truncated"),
        ("", "truncated"),
        ("<think>The answer is A", "truncated"),
        ("So, the answer is C. It is safe and", "C"),
        ("C\n\nExplanation: quinolones", "C"),
        ("A. Ciprofloxacin\nHarms cartilage, which", "truncated"),  # the first of all options, perhaps
        ("Option A fits the spectrum, and (A)", "truncated"),
        ("The answer is A or C, as", "contradiction"),
        ("The answer is F, as", "none"),
        ("The answer is A. The answer is B. " * 50, "contradiction"),  # a loop, cut anywhere
    ],
)
def test_a_text_that_was_cut_off_decides_by_what_it_states_only(text: str, expected: str) -> None:
    reading = read_choice(text, CYSTITIS, truncated=True)
    assert (reading.given or (reading.problem,)) == (expected,)
