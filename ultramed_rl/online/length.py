"""Whether a run's reward pays for length: looked at before anything is learnt, and the slope taken off where the config
wants that (`reward.length_slope`).

A slope must be known before the first pair is chosen, and stay: rewards of two rounds are compared. So it is fitted on answers
of the starting policy, sampled as the rounds sample, to held-out prompts: they make no pair, so none is asked twice. The
evaluation's own answers don't serve: by default they are one a prompt, and another temperature's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from ultramed_rl.learning.length import PAYS, LengthFit
from ultramed_rl.records import ScoredCompletion
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.tables import write_records

Metrics = dict[str, float]
PROMPTS = 256  # whose answers a slope is fitted on, at most


def fit_length_slope(
    initial: RoundRecord, answer: Callable[[], list[ScoredCompletion]], say: Callable[[str], None]
) -> float:
    """Reward per token within prompts, of the starting policy's answers; kept in `initial/length/`, so that a resumed run
    takes off the same.

    Args:
        answer: several answers to each prompt, one prompt after the other, with their raw rewards.

    Raises:
        ValueError: the slope is gone, and the answers are of a policy that has learnt.
    """

    def compute(folder: Path) -> Metrics:
        scored, fit = answer(), LengthFit()
        if any(s.completion.policy_version for s in scored):
            raise ValueError(f"{initial.path / 'length.json'}: missing; put it and length/ back")
        for _, answers in groupby(scored, lambda s: s.completion.prompt_id):
            fit.add_answers(answers)
        write_records(scored, ScoredCompletion, folder / "scored.parquet")
        return {"answers": len(scored), "correlation": fit.correlation, "slope": fit.slope}

    _, found = initial.phase_directory("length", compute)
    told = length_words(found["correlation"])
    say(
        f"start: {told} ({found['answers']:.0f} held-out answers); reward.length_slope=fit takes {found['slope']:+.4g} a token "
        "off every reward"
    )
    return found["slope"]


def length_words(correlation: float) -> str:
    """What a correlation within prompts says."""
    if math.isnan(correlation):
        return "reward or length never varies within a prompt"
    return f"reward and length correlate by {correlation:+.2f} within prompts"


def length_warning(correlation: float, fitted: bool) -> str:
    """What to do about a reward that pays for length; nothing where it doesn't. `fitted`: a slope is taken off already."""
    if not abs(correlation) >= PAYS:
        return ""
    fix = (
        "the slope is the start's, and the reward pays by another one now"
        if fitted
        else "see reward.length_slope"
    )
    return f", over {PAYS}: {'longer' if correlation > 0 else 'shorter'} answers are paid for; {fix}"
