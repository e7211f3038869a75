"""lm-evaluation-harness on a node with a tiny model and tasks of the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.cluster.connection import start_private_ray, stop_private_ray
from ultramed_rl.config.benchmarks import General
from ultramed_rl.config.cluster import Devices
from ultramed_rl.stages.general import run_general

ITEMS = [
    {"question": f"{which} is given for", "choices": ["pain", "sleep", "sugar", "clots"], "answer": index % 4}
    for index, which in enumerate(
        ["aspirin", "valium", "insulin", "warfarin", "codeine", "zopiclone", "metformin", "heparin"]
    )
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GROUP = """
group: own
task: [few, many]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Devices]:
    """One Ray for all commands here."""
    start_private_ray(2)
    yield Devices(device="cpu", cpus_per_node=1, devices_per_node=1, start_timeout_s=60)
    stop_private_ray()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks, 3 and 5 of the items, and a group of both."""
    for name, items in (("few", ITEMS[:3]), ("many", ITEMS[3:])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    (tmp_path / "own_group.yaml").write_text(GROUP)
    return tmp_path


def right_answers(model_path: Path) -> list[bool]:
    """Whether the likeliest ending is the right one, of each item, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    @torch.no_grad()
    def likelihood(question: str, choice: str) -> float:
        start, end = tokenizer.encode(question), tokenizer.encode(f" {choice}")
        logits = model(torch.tensor([start + end])).logits[0].log_softmax(-1)
        return sum(logits[len(start) + i - 1, token].item() for i, token in enumerate(end))

    def right(item: dict[str, Any]) -> bool:
        found = [likelihood(item["question"], choice) for choice in item["choices"]]
        return found.index(max(found)) == item["answer"]

    return [right(item) for item in ITEMS]


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_once(
    cluster: Devices, folder: Path, tiny_root: Path, tmp_path: Path
) -> None:
    section = General(tasks=["own"], include_path=str(folder), batch_size=4)
    model, output = tiny_root / "policy", tmp_path / "run" / "general-tiny"
    result = run_general(section, str(model), cluster, "float32", output)

    right = right_answers(model)
    assert 0 < sum(right) < len(right)
    few, many, own = (result.tasks[name] for name in ("few", "many", "own"))
    assert (few.items, many.items, own.items) == (3, 5, 8)
    assert own.subtasks == ("few", "many")
    assert few.figures["acc"].value == pytest.approx(sum(right[:3]) / 3)
    assert many.figures["acc"].value == pytest.approx(sum(right[3:]) / 5)
    assert own.figures["acc"].value == pytest.approx(sum(right) / 8)

    (file,) = output.glob("results_*.json")
    written = json.loads(file.read_text())
    assert written["config"]["model_dtype"] == "torch.float32"
    for name, task in result.tasks.items():
        row = written["results"][name]
        assert (task.figures["acc"].value, task.figures["acc"].stderr) == (
            row["acc,none"],
            row["acc_stderr,none"],
        )
    assert len(list(output.glob("samples_*.jsonl"))) == 2

    nowhere = cluster.model_copy(update={"address": "http://127.0.0.1:9"})
    assert run_general(section, str(model), nowhere, "float32", output) == result
    changed = section.model_copy(update={"limit": 1})
    with pytest.raises(ValueError, match=r"general-tiny: made from other inputs"):
        run_general(changed, str(model), nowhere, "float32", output)


@pytest.mark.slow
def test_data_that_is_out_of_reach_ends_in_lm_evals_own_words(
    cluster: Devices, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task = TASK.format(name="far", data="none").replace(
        "dataset_path: json", "dataset_path: nobody/nothing-here"
    )
    (tmp_path / "far.yaml").write_text(task)
    section = General(tasks=["far"], include_path=str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        run_general(section, str(tiny_root / "policy"), cluster, "float32", tmp_path / "out")
    first = str(caught.value).splitlines()[0]
    assert "nobody/nothing-here" in first and "let the same command run once with a network" in first
    assert not (tmp_path / "out").exists()
