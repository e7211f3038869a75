"""The quickstart's rules: what its reward terms teach is what its judge measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from ultramed_rl import load_config
from ultramed_rl.config import RunConfig
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.rules import FormatRules

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
ASKED = "how long should i take cipro for an infection"


@pytest.mark.parametrize(
    ("answer", "ended", "kept"),
    [
        ("Cipro is taken for three to seven days. Ask your pharmacist or doctor how long.", True, (1, 1, 1)),
        ("Cipro is taken for three to seven days. Ask your pharmacist or doctor how", False, (1, 1, 0)),
        ("It is taken for three to seven days, so please ask your Doctor.", True, (0, 1, 1)),
        ("Cipro is usually taken for three to seven days, no longer than that.", True, (1, 0, 1)),
        ("Cipro. Ask a doctor.", True, (1, 1, 0)),  # too short to say anything
        ("Take cipro. For three days or seven. Then ask your doctor about it again.", True, (1, 1, 0)),
        ("To ask a pharmacist or doctor, I would say: how long do I take cipro?", True, (1, 0, 1)),
        ("You should take the dose for as long as it takes to end an often long course.", True, (0, 0, 1)),
    ],
)
def test_the_skill_is_the_three_rules_together(answer: str, ended: bool, kept: tuple[int, ...]) -> None:
    config = load_config(str(QUICKSTART), [])
    assert isinstance(config, RunConfig)
    prompt = Prompt("p", (Message(role="user", content=ASKED + (config.prompts.suffix or "")),))
    reason = "stop" if ended else "length"
    completion = Completion("p", 0, answer, (), reason, 0.0, 0)
    terms = {t.name: t for t in config.reward.terms if t.type == "format"}
    passed = [
        FormatRules(terms[n]).score([prompt], [completion])[0] == 0.0 for n in ("names", "asks", "whole")
    ]
    (skill,) = (j for j in config.evaluation.judges if j.type == "rule")
    assert tuple(map(int, passed)) == kept
    assert FormatRules(skill).score([prompt], [completion]) == [float(all(kept))]
