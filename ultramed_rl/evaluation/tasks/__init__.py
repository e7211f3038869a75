"""The benchmarks' tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from ultramed_rl.evaluation.items import Task
from ultramed_rl.evaluation.tasks.alpaca_eval import ALPACA_EVAL
from ultramed_rl.evaluation.tasks.bioasq import BIOASQ_FACTOID, BIOASQ_LIST, BIOASQ_YESNO
from ultramed_rl.evaluation.tasks.healthbench import (
    HEALTHBENCH,
    HEALTHBENCH_CONSENSUS,
    HEALTHBENCH_HARD,
)
from ultramed_rl.evaluation.tasks.kqa import KQA
from ultramed_rl.evaluation.tasks.medmcqa import MEDMCQA
from ultramed_rl.evaluation.tasks.medqa import MEDQA
from ultramed_rl.evaluation.tasks.medxpertqa import MEDXPERTQA
from ultramed_rl.evaluation.tasks.mmlu import MMLU_MEDICAL, MMLU_PRO_HEALTH
from ultramed_rl.evaluation.tasks.mt_bench import MT_BENCH
from ultramed_rl.evaluation.tasks.pubmedqa import PUBMEDQA

_CHOICES = (MEDQA, MEDMCQA, PUBMEDQA, MMLU_MEDICAL, MEDXPERTQA, MMLU_PRO_HEALTH, BIOASQ_YESNO)
_HEALTHBENCH = (HEALTHBENCH, HEALTHBENCH_HARD, HEALTHBENCH_CONSENSUS)
_OTHERS = (BIOASQ_FACTOID, BIOASQ_LIST, KQA, *_HEALTHBENCH, ALPACA_EVAL, MT_BENCH)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in (*_CHOICES, *_OTHERS)})


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: no such task; says the closest name.
    """
    if name in TASKS:
        return TASKS[name]
    close = get_close_matches(name, TASKS, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"task {name!r}: no such benchmark; {guess}Name one of {', '.join(TASKS)}")
