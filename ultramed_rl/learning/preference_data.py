"""The training set of a round: preference groups beside their reference logprobs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ultramed_rl.learning.checks import check_references
from ultramed_rl.learning.objectives import Answers
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs


class PreferenceData:
    """Groups by index. `lengths` are the tokens that each costs, packed or padded; without references the objective has none."""

    def __init__(
        self,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        max_length: int,
        *,
        packed: bool = True,
    ) -> None:
        if references is not None:
            check_references(groups, references)
        self.groups, self.references, self.max_length = groups, references, max_length
        self._packed = packed
        self.lengths = [self._cost(i) for i in range(len(groups))]

    def add(self, groups: Sequence[PreferenceGroup], references: Sequence[ReferenceLogprobs] | None) -> None:
        """More groups, after those that there are."""
        assert (references is None) == (self.references is None), "with references all of them, or none"
        if references is not None and self.references is not None:
            check_references(groups, references)
            self.references = [*self.references, *references]
        before = len(self.groups)
        self.groups = [*self.groups, *groups]
        self.lengths.extend(self._cost(i) for i in range(before, len(self.groups)))

    def _cost(self, index: int) -> int:
        answers = self.answers_of(index)
        return answers.packed_tokens if self._packed else answers.padded_tokens

    def answers_of(self, index: int) -> AnswerGroup:
        """A group's token ids."""
        group = self.groups[index]
        return AnswerGroup(group.prompt.token_ids, [c.token_ids for c in group.completions])

    def answer_count(self, index: int) -> int:
        """How many answers a group has."""
        return len(self.groups[index].completions)

    def mismatched_of(self, index: int) -> AnswerGroup:
        """A group's prompt with another's answer, see `mismatched_answer`."""
        group = self.groups[index]
        return AnswerGroup(group.prompt.token_ids, [mismatched_answer(self.groups, index, self.max_length)])

    def answers(self, indices: Sequence[int], logprobs: torch.Tensor) -> Answers:
        """The policy's logprobs [A] of these groups' answers, with all that an objective asks for."""
        groups = [self.groups[i] for i in indices]
        sizes = [len(g.completions) for g in groups]

        def tensor(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=logprobs.device)

        reference = [0.0] * sum(sizes)
        if self.references is not None:
            reference = [value for i in indices for value in self.references[i].logprobs]
        wanted = [place < g.desirable for g in groups for place in range(len(g.completions))]
        return Answers(
            logprobs=logprobs,
            reference=tensor(reference),
            lengths=tensor([len(c.token_ids) for g in groups for c in g.completions]),
            rewards=tensor([r for g in groups for r in g.rewards]),
            desirable=torch.tensor(wanted, device=logprobs.device),
            group=torch.tensor([k for k, n in enumerate(sizes) for _ in range(n)], device=logprobs.device),
        )

    def mismatched_references(self, indices: Sequence[int]) -> torch.Tensor:
        """[len(indices)] reference logprobs of the mismatched answers."""
        assert self.references is not None
        values = [self.references[i].mismatched for i in indices]
        assert None not in values, "reference logprobs were made without mismatched answers"
        return torch.tensor(values, dtype=torch.float32)


def mismatched_answer(groups: Sequence[PreferenceGroup], index: int, max_length: int) -> Sequence[int]:
    """Another group's answer for KTO's KL estimate (arXiv 2402.01306, section 4.1), cut to fit the context.

    That of the next group with another prompt, in the order given; chosen and rejected answers take turns. Where
    all prompts are the same, the next group's.
    """
    group = groups[index]
    others = (groups[(index + step) % len(groups)] for step in range(1, len(groups)))
    different = (g for g in others if g.prompt.token_ids != group.prompt.token_ids)
    other = next(different, None) or groups[(index + 1) % len(groups)]
    answer = other.completions[index % len(other.completions)].token_ids
    return answer[: max_length - len(group.prompt.token_ids)]


def reference_answers(
    groups: Sequence[PreferenceGroup], mismatched: bool, max_length: int
) -> list[AnswerGroup]:
    """What the reference has to score: each group's answers, and KTO's mismatched one after them."""
    packed = []
    for index, group in enumerate(groups):
        answers = [c.token_ids for c in group.completions]
        if mismatched:
            answers.append(mismatched_answer(groups, index, max_length))
        packed.append(AnswerGroup(group.prompt.token_ids, answers))
    return packed


def read_reference(group_id: str, answers: int, numbers: Sequence[float]) -> ReferenceLogprobs:
    """A group's logprobs out of what the reference said of `reference_answers`: as many as there are answers, then
    perhaps the mismatched one's."""
    rest = numbers[answers] if len(numbers) > answers else None
    return ReferenceLogprobs(group_id, tuple(numbers[:answers]), rest)
