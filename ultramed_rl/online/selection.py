"""What a round asks of its prompts, which answers it takes, and the pairs that it chooses as scored answers pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.evaluation.metrics import RoundMetrics
from ultramed_rl.learning.pairs import PairSelector
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, SamplingRequest, ScoredCompletion
from ultramed_rl.scheduling.pool import Outcome
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.shards import ShardedPhase
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


class RoundSelection:
    """Each prompt is looked at once: its pair, if it gives one, goes to pairs.parquet, its numbers into the manifest's
    `summary`. What a killed run kept is looked at once more, and makes the same pairs.
    """

    def __init__(
        self,
        record: RoundRecord,
        selector: PairSelector,
        neutralised: Callable[[Sequence[Completion]], int],
        *inputs: Any,
    ) -> None:
        """
        Args:
            neutralised: how many of the policy's answers hold control tokens.

        Raises:
            ValueError: finished pairs that are of other answers.
        """
        self.record, self.selector, self.neutralised = record, selector, neutralised
        if record.finished("pairs") and record.finished("scored"):
            self._check_origin()
        else:  # begun, or of answers that are gone
            record.discard("pairs")
        self.phase = ShardedPhase(record, "pairs", PreferenceGroup, *inputs)
        self._metrics, self._neutralised = RoundMetrics(), 0

    @property
    def pairs(self) -> int:
        """How many there are by now."""
        return self.selector.counts["pairs"]

    def take(self, prompt: Prompt, answers: Sequence[ScoredCompletion]) -> PreferenceGroup | None:
        """A prompt's pair, out of all of its answers; None where it gives none."""
        self._metrics.add_answers(prompt, answers)
        sampled = [s.completion for s in answers if s.completion.finish_reason != "reference"]
        self._neutralised += self.neutralised(sampled)
        pair = self.selector.choose(prompt, answers)
        if pair is not None:
            self._metrics.add_pair(pair)
            self.phase.keep([pair])
        return pair

    def finish(self) -> None:
        """All prompts have passed.

        Raises:
            ValueError: there is no pair.
        """
        audit = self.selector.audit
        if not audit.pairs:
            raise ValueError(
                f"round {self.record.index}: no pair out of {audit.prompts} prompts ({audit}); lower pairs.min_margin, "
                "raise sampling.n or sampling.temperature, or look at rounds/*/scored.parquet"
            )
        summary = {**self._metrics.metrics(audit), "neutralised": self._neutralised}
        self.phase.finish({}, summary=summary, scored=self.record.digest("scored"))

    def _check_origin(self) -> None:
        made_from, scored = self.record.manifest("pairs")["scored"], self.record.digest("scored")
        if made_from != scored:
            raise ValueError(
                f"{self.record.artifact('pairs')}: made from other inputs ({made_from[:12]}, now {scored[:12]}); put back "
                "scored.parquet and scored.json, or delete pairs.parquet and pairs.json to compute them again"
            )


def asked_before(prompts: Iterable[Prompt], kept: Collection[str]) -> int:
    """How many prompts from the first on a killed run had asked, at least: up to the last of which something is kept."""
    if not kept:
        return 0
    return max(place for place, prompt in enumerate(prompts, start=1) if prompt.prompt_id in kept)


class PromptLookup:
    """Prompts by id, read once in their order: those passed over are kept until they are asked for.

    Answers come nearly in the order of their prompts, so few are kept.
    """

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._prompts = iter(prompts)
        self._passed: dict[str, Prompt] = {}

    def take(self, prompt_id: str) -> Prompt:
        """The prompt of this id, once."""
        while prompt_id not in self._passed:
            prompt = next(self._prompts)
            self._passed[prompt.prompt_id] = prompt
        return self._passed.pop(prompt_id)
