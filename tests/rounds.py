"""A round of an online run as the store writes it, without anybody having computed it."""

from __future__ import annotations

from pathlib import Path

from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ScoredCompletion
from ultramed_rl.store import RoundRecord, RunDirectory

HOSTILE = "<script>alert(1)</script> [bold]not markup[/bold]\n\n# 薬 💊\u2028end"
# Rewards of a prompt's samples 0, 1, 2: the second is best, the third worst.
REWARDS = (0.5, 2.0, -1.0)


def make_prompt(number: int, index: int = 0) -> Prompt:
    return Prompt(f"p{index}-{number}", ({"role": "user", "content": f"What is drug {number}?"},), (5, 6))


def make_completion(prompt: Prompt, sample: int, version: int) -> Completion:
    text = HOSTILE if sample == 2 else f"{prompt.prompt_id} answer {sample}"
    return Completion(prompt.prompt_id, sample, text, tuple(range(sample + 1)), "stop", -1.5, version)


def finish_round(
    store: RunDirectory, index: int, metrics: dict[str, float] | None = None, prompts: int = 6
) -> RoundRecord:
    """All phases up to the checkpoint, which is a small text; committed where metrics are given."""
    record = store.round(index)
    asked = [make_prompt(number, index) for number in range(prompts)]
    answers = [make_completion(prompt, sample, index) for prompt in asked for sample in range(3)]
    scored = [ScoredCompletion(answer, REWARDS[answer.sample]) for answer in answers]
    pairs = [
        PreferenceGroup(
            prompt,
            (make_completion(prompt, 1, index), make_completion(prompt, 2, index)),
            (REWARDS[1], REWARDS[2]),
        )
        for prompt in asked
    ]
    record.phase("prompts", lambda: asked, kind=Prompt)
    record.phase("completions", lambda: answers, kind=Completion)
    record.phase("scored", lambda: scored, kind=ScoredCompletion)
    record.phase("pairs", lambda: pairs, kind=PreferenceGroup)
    record.phase_directory("checkpoint", lambda folder: _checkpoint(folder, index))
    if metrics is not None:
        record.commit(metrics)
    return record


def _checkpoint(folder: Path, index: int) -> dict[str, float]:
    (folder / "config.json").write_text(f'{{"round": {index}}}')
    (folder / "model.safetensors").write_bytes(bytes(1000 + index))
    return {"loss_last": 0.5 - 0.1 * index}
