"""What we call in vLLM, DeepSpeed and flash-attn exists in the locked versions for CUDA, and takes what it is given."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.signatures.uses import Use, keys, subclasses, uses, uses_of

ROOT = Path(__file__).parents[2]
TABLE: dict[str, Any] = json.loads((ROOT / "tests/signatures/table.json").read_text())


def misfits(use: Use) -> list[str]:
    """What is wrong with a use, by the table."""
    if use.name not in TABLE["names"]:
        return [f"{use.name} is not in tests/signatures/table.json"]
    taken = TABLE["callables"].get(use.name)
    if not use.called or taken is None:
        return []
    places, by_place = taken["names"], taken["names"][: use.positional]
    known = {*places, *taken.get("by_name", ())}
    found = [f"{k} is unknown" for k in use.keywords if k not in known and "any_name" not in taken]
    found += [f"{k} is given twice" for k in use.keywords if k in by_place]
    if use.positional > len(places) and "any_place" not in taken:
        found.append(f"{use.positional} arguments where {len(places)} are taken")
    if not use.open:
        found += [f"{k} is missing" for k in taken["required"] if k not in (*by_place, *use.keywords)]
    return found


def test_our_calls_are_those_of_the_locked_versions() -> None:
    found = list(uses())
    wrong = {f"{use.where} {use.name}": reasons for use in found if (reasons := misfits(use))}
    assert not wrong
    assert {"vllm", "deepspeed"} <= {use.name.split(".")[0] for use in found if use.called}
    assert sum(use.called for use in found) > 30, "the reader of our code finds little"


def test_our_dictionaries_have_their_names() -> None:
    wrong = [
        f"{where} {key}"
        for where, owners, key in keys()
        if not any(key in TABLE["keys"].get(owner, ()) for owner in owners)
    ]
    assert not wrong


def test_our_classes_have_what_their_bases_ask_for() -> None:
    for where, base, methods in subclasses():
        for name, parameters in TABLE["abstract"][base].items():
            assert methods.get(name) == parameters, f"{where}: {base}.{name}"


def test_the_table_is_of_the_locked_versions() -> None:
    locked = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "launch/locks/cuda.txt").read_text(), re.M))
    assert TABLE["versions"] == {name: locked[name] for name in ("vllm", "deepspeed", "flash-attn")}


CALL = "from vllm import LLM\nllm = LLM(model='m', max_num_seqs=2)\n"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (CALL.replace("max_num_seqs", "max_sequences"), "max_sequences"),
        (CALL.replace("model='m', ", ""), "model"),
        (CALL.replace("'m'", "'m', model='n'").replace("model='m'", "'m'"), "twice"),
        ("import vllm\nvllm.LLMs('m')\n", "vllm.LLMs"),
        ("from vllm import LLM\nllm = LLM('m')\nllm.doze(level=1)\n", "LLM.doze"),
        ("from vllm import LLM\nllm = LLM('m')\nllm.sleep(depth=1)\n", "depth"),
        ("import deepspeed\ngetattr(deepspeed, 'initialise')\n", "deepspeed.initialise"),
        ("import deepspeed\ndeepspeed.initialize(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)\n", "14"),
    ],
)
def test_a_call_that_does_not_fit_is_found(code: str, word: str) -> None:
    kinds = {"llm": "vllm.entrypoints.llm.LLM"}
    found = [reason for use in uses_of(ast.parse(code), "made.py", kinds) for reason in misfits(use)]
    assert found and word in " ".join(found)
