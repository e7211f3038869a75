"""A round's pairs, chosen as its scored answers pass, and what the answers came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ultramed_rl.evaluation.metrics import RoundMetrics
from ultramed_rl.learning.pairs import PairSelector
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ScoredCompletion
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.shards import ShardedPhase


class RoundSelection:
    """Each prompt is looked at once: its pair, if it gives one, goes to pairs.parquet, its numbers into the manifest's
    `summary`.

    A killed run gives the answers that it kept once more: what isn't known of them is how they were counted.
    """

    def __init__(
        self,
        record: RoundRecord,
        selector: PairSelector,
        neutralised: Callable[[Sequence[Completion]], int],
        scored: ShardedPhase[ScoredCompletion],
        *inputs: Any,
    ) -> None:
        """
        Args:
            neutralised: how many of the policy's answers hold control tokens.
            scored: whose records are in files before the pairs that are made of them.

        Raises:
            ValueError: finished pairs that are of other answers.
        """
        self.record, self.selector, self.neutralised = record, selector, neutralised
        if not scored.finished:
            record.discard("pairs")  # of answers that are gone
        self.phase = ShardedPhase(record, "pairs", PreferenceGroup, *inputs)
        self.phase.after = None if scored.finished else scored
        if self.phase.finished:
            self._check_origin()
            return
        self._known = {pair.group_id for pair in self.phase.read()}
        self._metrics, self._neutralised = RoundMetrics(), 0

    def take(self, prompt: Prompt, answers: Sequence[ScoredCompletion]) -> PreferenceGroup | None:
        """A prompt's pair, out of all of its answers; None where it gives none."""
        self._metrics.add_answers(prompt, answers)
        sampled = [s.completion for s in answers if s.completion.finish_reason != "reference"]
        self._neutralised += self.neutralised(sampled)
        pair = self.selector.choose(prompt, answers)
        if pair is not None:
            self._metrics.add_pair(pair)
            if pair.group_id not in self._known:
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
        made_from, found = self.record.manifest("pairs")["scored"], self.record.digest("scored")
        if made_from != found:
            raise ValueError(
                f"{self.record.artifact('pairs')}: made from other inputs ({made_from[:12]}, now {found[:12]}); put back "
                "scored.parquet and scored.json, or delete pairs.parquet and pairs.json to compute them again"
            )


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
