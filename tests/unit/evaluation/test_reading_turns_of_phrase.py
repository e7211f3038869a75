"""Turns of phrase that models use: dashes, hedges, take-backs, odd ones out, refusals, loops, other languages."""

from __future__ import annotations

import pytest

from tests.unit.evaluation.test_reading import SETS, Row
from ultramed_rl.evaluation.reading.choice import read_choice, read_letter

CARE = {"A": "Warm packs", "B": "Oral zinc", "C": "Topical steroid", "D": "Upward rotation"}
CULTURE = {"A": "Proteus mirabilis", "B": "E. faecalis", "C": "B. fragilis", "D": "S. aureus", "E": "C. difficile"}  # fmt: skip
FINDINGS = {"A": "Not indicated", "B": "False negative result", "C": "Incorrect dosing", "D": "No change"}
ASKED = SETS | {"care": CARE, "culture": CULTURE, "findings": FINDINGS}
EXAMPLES = "".join(
    f"Example {n}: it is so.\nThe answer is ({letter}).\n" for n, letter in enumerate("CDDAB", 1)
)

DASHES: list[Row] = [
    ("two", "So the answer is D--upward rotation.", "care", "D"),
    ("two_spaced", "The answer is D -- upward rotation.", "care", "D"),
    ("three", "The answer is D---upward rotation.", "care", "D"),
    ("long", "The answer is D—upward rotation.", "care", "D"),
    ("short", "The answer is D–upward rotation.", "care", "D"),
    ("hyphen", "The answer is D-upward rotation.", "care", "D"),
    ("half_spaced", "Answer: D -Upward rotation", "care", "D"),
    ("alone", "D--upward rotation", "care", "D"),
    ("equals", "The answer is D = upward rotation.", "care", "D"),
    ("bold", "The answer is **D**--upward rotation.", "care", "D"),
    ("brackets", "The answer is (D)--upward rotation.", "care", "D"),
    ("reason", "The answer is D--the scapula turns upward.", "care", "D"),
    ("disagrees", "The answer is D--oral zinc.", "care", "contradiction"),
    ("compound", "The answer is D-dimer.", "care", "none"),
    ("compound_short_dash", "The answer is B–cell lymphoma.", "care", "none"),
    ("around", "The answer--given the above--is D.", "care", "D"),
    ("commas_around", "The answer, given the above, is D.", "care", "D"),
    ("later", "The answer is D: upward rotation--as the trapezius pulls.", "care", "D"),
]
HEDGES: list[Row] = [
    ("likely_to_be", "The answer is most likely to be D.", "care", "D"),
    ("could_only", "The answer could only be D.", "care", "D"),
    ("can_only", "The correct answer can only be (D).", "care", "D"),
    ("must_therefore", "The answer must therefore be D.", "care", "D"),
    ("must_surely", "The answer must surely be D.", "care", "D"),
    ("would_then", "The answer would then be D.", "care", "D"),
    ("have_to", "The answer would have to be D.", "care", "D"),
    ("has_to", "The answer has to be D.", "care", "D"),
    ("turns_out", "The answer turns out to be D.", "care", "D"),
    ("very_likely", "The answer is very likely D.", "care", "D"),
    ("therefore", "The answer is, therefore, D.", "care", "D"),
    ("in_fact", "The answer is in fact D.", "care", "D"),
    ("none_other", "The answer is none other than D.", "care", "D"),
    ("going_to", "The answer is going to be D.", "care", "D"),
    ("likely_text", "The answer is most likely to be topical steroid.", "care", "C"),
    ("best", "The best answer is probably going to be option D.", "care", "D"),
    ("that", "The option that fits best is D.", "care", "D"),
    ("could", "The answer could be D.", "care", "none"),
    ("might", "The answer might be D.", "care", "none"),
    ("unlikely", "The answer is unlikely to be D.", "care", "none"),
    ("less_likely", "The answer is less likely to be D.", "care", "none"),
    ("likely_not", "The answer is most likely not D.", "care", "none"),
    ("likely_not_to_be", "The answer is most likely not to be D.", "care", "none"),
    ("cannot_only", "The answer cannot only be D.", "care", "none"),
    ("could_not", "The answer could not be D.", "care", "none"),
    ("certainly", "The answer is almost certainly D.", "care", "D"),
    ("described", "The answer is best described as D.", "care", "D"),
    ("can_be_only", "The answer can be only D.", "care", "D"),
    ("it_could_only", "It could only be D.", "care", "D"),
    ("it_has_to", "It has to be D.", "care", "D"),
    ("it_could", "It could be D.", "care", "none"),
    ("may", "The answer may be D.", "care", "none"),
    ("only_if", "The answer would only be D if she had fever.", "care", "none"),
    ("not_likely", "The answer is not likely to be D.", "care", "none"),
    ("far_from", "The answer is far from D.", "care", "none"),
]
TAKE_BACKS: list[Row] = [
    ("label", "The answer is B. No, timing did not matter.", "pubmed", "B"),
    ("no_sentence", "The answer is B. No, timing did not matter.", "care", "B"),
    ("no_other", "The answer is B. No other drug is safe.", "care", "B"),
    ("yes_sentence", "The answer is A. Yes, mortality fell.", "pubmed", "A"),
    ("word", "The answer is no. No, timing did not matter.", "pubmed", "B"),
    ("wait_times", "The answer is B. Wait times were long.", "care", "B"),
    ("sorry_to", "The answer is B. Sorry to hear of the pain.", "care", "B"),
    ("no_wait", "The answer is B. No, wait: zinc is toxic.", "care", "none"),
    ("no_wrong", "The answer is B. No, that is wrong.", "care", "none"),
    ("no_not_right", "The answer is B. No, that's not right.", "care", "none"),
    ("wait", "The answer is B. Wait, zinc is toxic.", "care", "none"),
    ("scratch", "The answer is B. Scratch that.", "care", "none"),
    ("sorry", "The answer is B, sorry, not B.", "care", "none"),
    ("hmm", "The answer is B... hmm, zinc is toxic.", "care", "none"),
    ("wait_then", "The answer is B. Wait, zinc is toxic. The answer is C.", "care", "C"),
    ("no_then", "The answer is B. No, the answer is C.", "care", "C"),
    ("label_alone", "B. No, timing did not matter.", "pubmed", "B"),
    ("label_disagrees", "The answer is A. No, timing did not matter.", "pubmed", "contradiction"),
    ("that_is_wrong", "The answer is B. Actually, that is incorrect.", "care", "none"),
    ("wrong_to", "The answer is B. That is wrong to stop.", "care", "B"),
    ("hold_on", "The answer is B. Hold on, it is toxic.", "care", "none"),
    ("correction", "The answer is B. Correction: C.", "care", "C"),
]
DENIALS: list[Row] = [
    ("also", "The answer is (C). The answer is (B) is also incorrect.", "care", "C"),
    ("answer_is_wrong", "The answer is (C). Answer (B) is clearly wrong.", "care", "C"),
    ("would_be", "The answer is (C). The answer is (B) would be incorrect.", "care", "C"),
    ("not_right", "The answer is (C). The answer is (B) is not right either.", "care", "C"),
    ("ruled_out", "The answer is (C). The answer is (B) can be ruled out.", "care", "C"),
    ("both", "The answer is (C). The answer is (A) and (B) are both incorrect.", "care", "C"),
    ("therefore_wrong", "The answer is (B) is therefore wrong.", "care", "none"),
    ("with_text", "The answer is (B) oral zinc is incorrect.", "care", "none"),
    ("doesnt_fit", "The answer is (B) doesn't fit.", "care", "none"),
    ("sorted", "The answer is (A and C are incorrect, B and D are correct).", "care", "contradiction"),
    ("also_correct", "The answer is (C). Option (B) is also correct.", "care", "contradiction"),
    ("too", "The answer is (C). The answer is (B) is correct too.", "care", "contradiction"),
    ("next_sentence", "The answer is C. A is not used there.", "care", "C"),
    ("own_reason", "The answer is (C) because (B) is also incorrect.", "care", "C"),
    ("less_likely", "The answer is (C). The answer is (B) is less likely.", "care", "C"),
    ("never", "The answer is (C). The answer is (B) is never right.", "care", "C"),
    ("three", "The answer is (C). The answer is (A), (B), and (D) are incorrect.", "care", "C"),
    ("three_right", "The answer is (A), (B), and (D).", "care", "contradiction"),
    ("and_one_is", "The answer is (C), and (B) is also incorrect.", "care", "C"),
    ("which_is", "The answer is (C). The answer is (B), which is incorrect.", "care", "C"),
    ("text_not", "The answer is not indicated.", "findings", "A"),
    ("label_not", "The answer is A. Not indicated.", "findings", "A"),
    ("text_incorrect", "The answer is C. Incorrect dosing.", "findings", "C"),
    ("text_no", "The answer is no change.", "findings", "D"),
]
ODD_ONES: list[Row] = [
    ("false_statement", "(D) is correct. The false statement is (A).", "care", "A"),
    ("incorrect_statement", "B, C and D are true. The incorrect statement is A.", "care", "A"),
    ("that_is_false", "(D) is correct. The statement that is false is (A).", "care", "A"),
    ("not_true", "(D) is correct. The statement that is not true is (A).", "care", "A"),
    ("not_true_capitals", "The statement that is NOT true is (A).", "care", "A"),
    ("exception", "(B) is correct. (C) is correct. The exception is (A).", "care", "A"),
    ("is_exception", "(B) is correct. Option A is the exception.", "care", "A"),
    ("is_false_statement", "(D) is correct. (A) is the false statement.", "care", "A"),
    ("odd_one", "(D) is correct. The odd one out is (A).", "care", "A"),
    ("all_except", "All of them are correct except (A).", "care", "A"),
    ("all_true_except", "All of the statements are true, except for A.", "care", "A"),
    ("text", "(D) is correct. The false statement is warm packs.", "care", "A"),
    ("then_answer", "(D) is correct. The false statement is (A). So, the answer is A.", "care", "A"),
    ("answer_first", "The answer is C. The false statement is (A).", "care", "C"),
    ("answer_after", "The false statement is (A). So, the answer is C.", "care", "C"),
    ("wrong_answer", "The wrong answer is B.", "care", "none"),
    ("is_false", "Option A is false.", "care", "none"),
    ("one_of_several", "One false statement is (A).", "care", "none"),
    ("indefinite", "An incorrect statement is A.", "care", "none"),
    ("several", "The false statements are (A) and (B).", "care", "contradiction"),
    ("asked", "Which is the false statement: is it A?", "care", "none"),
    ("false_one", "(D) is correct. So the false one is (A).", "care", "A"),
    ("not_true_one", "(D) is correct. The one that is not true is (A).", "care", "A"),
    ("not_belong", "(D) is correct. The option that does not belong is (A).", "care", "A"),
    ("label", "(D) is correct. False statement: A", "care", "A"),
    ("incorrect_only", "(D) is correct. (A) is incorrect.", "care", "D"),
    ("not_it", "(D) is correct. The false statement is not (B).", "care", "D"),
    ("several_beside", "(D) is correct. The false statements are (A), (B) and (C).", "care", "D"),
    ("about", "(D) is correct. The incorrect statement about zinc is (A).", "care", "A"),
    ("except_first", "All except (A) are correct.", "care", "A"),
    ("feature", "Each is a feature except (A).", "care", "A"),
]
REFUSALS: list[Row] = [
    ("single", "The closest answer would be (C). Yet.\nFinal Answer: no single option fits.", "care", "none"),
    ("no_option", "The answer is C. Final answer: no option is right.", "care", "none"),
    ("no_correct", "The answer is C. Final answer: no correct option.", "care", "none"),
    ("there_is_none", "The answer is C. Final answer: there is no correct option.", "care", "none"),
    ("none", "The answer is C. Final answer: None.", "care", "none"),
    ("none_fits", "The answer is C. Final answer: none fits.", "care", "none"),
    ("not_among", "The answer is C. The right answer is not among the options.", "care", "none"),
    ("not_listed", "The answer is C. The right answer is not listed.", "care", "none"),
    ("undetermined", "The answer is C. Final answer: cannot be determined.", "care", "none"),
    ("insufficient", "The answer is C. Final answer: insufficient information.", "care", "none"),
    ("i_dont_know", "The answer is C. Final answer: I don't know.", "care", "none"),
    ("all_wrong", "The answer is C. Final answer: all options are wrong.", "care", "none"),
    ("box", r"The answer is C. \boxed{\text{None of the above}}", "care", "none"),
    ("option_none", "The answer is none of the above.", "both", "D"),
    ("closest", "The answer is not listed. The closest answer would be (C).", "care", "C"),
    ("none_of_others", "The answer is C. None of the other options fits.", "care", "C"),
    ("no_doubt", "The answer is no doubt C.", "care", "C"),
    ("no", "The answer is C. Final answer: no.", "pubmed", "B"),
    ("not_applicable", "The answer is C. Final Answer: N/A", "care", "none"),
    ("several", "The answer is C. Final answer: multiple options fit.", "care", "none"),
    ("not_provided", "The answer is C. Final Answer: The correct answer is not provided.", "care", "none"),
]
GERMS: list[Row] = [
    ("comma", "The answer is B, E. faecalis.", "culture", "B"),
    ("stop", "The answer is B. E. faecalis.", "culture", "B"),
    ("brackets", "The answer is B (E. faecalis).", "culture", "B"),
    ("colon", "Answer: B: E. faecalis", "culture", "B"),
    ("dash", "The answer is B - E. faecalis.", "culture", "B"),
    ("dashes", "The answer is B--E. faecalis.", "culture", "B"),
    ("own_letter", "The answer is C, B. fragilis.", "culture", "C"),
    ("label", "E, C. difficile", "culture", "E"),
    ("verdict", "Option B, E. faecalis, is the best answer.", "culture", "B"),
    ("name", "The answer is E. faecalis.", "culture", "B"),
    ("reason", "The answer is B, as E. coli is sensitive.", "culture", "B"),
    ("unlisted", "The answer is B, E. cloacae.", "culture", "B"),
    ("disagrees", "The answer is B, C. difficile.", "culture", "contradiction"),
    ("two_letters", "The answer is B, E.", "culture", "contradiction"),
    ("two_names", "The answer is E. faecalis and C. difficile.", "culture", "contradiction"),
    ("unlisted_coli", "The answer is B, E. coli.", "culture", "B"),
    ("box", r"\boxed{B, E. faecalis}", "culture", "B"),
    ("bold", "**B, E. faecalis**", "culture", "B"),
    ("not_another", "The answer is D, S. aureus, not B, E. faecalis.", "culture", "D"),
    ("rarer", "The answer is B. E. coli is rarer.", "culture", "B"),
    ("capital", "The answer is C. Difficile", "care", "none"),
    ("in_a_reason", "The answer is B. It is sensitive to E. coli lysate.", "culture", "B"),
    ("two_labels", "The answer is A. Proteus mirabilis and D. S. aureus.", "culture", "contradiction"),
    ("bullets", "- Ciprofloxacin\n- Fosfomycin", "cystitis", "none"),
]
LOOPS: list[Row] = [
    (
        "sentences",
        "The answer is A. The answer is B. The answer is C. The answer is D.",
        "care",
        "contradiction",
    ),
    ("lines", "Answer: A\nAnswer: B\nAnswer: C\nAnswer: D\n" * 3, "care", "contradiction"),
    ("texts", "".join(f"The answer is {k}. {v}. " for k, v in CARE.items()), "care", "contradiction"),
    (
        "discussed",
        "".join(f"{v} may help. So, the answer is {k}.\n" for k, v in CARE.items()),
        "care",
        "contradiction",
    ),
    (
        "other_order",
        "The answer is C. The answer is A. The answer is D. The answer is B.",
        "care",
        "contradiction",
    ),
    ("words", "The answer is yes. The answer is no. The answer is maybe.", "pubmed", "contradiction"),
    ("to_and_fro", "The answer is A. The answer is B. " * 20, "care", "contradiction"),
    ("periodic", "The answer is A. The answer is D. The answer is B. " * 5, "care", "contradiction"),
    ("ten", "".join(f"The answer is ({k}).\n" for k in "ABCDEFGHIJ"), "ten", "contradiction"),
    (
        "ellipses",
        "".join(f"The answer is ... {k}\n" for k in "BDGHIJACEFGHIJACEFGHIJACE"),
        "ten",
        "contradiction",
    ),
    ("examples", EXAMPLES + "The answer is (C).", "care", "C"),
    (
        "examples_alone",
        "The answer is (C).\n" * 2 + "The answer is (D).\nThe answer is (H).\n" * 1,
        "ten",
        "H",
    ),
    ("settled", "The answer is A. The answer is B. Wait, no. The answer is C.", "care", "C"),
    ("one_letter", "The answer is C. " * 50, "care", "C"),
    ("two", "The answer is A. Then again, the answer is D.", "care", "D"),
    ("boxes", r"\boxed{A} \boxed{B} \boxed{C} \boxed{D}", "care", "contradiction"),
    (
        "chosen",
        "I would choose A. I would choose B. I would choose C. I would choose D.",
        "care",
        "contradiction",
    ),
    (
        "backwards",
        "The answer is D. The answer is C. The answer is B. The answer is A.",
        "care",
        "contradiction",
    ),
    (
        "from_the_middle",
        "The answer is B. The answer is C. The answer is D. The answer is A. The answer is B.",
        "care",
        "contradiction",
    ),
    (
        "verdicts",
        "A is the answer. B is the answer. C is the answer. D is the answer.",
        "care",
        "contradiction",
    ),
    (
        "reasoned",
        "".join(f"Example {n}: it is so. The answer is ({k}).\n" for n, k in enumerate("ABCDA"))
        + "Zinc helps. The answer is (B).",
        "care",
        "B",
    ),
]
LANGUAGES: list[Row] = [
    ("spanish", "La respuesta correcta es la C.", "care", "C"),
    ("spanish_option", "Por lo tanto, la respuesta es la opción (C).", "care", "C"),
    ("spanish_colon", "Respuesta: C", "care", "C"),
    ("german", "Die richtige Antwort ist C.", "care", "C"),
    ("german_reads", "Die Antwort lautet C.", "care", "C"),
    ("german_colon", "**Antwort:** C) Topical steroid", "care", "C"),
    ("french", "La bonne réponse est la C.", "care", "C"),
    ("french_colon", "Réponse : C", "care", "C"),
    ("spanish_not", "La respuesta no es C.", "care", "none"),
    ("german_not", "Die Antwort ist nicht C.", "care", "none"),
    ("french_not", "La réponse n'est pas C.", "care", "none"),
    ("german_two", "Die Antwort ist A oder C.", "care", "contradiction"),
    ("spanish_wrong", "La respuesta incorrecta es C.", "care", "none"),
    ("spanish_colon_after", "La respuesta correcta es: C", "care", "C"),
    ("french_option", "La réponse est l'option C.", "care", "C"),
    ("german_would", "Die Antwort wäre D.", "care", "D"),
]
GROUPS = {
    "dash": DASHES, "hedge": HEDGES, "take_back": TAKE_BACKS, "denial": DENIALS, "odd_one": ODD_ONES,
    "refusal": REFUSALS, "germ": GERMS, "loop": LOOPS, "language": LANGUAGES,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        pytest.param(text, ASKED[options], expected, id=f"{group}-{name}")
        for group, rows in GROUPS.items()
        for name, text, options, expected in rows
    ],
)
def test_turns_of_phrase(text: str, options: dict[str, str], expected: str) -> None:
    reading = read_choice(text, options)
    assert (reading.given or (reading.problem,)) == (expected,)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("So the answer is D--upward rotation.", "D"),
        ("The answer is most likely to be D.", "D"),
        ("The answer is (C). The answer is (B) is also incorrect.", "C"),
        ("(D) is correct. The false statement is (A).", "A"),
        ("The answer is C. Final Answer: no single option fits.", None),
        ("The answer is B, E. faecalis.", "B"),
        ("The answer is A. The answer is B. The answer is C. The answer is D.", None),
        ("The answer is B. No, timing did not matter.", "B"),
    ],
)
def test_they_are_read_without_the_options_texts_too(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter
