"""Whole runs whose reward is a function of the user's own: what it gives is kept, what it fails at is set aside, killed or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulated.cases import Cases
from tests.simulated.outcome import check_same
from tests.simulated.run import Simulation

CODE = """
def score(prompt, answers):
    if prompt["messages"][-1]["content"] == {victim!r}:
        raise ValueError("five is right out")
    return [{"reward": sum(map(ord, answer)) * 31 % 97 / 97, "size": len(answer)} for answer in answers]
"""


def scored_by(function: Path, known: Cases, path: Path) -> Simulation:
    streamed = known.at("streamed", path)
    term = {"type": "python", "path": f"{function}:score", "retries": 0}
    return replace(streamed, changes={**streamed.changes, "reward": {"terms": [term]}})


def test_a_function_scores_a_run_and_what_it_fails_at_is_set_aside(known: Cases, tmp_path: Path) -> None:
    victim = known.unbroken("streamed")[0].of(0, "prompts")[2]
    function = tmp_path / "mine.py"
    function.write_text(CODE.replace("{victim!r}", repr(victim.messages[-1]["content"])))
    whole = scored_by(function, known, tmp_path / "whole")
    ended = whole.run()
    outcome = whole.outcome()
    scored = outcome.of(0, "scored")
    assert victim.prompt_id not in {s.completion.prompt_id for s in scored}
    assert all(
        s.details == {"python.reward": s.reward, "python.size": len(s.completion.text)} for s in scored
    )
    (line,) = (tmp_path / "whole/tiny/rounds/000/set_aside.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert told["prompt_id"] == victim.prompt_id and "five is right out" in told["error"]
    digests = json.loads((tmp_path / "whole/tiny/inputs.json").read_text())
    assert "reward.terms.0.path" in json.dumps(digests)

    killed = scored_by(function, known, tmp_path / "killed")
    killed.run(kill_at=ended.disk.changes // 2)
    killed.run(resume=True)
    check_same(killed.outcome(), outcome, "killed and resumed")

    again = scored_by(function, known, tmp_path / "again")
    again.run(kill_at=ended.disk.changes // 2)
    function.write_text(function.read_text() + "\n")
    with pytest.raises(ValueError, match=r"reward\.terms\.0\.path"):
        again.run(resume=True)
