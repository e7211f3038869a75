"""lm-evaluation-harness on local data with its own tasks: the peer of `agreement.py` and `evaluation.py`.

    items --> JSON lines in the columns of a task of lm-eval --> that task's YAML, its data replaced --> simple_evaluate

Prompts and endings stay lm-eval's. Two things are set aside: mmlu's description, which names a subject that the
local data lacks, and the four options that the tasks know: further ones go before "Answer:" in the same form.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ultramed_rl.evaluation.items import Item

YAMLS = {
    "medmcqa": "medmcqa/medmcqa.yaml",
    "medqa_4options": "medqa/medqa.yaml",
    "pubmedqa": "pubmedqa/pubmedqa.yaml",
    "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
}
_OWN = 4  # options that the lettered tasks write by themselves
_END = "Answer:"
# What names a task's data, or where it stands among lm-eval's tasks.
_REPLACED = (
    "dataset_name",
    "training_split",
    "validation_split",
    "fewshot_split",
    "fewshot_config",
    "tag",
    "task_alias",
)


@dataclass(frozen=True)
class PeerResult:
    """What lm-eval found, item by item in the order of the docs.

    Args:
        predictions: place of the likeliest ending.
        right: lm-eval's `acc` of each item.
        seconds: of the evaluation, the model loaded before.
        loglikelihoods: of each ending, summed over its tokens.
    """

    predictions: list[int]
    right: list[bool]
    accuracy: float
    seconds: float
    loglikelihoods: list[list[float]]


# -- the data ----------------------------------------------------------------------------------------------


def write_docs(task_name: str, items: Iterable[Item], path: Path) -> Path:
    """Items as the rows that a task of lm-eval reads, in JSON lines; returns `path`.

    Raises:
        ValueError: a task that isn't one of `YAMLS`, or an item with options that it cannot ask.
    """
    form = _row_form(task_name)
    lines = []
    for item in items:
        row = form(item)
        if task_name != "pubmedqa":
            if len(item.options) < _OWN:
                raise ValueError(
                    f"{item.item_id}: {len(item.options)} options; {task_name} asks {_OWN} or more"
                )
            row["further"] = list(item.options[_OWN:])
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _row_form(task_name: str) -> Callable[[Item], dict[str, Any]]:
    forms = {
        "medmcqa": _medmcqa_row,
        "medqa_4options": _medqa_row,
        "pubmedqa": _pubmedqa_row,
        "mmlu_anatomy": _mmlu_row,
    }
    if task_name not in forms:
        raise ValueError(f"task {task_name!r}: must be one of {', '.join(YAMLS)}")
    return forms[task_name]


def _key(item: Item) -> int:
    return ascii_uppercase.index(item.answer)


def _medmcqa_row(item: Item) -> dict[str, Any]:
    options = dict(zip(("opa", "opb", "opc", "opd"), item.options, strict=False))
    return {"question": item.question, **options, "cop": _key(item)}


def _medqa_row(item: Item) -> dict[str, Any]:
    endings = {f"ending{place}": text for place, text in enumerate(item.options[:_OWN])}
    return {"sent1": item.question, **endings, "label": _key(item)}


def _pubmedqa_row(item: Item) -> dict[str, Any]:
    if item.options != ("yes", "no", "maybe"):
        raise ValueError(f"{item.item_id}: options {item.options}; pubmedqa asks yes, no, maybe")
    return {
        "QUESTION": item.question,
        "CONTEXTS": [item.context],
        "final_decision": item.options[_key(item)],
    }


def _mmlu_row(item: Item) -> dict[str, Any]:
    return {"question": item.question, "choices": list(item.options[:_OWN]), "answer": _key(item)}


# -- the task ----------------------------------------------------------------------------------------------


def peer_task(task_name: str, docs_path: Path) -> dict[str, Any]:
    """lm-eval's own configuration of a task, its `!function` entries resolved, on the rows of `write_docs`."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / YAMLS[task_name])
    for key in _REPLACED:
        config.pop(key, None)
    config |= {
        "task": f"{task_name}_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(docs_path)}},
        "test_split": "test",
        "description": "",
        "num_fewshot": 0,
    }
    with docs_path.open(encoding="utf-8") as lines:
        if any(json.loads(line).get("further") for line in lines):
            config["doc_to_text"] = _with_further(config["doc_to_text"])
            config["doc_to_choice"] = _letters
    return config


def _with_further(own: str | Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    """A task's prompt with the options after the fourth in their place."""
    from lm_eval.utils import apply_template

    def write(doc: Mapping[str, Any]) -> str:
        prompt = apply_template(own, dict(doc)) if isinstance(own, str) else own(doc)
        assert prompt.endswith(f"\n{_END}"), prompt
        letters = ascii_uppercase[_OWN:]
        further = "".join(f"{a}. {text}\n" for a, text in zip(letters, doc["further"], strict=False))
        return prompt.removesuffix(_END) + further + _END

    return write


def _letters(doc: Mapping[str, Any]) -> list[str]:
    return list(ascii_uppercase[: _OWN + len(doc["further"])])


# -- the evaluation ----------------------------------------------------------------------------------------


def load_peer(model_path: str, dtype: str) -> Any:
    """lm-eval's `hf` model on the CPU.

    Args:
        model_path: a local checkpoint or a hub id.
        dtype: `float32` or `bfloat16`.
    """
    from lm_eval.api.registry import get_model

    return get_model("hf").create_from_arg_obj({"pretrained": model_path, "dtype": dtype}, {"device": "cpu"})


def run_peer(task_name: str, docs_path: Path, model: Any, batch_size: int) -> PeerResult:
    """Evaluate by lm-eval.

    Args:
        docs_path: what `write_docs` wrote for this task.
        model: see `load_peer`.
        batch_size: endings in a forward pass.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    # lm-eval's index of all its tasks takes 10 s and isn't needed for one that is given whole.
    task, manager = peer_task(task_name, docs_path), TaskManager(include_defaults=False)
    model.batch_size_per_gpu = batch_size
    started = time.perf_counter()
    results = lm_eval.simple_evaluate(
        model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    seconds = time.perf_counter() - started
    samples = sorted(results["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    found = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
    right = [bool(sample["acc"]) for sample in samples]
    accuracy = float(results["results"][task["task"]]["acc,none"])
    assert abs(accuracy - sum(right) / len(right)) < 1e-9, (accuracy, right)
    predictions = [values.index(max(values)) for values in found]
    return PeerResult(predictions, right, accuracy, seconds, found)
