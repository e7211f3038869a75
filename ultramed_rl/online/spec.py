"""What a round asks of its prompts, and what becomes of the answers: taken, or the prompt set aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ultramed_rl.learning.pairs import PairSelector
from ultramed_rl.records import Completion, Prompt, SamplingRequest
from ultramed_rl.scheduling.pool import Outcome
from ultramed_rl.workers.sampling import check_version
from ultramed_rl.workers.scorers import Scored


@dataclass(frozen=True)
class RoundSpec:
    """What a round asks for.

    Attributes:
        request: a prompt's request to the engines.
        extra: a prompt's answer that is scored beside the policy's, or None.
        selector: chooses the round's pairs, from its first prompt on.
        version: the policy's, which every completion must carry.
        reference_version: the reference's; None where no reference logprobs are wanted.
    """

    request: Callable[[Prompt], SamplingRequest]
    extra: Callable[[Prompt], Completion | None]
    selector: Callable[[], PairSelector]
    version: int
    reference_version: int | None


class Acceptance:
    """Takes what comes back of one round's prompts.

    Args:
        prompts: that the round has.
        share: of them, and at least one, may be set aside.
    """

    def __init__(
        self, spec: RoundSpec, index: int, prompts: int, share: float, say: Callable[[str], None]
    ) -> None:
        self.spec, self.index, self.share, self.say = spec, index, share, say
        self.limit = max(1, int(share * prompts))
        self.set_aside: dict[str, str] = {}

    def accept(self, outcome: Outcome) -> list[Completion]:
        """An engine's outcome: a prompt's completions, or none where it was set aside."""
        if outcome.error:
            self._set_aside(outcome.key, outcome.error)
            return []
        completions: list[Completion] = outcome.value
        check_version([c.policy_version for c in completions], self.spec.version)
        return completions

    def candidates(self, prompt: Prompt, completions: list[Completion]) -> list[Completion]:
        """What is scored: the policy's answers, and perhaps the data's own."""
        extra = self.spec.extra(prompt)
        return completions if extra is None else [*completions, extra]

    def accept_scored(self, scored: Scored) -> bool:
        """Whether there are scored answers; if not, the prompt is set aside."""
        if scored.error:
            self._set_aside(scored.prompt_id, scored.error)
        return not scored.error

    def _set_aside(self, prompt_id: str, error: str) -> None:
        self.set_aside[prompt_id] = error
        self.say(f"round {self.index}: prompt {prompt_id} is set aside: {error}")
        if len(self.set_aside) > self.limit:
            raise ValueError(
                f"round {self.index}: {len(self.set_aside)} prompts set aside, more than "
                f"cluster.faults.max_failed_prompt_share={self.share:g} allows ({self.limit}); the last: {error}; mend the cause "
                "and go on with --resume"
            )
