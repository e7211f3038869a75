"""What a scorer of the loop is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ultramed_rl.records import Completion, Prompt


class Term(Protocol):
    """Gives each completion a number, higher is better."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """One number for each completion, in their order; NaN where there is none to be had.

        Completions name their prompt by `prompt_id`.
        """


def with_prompts(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[tuple[Prompt, Completion]]:
    """Each completion with its prompt, in the order of the completions."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    missing = sorted({c.prompt_id for c in completions} - by_id.keys())
    assert not missing, f"completions of unknown prompts: {missing[:5]}"
    return [(by_id[completion.prompt_id], completion) for completion in completions]
