"""Scores and logprobs don't depend on who shares a batch, and equal transformers' own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from ultramed_rl.actors.scorer import ReferenceWorker, RewardWorker, Scorer
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.load import load_policy


def groups() -> list[AnswerGroup]:
    rng = random.Random(0)
    tokens = lambda longest: [rng.randrange(3, 259) for _ in range(rng.randint(1, longest))]
    return [AnswerGroup(tokens(30), [tokens(40) for _ in range(1 + i % 3)]) for i in range(9)]


def sequences() -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) one by one."""
    return [([*g.prompt], [*a]) for g in groups() for a in g.answers]


def scores(worker: Scorer, budget: int) -> list[float]:
    worker.batch_tokens = budget
    found = {(g, a): x for batch in worker.score(groups()) for g, a, x in batch}
    assert len(found) == 18
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("kind", ["reference", "reward"])
def test_scores_are_independent_of_the_batch(tiny_root: Path, kind: str) -> None:
    worker = {"reference": ReferenceWorker, "reward": RewardWorker}[kind](0, "cpu", "float32", 1)
    worker.load(str(tiny_root / ("policy" if kind == "reference" else "reward")))
    alone, together = scores(worker, 1), scores(worker, 100_000)
    assert alone == pytest.approx(together, abs=1e-3)
    assert len(set(alone)) == 18


def test_reward_equals_transformers(tiny_root: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    worker = RewardWorker(0, "cpu", "float32", 1000)
    worker.load(str(tiny_root / "reward"))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_root / "reward").eval()
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([[*p, *c]])).logits.item() for p, c in sequences()]
    assert scores(worker, 1000) == pytest.approx(expected, abs=1e-4)


def test_reference_equals_transformers(tiny_root: Path) -> None:
    from transformers import AutoModelForCausalLM

    worker = ReferenceWorker(0, "cpu", "float32", 1000)
    worker.load(str(tiny_root / "policy"))
    model = AutoModelForCausalLM.from_pretrained(tiny_root / "policy").eval()
    expected = []
    for prompt, completion in sequences():
        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits.log_softmax(-1)
        steps = range(len(prompt) - 1, ids.shape[1] - 1)
        expected.append(sum(logprobs[0, i, ids[0, i + 1]].item() for i in steps))
    assert scores(worker, 1000) == pytest.approx(expected, abs=1e-3)


def test_ema_reference_moves_by_its_decay(tiny_root: Path, tmp_path: Path) -> None:
    from tests.tiny import make_policy

    other = make_policy(tmp_path / "other", seed=9)
    worker = ReferenceWorker(0, "cpu", "float32", 1000)
    worker.load(str(tiny_root / "policy"))
    worker.average(str(tiny_root / "policy"), str(other), 0.75, str(tmp_path / "average"))
    before, moved, average = (
        load_policy(str(path), "float32").lm.state_dict()
        for path in (tiny_root / "policy", other, tmp_path / "average")
    )
    for name, weight in average.items():
        torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * moved[name], atol=1e-6, rtol=1e-5)


def test_a_bfloat16_reference_moves_by_less_than_its_own_grid(tiny_root: Path, tmp_path: Path) -> None:
    near = tmp_path / "near"
    lm = load_policy(str(tiny_root / "policy"), "float32").lm
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(1 + 2**-9)  # half of bfloat16's step at most
    lm.save_pretrained(near)
    worker = ReferenceWorker(0, "cpu", "bfloat16", 1000)
    older = str(tiny_root / "policy")
    for number in range(3):
        directory = str(tmp_path / str(number))
        worker.average(older, str(near), 0.5, directory)
        older = directory
    start, moved = (
        load_policy(path, "float32").lm.state_dict() for path in (str(tiny_root / "policy"), older)
    )
    for name, weight in moved.items():
        torch.testing.assert_close(weight, start[name] * (1 + 0.875 * 2**-9), atol=0, rtol=1e-6)
