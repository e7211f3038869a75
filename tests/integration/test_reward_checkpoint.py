"""A reward model that this project saves is read alike by transformers and by vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_tokenizer
from ultramed_rl.actors.scorer import RewardWorker
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.load import load_reward, save_model


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_others_read_the_same_scores(
    tiny_root: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    tokenizer = make_tokenizer()
    module = load_reward(str(tiny_root / "reward"), precision)
    # Scores of which bfloat16's own step is below the tolerance.
    module.lm.score.weight.data.mul_(0.1)
    save_model(module, tokenizer, str(tmp_path / "saved"), module.lm.state_dict())

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is aspirin for?"}], tokenize=False, add_generation_prompt=True
    )
    texts = [f"{prompt}{answer}<|im_end|>" for answer in ("Pain.", "Pain and fever.", "It thins the blood.")]
    worker = RewardWorker(0, "cpu", precision, 1000)
    worker.load(str(tmp_path / "saved"))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    groups = [AnswerGroup(row[:-1], [row[-1:]]) for row in ids]
    found = {g: x for numbers in worker.score(groups) for g, _, x in numbers}
    ours = [found[g] for g in range(len(texts))]
    assert len(set(ours)) == len(texts)

    script = [sys.executable, "-m", "tests.integration.reward_readers", str(tmp_path / "saved"), precision]
    done = subprocess.run(script, input=json.dumps(texts), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    others = json.loads(done.stdout.strip().splitlines()[-1])
    assert others["pipeline"] == pytest.approx(ours, abs=tolerance)
    assert others["vllm"] == pytest.approx(ours, abs=tolerance)
