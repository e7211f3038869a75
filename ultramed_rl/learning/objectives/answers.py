"""What every objective is a function of: the answers of a micro-batch and their logprobs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Answers:
    """A answers of G groups, laid out group after group, each group's preferred answers first."""

    logprobs: torch.Tensor  # [A] log pi of whole answers, in nats; carries the gradient
    reference: torch.Tensor  # [A] log pi_ref, in nats; zeros where the objective has no reference
    lengths: torch.Tensor  # [A] tokens of each answer
    rewards: torch.Tensor  # [A] the scores that ordered the groups
    desirable: torch.Tensor  # [A] bool, whether the answer is wanted
    sizes: tuple[
        int, ...
    ]  # answers of each group; on the host, as whoever asks the device for a place waits for it
    # [A] log pi - log pi_ref of an answer's tokens up to the length of its group's shortest, where the objective asks for it
    shared: torch.Tensor | None = None
    weights: torch.Tensor | None = None  # [A] of answers under the policy, without gradient; likewise

    @property
    def groups(self) -> int:
        """G."""
        return len(self.sizes)

    @cached_property
    def _places(self) -> tuple[torch.Tensor, ...]:
        """[A] index of each answer's group, [G] place of each group's first answer, [G] of its last; sent at once."""
        group = [index for index, size in enumerate(self.sizes) for _ in range(size)]
        ends = [*accumulate(self.sizes)]
        first = [end - size for end, size in zip(ends, self.sizes, strict=True)]
        places = torch.tensor([*group, *first, *(end - 1 for end in ends)])
        sent = places.to(self.logprobs.device, non_blocking=True)
        return sent.split([len(group), self.groups, self.groups])

    @property
    def group(self) -> torch.Tensor:
        """[A] index of the answer's group, 0 .. G-1, ascending."""
        return self._places[0]

    @property
    def logratios(self) -> torch.Tensor:
        """[A] log pi - log pi_ref."""
        return self.logprobs - self.reference

    def chosen(self, values: torch.Tensor) -> torch.Tensor:
        """Each group's first: [A] -> [G]."""
        return values.index_select(0, self._places[1])

    def rejected(self, values: torch.Tensor) -> torch.Tensor:
        """Each group's last: [A] -> [G]."""
        return values.index_select(0, self._places[2])

    def margin(self, values: torch.Tensor) -> torch.Tensor:
        """Chosen minus rejected: [A] -> [G]."""
        return self.chosen(values) - self.rejected(values)

    def sum_by_group(self, values: torch.Tensor) -> torch.Tensor:
        """[A] -> [G]."""
        return values.new_zeros(self.groups).index_add(0, self.group, values)

    def log_softmax_by_group(self, values: torch.Tensor) -> torch.Tensor:
        """Log of the softmax within each group: [A] -> [A]."""
        maxima = values.new_full((self.groups,), -torch.inf)
        maxima = maxima.scatter_reduce(0, self.group, values.detach(), "amax")[self.group]
        shifted = values - maxima
        return shifted - self.sum_by_group(shifted.exp()).log()[self.group]


def pair_weights(answers: Answers) -> torch.Tensor:
    """WPO's weight of a pair (arXiv 2406.11827, eq. 2): the product of its answers' weights, [G].

    An answer's is the geometric mean over its tokens of pi(token) / sum_v pi(v)^2: 1 where the policy writes tokens as likely
    as it does on average (the paper's sampled alignment).
    """
    assert answers.weights is not None
    return answers.chosen(answers.weights) * answers.rejected(answers.weights)


def chosen_nll(answers: Answers) -> torch.Tensor:
    """RPO's extra term (arXiv 2404.19733, eq. 1): -log pi(chosen) / |chosen|, [G]."""
    return -answers.chosen(answers.logprobs / answers.lengths)
