"""The training set of a round: preference groups beside their reference logprobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ultramed_rl.learning.checks import check_references
from ultramed_rl.learning.objectives import Answers
from ultramed_rl.learning.packing import AnswerGroup, PackedBatch, sum_first
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs


@dataclass
class GroupIndex:
    """What every rank knows of all groups, at hand or not: their ids, how many answers each has, and the tokens that it
    costs in a forward pass, packed or padded."""

    ids: list[str]
    answers: list[int]
    tokens: list[int]


class PreferenceSet:
    """Groups by index, with their reference logprobs; without these the objective has no reference.

    Of the groups of other ranks only `index` is known. With `chosen_only` nothing but each group's first answer is computed.
    """

    def __init__(
        self,
        groups: Sequence[PreferenceGroup],
        references: Mapping[int, ReferenceLogprobs] | Sequence[ReferenceLogprobs] | None,
        max_length: int,
        index: GroupIndex,
        chosen_only: bool = False,
    ) -> None:
        self.groups, self.references, self.max_length, self.index = groups, references, max_length, index
        self.chosen_only = chosen_only

    @classmethod
    def at_hand(
        cls,
        groups: Sequence[PreferenceGroup],
        references: Sequence[ReferenceLogprobs] | None,
        max_length: int,
        *,
        packed: bool = True,
        chosen_only: bool = False,
    ) -> PreferenceSet:
        """Of groups that are all here. Raises ValueError for references of others."""
        if references is not None:
            check_references(groups, references)
        answers = [AnswerGroup.of(group) for group in groups]
        counts, tokens = [len(a.answers) for a in answers], [a.cost(packed) for a in answers]
        index = GroupIndex([g.group_id for g in groups], counts, tokens)
        return cls(groups, references, max_length, index, chosen_only)

    def extended(self, more: PreferenceSet) -> PreferenceSet:
        """With more groups after these; all are here."""
        assert (more.references is None) == (self.references is None), "with references all of them, or none"
        references = None if self.references is None else [*self.references, *(more.references or ())]
        own, others = self.index, more.index
        index = GroupIndex(own.ids + others.ids, own.answers + others.answers, own.tokens + others.tokens)
        groups = [*self.groups, *more.groups]
        return PreferenceSet(groups, references, self.max_length, index, self.chosen_only)

    def group(self, index: int) -> PreferenceGroup:
        """A group, with the answers that are computed."""
        group = self.groups[index]
        if not self.chosen_only:
            return group
        return replace(group, completions=group.completions[:1], rewards=group.rewards[:1])

    def answers_of(self, index: int) -> AnswerGroup:
        """A group's token ids."""
        return AnswerGroup.of(self.group(index))

    def mismatched_of(self, index: int) -> AnswerGroup:
        """A group's prompt with another's answer, see `mismatched_answer`."""
        prompt = self.groups[index].prompt.token_ids
        return AnswerGroup(prompt, [mismatched_answer(self.groups, index, self.max_length)])

    def answers(self, indices: Sequence[int], logprobs: torch.Tensor) -> Answers:
        """The policy's logprobs [A] of these groups' answers, with all that an objective asks for."""
        groups = [self.group(i) for i in indices]
        sizes = [len(g.completions) for g in groups]
        reference = [0.0] * sum(sizes)
        if self.references is not None:
            reference = [value for i in indices for value in self.references[i].logprobs]
        lengths = [len(c.token_ids) for g in groups for c in g.completions]
        rewards = [r for g in groups for r in g.rewards]
        wanted = [place < g.desirable for g in groups for place in range(len(g.completions))]
        columns = torch.tensor([reference, lengths, rewards, wanted], dtype=torch.float32)
        # At once: each copy has its price.
        reference_logprobs, tokens, scores, desirable = columns.to(logprobs.device, non_blocking=True)
        return Answers(logprobs, reference_logprobs, tokens, scores, desirable.bool(), tuple(sizes))

    def shared_logratios(
        self, indices: Sequence[int], logprobs: torch.Tensor, packed: PackedBatch
    ) -> torch.Tensor:
        """[A] log pi - log pi_ref of each answer's tokens up to the length of its group's shortest, of the [N] token logprobs
        of these groups; of two answers at most one is longer."""
        assert self.references is not None
        counts, reference = list[int](), list[float]()
        for i in indices:
            lengths = [len(answer.token_ids) for answer in self.groups[i].completions]
            known = self.references[i]
            counts += [min(lengths)] * len(lengths)
            for length, value in zip(lengths, known.logprobs, strict=True):
                cut = value if length == min(lengths) else known.beside
                assert cut is not None, "reference logprobs were made without the longer answer's beginning"
                reference.append(cut)
        return sum_first(logprobs, packed, counts) - torch.tensor(reference).to(
            logprobs.device, non_blocking=True
        )

    def mismatched_references(self, indices: Sequence[int], device: torch.device) -> torch.Tensor:
        """[len(indices)] reference logprobs of the mismatched answers."""
        assert self.references is not None
        values = [self.references[i].beside for i in indices]
        assert None not in values, "reference logprobs were made without mismatched answers"
        return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)


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
    groups: Sequence[PreferenceGroup], index: int, beside: str, max_length: int
) -> AnswerGroup:
    """What the reference has to score of a group: its answers, and after them KTO's `mismatched` one, or LD-DPO's: the longer
    one `cut` as short as the other."""
    own = AnswerGroup.of(groups[index])
    extra: list[Sequence[int]] = []
    if beside == "mismatched":
        extra = [mismatched_answer(groups, index, max_length)]
    elif beside == "cut":
        shortest = min(map(len, own.answers))
        extra = [answer[:shortest] for answer in own.answers if len(answer) > shortest]
    return AnswerGroup(own.prompt, [*own.answers, *extra])


def read_reference(group_id: str, answers: int, numbers: Sequence[float]) -> ReferenceLogprobs:
    """A group's logprobs out of what the reference said of `reference_answers`: as many as there are answers, then
    perhaps that of one beside them."""
    beside = numbers[answers] if len(numbers) > answers else None
    return ReferenceLogprobs(group_id, tuple(numbers[:answers]), beside)
