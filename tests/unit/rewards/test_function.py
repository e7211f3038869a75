"""A reward function of the user's own: what it gets, what it may give, and all that it may do instead."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.cluster.inputs import describe_model, path_problems
from ultramed_rl.config.rewards import PythonTerm
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.function import PythonFunction, check_function
from ultramed_rl.rewards.term import Scores

PROMPTS = [
    Prompt("a", (Message(role="user", content="How many?"),), (1,), "3", extra='{"level": 2}'),
    Prompt("b", (Message(role="user", content="Which?"),), (2,)),
]
DOCS = Path(__file__).parents[3] / "docs"


def score(folder: Path, code: str, answers: str = "a3 a33 bx", **keys: Any) -> Scores:
    """Of answers, each after its prompt's id."""
    (folder / "mine.py").write_text(code)
    term = PythonFunction(PythonTerm(path=f"{folder}/mine.py:score", **keys))
    completions = [Completion(a[0], i, a[1:], (1,), "stop", 0.0, 0) for i, a in enumerate(answers.split())]
    return term.score(PROMPTS, completions)


def test_a_function_gets_prompts_with_their_columns(tmp_path: Path) -> None:
    code = """
def score(prompt, answers):
    assert prompt["messages"][0]["role"] == "user"
    return [len(a) * prompt.get("level", 10) + (a == prompt["reference"]) for a in answers]
"""
    assert score(tmp_path, code).values == [1 * 2 + 1, 2 * 2, 10]


def test_an_async_function_keeps_its_loop_and_gives_named_numbers(tmp_path: Path) -> None:
    code = """
import asyncio
loops = set()
async def score(prompt, answers):
    loops.add(id(asyncio.get_running_loop()))
    await asyncio.sleep(0)
    return [{"reward": len(loops), "size": len(a)} if prompt["reference"] else {"x": 2, "y": 0.5} for a in answers]
"""
    found = score(tmp_path, code)
    assert found.values == [1.0, 1.0, 2.5]  # of the last, the sum
    assert found.details[1] == {"python.reward": 1.0, "python.size": 2.0}


def test_numbers_of_numpy_and_prints_are_no_matter(tmp_path: Path) -> None:
    code = "import numpy as np\ndef score(prompt, answers):\n    print('hello')\n    return np.array([0.5] * len(answers))\n"
    assert score(tmp_path, code).values == [0.5] * 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('dose')", r"KeyError: 'dose'.*line 4"),
        ("return [float('nan')] * len(answers)", r"nan"),
        ("return [{'reward': float('inf')}] * len(answers)", r"inf"),
        ("return [{}] * len(answers)", r"\{\}"),
        ("return [{'reward': {'x': 1.0}}] * len(answers)", r"TypeError"),
        ("return [{'x': None}] * len(answers)", r"TypeError"),
        ("return {'reward': 1.0}", r"TypeError"),
        ("return [1.0]", r"1 numbers for 2 answers"),
        ("return ['3'] * len(answers)", r"TypeError"),
        ("return None", r"TypeError"),
        ("return 1.0", r"TypeError"),
        ("import sys; sys.exit(3)", r"SystemExit"),
        ("import os; os._exit(3)", r"status 3"),
        ("import time; time.sleep(60)", r"timeout_s=1\b"),
        ("while True: pass", r"timeout_s=1\b"),
    ],
)
def test_what_gives_no_numbers_sets_its_prompt_aside_alone(tmp_path: Path, body: str, said: str) -> None:
    code = (
        f"def score(prompt, answers):\n    if prompt['prompt_id'] == 'b':\n        return [1.0]\n    {body}\n"
    )
    found = score(tmp_path, code, timeout_s=1.0 if "timeout" in said else 60.0, retries=0)
    assert found.errors.keys() == {"a"} and re.search(said, found.errors["a"]) and found.values[2] == 1.0
    assert "mine.py:score" in found.errors["a"] and "How many?" in found.errors["a"]


def test_it_is_asked_again(tmp_path: Path) -> None:
    code = "calls = []\ndef score(prompt, answers):\n    calls.append(1)\n    assert len(calls) > 1\n    return [1] * len(answers)\n"
    assert score(tmp_path, code, "a3", retries=1).values == [1.0]
    assert score(tmp_path, code, "a3", retries=0).errors.keys() == {"a"}


def test_it_runs_in_another_process_and_in_several_at_a_time(tmp_path: Path) -> None:
    code = "import os, time\ndef score(prompt, answers):\n    time.sleep(0.3)\n    return [os.getpid()] * len(answers)\n"
    found = score(tmp_path, code, concurrency=2).values
    assert found[0] == found[1] and len({*found, float(os.getpid())}) == 3


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def other(): pass", "score"),
        ("def score(:", "mine.py"),
        ("import no_such_module\ndef score(p, a): pass", "no_such_module"),
    ],
)
def test_a_file_without_the_function_is_refused_before_anything_starts(
    tmp_path: Path, code: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        score(tmp_path, code)


def test_looking_runs_nothing_and_finds_what_is_defined_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom math import sqrt as root\ntry:\n    import fast\n"
        "except ImportError:\n    def slow(): ...\nscore = slow\n"
    )
    for name in ("root", "fast", "slow", "score"):
        assert check_function(f"{file}:{name}", "path") == (file, name)
    for wrong in (f"{file}:open", f"{tmp_path}/none.py:score", f"{tmp_path}:score"):
        with pytest.raises(ValueError, match="reward.terms.0.path="):
            check_function(wrong, "reward.terms.0.path")
    assert not (tmp_path / "ran").exists()


def test_its_file_has_a_digest_and_travels(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(p, a): ...")
    before = describe_model(f"{file}:score")
    file.write_text("def score(p, a): return [0]")
    assert before and describe_model(f"{file}:score") not in ("", before)
    config = {"reward": {"terms": [{"path": "mine.py:score"}]}, "run": {"directory": "/shared"}}
    assert path_problems(config, tmp_path) == []
    (problem,) = path_problems(config, tmp_path / "none")
    assert problem.startswith("reward.terms.0.path=")
    (problem,) = path_problems(config, None)
    assert problem.startswith("reward.terms.0.path=")


def test_the_example_of_the_docs_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(# my_reward.py.*?)```", (DOCS / "recipe.md").read_text(), re.DOTALL)
    prompt = Prompt("q", PROMPTS[0].messages, (1,), extra='{"drug": "Aspirin"}')
    (tmp_path / "my_reward.py").write_text(code)
    term = PythonFunction(PythonTerm(path=f"{tmp_path}/my_reward.py:score"))
    answers = [
        Completion("q", i, text, (1,), "stop", 0.0, 0) for i, text in enumerate(["aspirin", "no idea"])
    ]
    found = term.score([prompt], answers)
    assert found.values == [1.0 - 1 / 100, -2 / 100]
    assert found.details[0] == {"python.named": 1.0, "python.brief": -1 / 100}
