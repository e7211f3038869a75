"""What an answer is read as; each expectation is what a careful reader would say, and "none" where he can't."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.reading import read_choice

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
    ("taken_back_at_once", "So the answer is A, I mean C.", "cystitis", "none"),
    ("taken_back_next_line", "The answer is A.\n\nWait, that harms cartilage.", "cystitis", "none"),
    ("another_case_if", "The answer is C. If she had fever, the answer would be D.", "cystitis", "C"),
    ("another_case", "The answer is C. In a man, the correct answer would be A.", "cystitis", "C"),
    ("another_case_is", "The answer is C. For pyelonephritis, the answer is D.", "cystitis", "C"),
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
GROUPS = {
    "letter_alone": LETTER_ALONE, "letter_with_text": LETTER_WITH_TEXT, "sentence": SENTENCES, "box": BOXES,
    "text": TEXTS, "judgement": JUDGEMENTS, "ten": TEN_OPTIONS, "trap": TRAPS, "doubt": DOUBTS, "long": LONG,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        pytest.param(text, SETS[options], expected, id=f"{group}-{name}")
        for group, rows in GROUPS.items()
        for name, text, options, expected in rows
    ],
)
def test_answers_are_read_as_a_careful_reader_would(
    text: str, options: dict[str, str], expected: str
) -> None:
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
