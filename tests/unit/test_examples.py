"""The examples of the documentation do what it says: each is parsed as a part of a run, or run."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.rounds import make_completion, make_prompt
from tests.tiny import tiny_run
from ultramed_rl.config import EvaluateConfig, RunConfig, factory_steps, objectives, parse_config, rewards
from ultramed_rl.data.factory.step import Drop
from ultramed_rl.evaluation.items import Row
from ultramed_rl.learning.objectives.answers import Answers

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def sections(page: str) -> list[Any]:
    """The page's examples that are sections of a run."""
    found = [yaml.safe_load(block) for block in blocks(page, "yaml")]
    return [pytest.param(one, id=f"{page}: {', '.join(one)}") for one in found if "stages" not in one]


def filled(given: Any, whole: Any) -> Any:
    """An example with what it leaves out."""
    both = isinstance(given, dict) and isinstance(whole, dict) and "type" not in given
    return {**whole, **{key: filled(own, whole.get(key)) for key, own in given.items()}} if both else given


@pytest.mark.parametrize("example", [*sections("objectives.md"), *sections("recipe.md")])
def test_an_example_is_a_part_of_a_run(example: dict[str, Any], tmp_path: Path) -> None:
    run = tiny_run(tmp_path, policy__max_length=2048, cluster__device="cuda")
    parsed = parse_config(filled(example, run))
    assert isinstance(parsed, RunConfig)
    for section, given in example.items():
        said = parsed.to_mapping()[section]
        assert said["type" if section == "objective" else next(iter(given))] is not None


@pytest.mark.parametrize("example", [e for e in sections("evaluation.md") if "benchmarks" in e.values[0]])
def test_an_example_is_a_part_of_an_evaluation(example: dict[str, Any]) -> None:
    rest = {
        "type": "evaluate",
        "run": {"name": "e"},
        "policies": {"a": "/models/a"},
        "policy": {"max_length": 8192},
    }
    assert parse_config({**rest, **example}, kind=EvaluateConfig).benchmarks is not None


def run_code(code: str, module: ModuleType | None = None) -> dict[str, Any]:
    """What a block of Python makes, beside a module's own names where it is a part of one."""
    names = dict(vars(module)) if module else {"__name__": "example"}
    exec(compile(code, "example", "exec", dont_inherit=True), names)
    return names


def written(name: str) -> str:
    """The block of extending.md that makes something of this name."""
    (code,) = [
        c
        for c in blocks("extending.md", "python")
        if re.search(rf"^ *(class|def|async def) {name}\b|^ *{name} =", c, re.M)
    ]
    lines = code.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[indent:] for line in lines)


def test_the_objective_of_the_docs() -> None:
    config = run_code(written("OffsetDPO"), objectives)["OffsetDPO"]()
    loss = run_code(written("offset_dpo_loss"))["offset_dpo_loss"]
    answers = Answers(
        logprobs=torch.tensor([-3.0, -7.0]),
        reference=torch.tensor([-4.0, -5.0]),
        lengths=torch.tensor([2, 2]),
        rewards=torch.tensor([1.0, 0.0]),
        desirable=torch.tensor([True, False]),
        sizes=(2,),
    )
    # h = (-3 + 4) - (-7 + 5) = 3
    expected = -math.log(1 / (1 + math.exp(-(config.beta * 3.0 - config.offset))))
    assert loss(answers, beta=config.beta, offset=config.offset).tolist() == pytest.approx([expected])


def test_the_scorer_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    section = run_code(written("SourcesTerm"), rewards)["SourcesTerm"]
    monkeypatch.setattr(rewards, "SourcesTerm", section, raising=False)
    term = run_code(written("NamedSources"))["NamedSources"](section(wanted=2))
    prompt = make_prompt(0)
    answers = [make_completion(prompt, sample, 0) for sample in range(2)]
    linked = replace(answers[0], text="See https://who.int and http://a.b")
    assert term.score([prompt], [linked, answers[1]]) == [0.5, 0.0]


def test_the_benchmark_of_the_docs() -> None:
    task = run_code(written("MINE"))["MINE"]
    item = task.read(Row({"id": "1", "question": "Which?", "options": ["a", "b"], "answer": "B"}))
    assert (item.question, item.options, item.answer) == ("Which?", ("a", "b"), "B")


def test_the_step_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    section = run_code(written("Shorten"), factory_steps)["Shorten"]
    monkeypatch.setattr(factory_steps, "Shorten", section, raising=False)
    step = run_code(written("ShortenStep"))["ShortenStep"](section(most_words=3))

    async def ask(_: Any, messages: Any) -> Any:
        assert "at most 3 words" in messages[0]["content"]
        return SimpleNamespace(text=replies.pop())

    replies = ["What is it, after all?", "What is it?"]
    row = {"conversations": [{"from": "human", "value": "What may it be, if it is anything?"}]}
    (kept,) = asyncio.run(step(row, ask)).rows
    assert kept == {**row, "short": "What is it?"}
    assert asyncio.run(step(row, ask)) == Drop("not_shorter")
