"""Preference groups to their reference logprobs, through the scheduler."""

from __future__ import annotations

from collections.abc import Iterator

from ultramed_rl.cluster.dispatch import WorkItem
from ultramed_rl.cluster.pool import Outcome, Pool
from ultramed_rl.cluster.scheduler import Scheduler
from ultramed_rl.learning.checks import check_groups
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.learning.preference_data import read_reference
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs


class ReferenceScorer:
    """Whoever holds the reference's weights, behind offers and outcomes."""

    def __init__(self, pool: Pool, vocab_size: int, max_length: int) -> None:
        self.pool, self.vocab_size, self.max_length = pool, vocab_size, max_length
        self._answers: dict[str, int] = {}  # of the groups under way

    def offer(self, group: PreferenceGroup, packed: AnswerGroup | None = None) -> None:
        """A group whose answers need reference logprobs; `packed` has them, and perhaps KTO's mismatched one after them.

        Raises:
            ValueError: a group that cannot be learnt from.
        """
        check_groups([group], self.vocab_size, self.max_length)
        if packed is None:
            packed = AnswerGroup.of(group)
        self._answers[group.group_id] = len(group.completions)
        tokens = packed.packed_tokens
        self.pool.offer(WorkItem(group.group_id, tokens, float(tokens)), packed)

    def forget(self) -> None:
        """Drop all that is under way; the scheduler forgets its part itself."""
        self._answers = {}

    def take(self, outcome: Outcome) -> ReferenceLogprobs:
        """A group's logprobs, in nats.

        Raises:
            RuntimeError: no worker could compute them.
        """
        if outcome.error:
            raise RuntimeError(f"{outcome.key}: no reference logprobs: {outcome.error}")
        return read_reference(outcome.key, self._answers.pop(outcome.key), outcome.value)

    def stream(
        self, source: Iterator[tuple[PreferenceGroup, AnswerGroup]], scheduler: Scheduler
    ) -> Iterator[ReferenceLogprobs]:
        """Each group's logprobs as they come; groups are taken as there is room."""
        for outcome in scheduler.stream(self.pool, source, lambda item: self.offer(*item)):
            yield self.take(outcome)
