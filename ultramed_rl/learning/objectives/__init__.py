"""Preference objectives, one file each: functions of `Answers` that give one loss per group (or answer).

`OBJECTIVES` names them as `objective.type` does. To add one: its file here, its constants in
`ultramed_rl.config.objectives`, its line below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ultramed_rl.learning.objectives.answers import Answers, chosen_nll, pair_weights
from ultramed_rl.learning.objectives.apo import apo_down_loss, apo_zero_loss
from ultramed_rl.learning.objectives.bradley_terry import bradley_terry_loss, log_exp_loss
from ultramed_rl.learning.objectives.dpo import dpo_loss
from ultramed_rl.learning.objectives.dpop import dpop_loss
from ultramed_rl.learning.objectives.hinge import hinge_loss
from ultramed_rl.learning.objectives.ipo import ipo_loss
from ultramed_rl.learning.objectives.kto import kl_estimate, kto_loss, kto_pair_loss
from ultramed_rl.learning.objectives.nca import infonca_loss, nca_loss, nca_pair_loss
from ultramed_rl.learning.objectives.orpo import orpo_loss
from ultramed_rl.learning.objectives.r_dpo import r_dpo_loss
from ultramed_rl.learning.objectives.raft import raft_loss
from ultramed_rl.learning.objectives.robust_dpo import robust_dpo_loss
from ultramed_rl.learning.objectives.simpo import simpo_loss
from ultramed_rl.learning.objectives.sppo import sppo_hard_loss, sppo_loss

__all__ = ["OBJECTIVES", "Answers", "bradley_terry_loss", "kl_estimate", "log_exp_loss", "objective_losses"]

_AROUND = {"type", "nll_weight", "policy_weighted"}  # keys that are not of the loss itself


def mixture_loss(answers: Answers, *, parts: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The sum of other objectives' losses, each times its part's `weight`. [G] losses."""
    losses = [part["weight"] * objective_losses(answers, (), part["objective"]) for part in parts]
    return torch.stack(losses).sum(0)


OBJECTIVES: Mapping[str, Callable[..., torch.Tensor]] = {
    "dpo": dpo_loss,
    "robust_dpo": robust_dpo_loss,
    "r_dpo": r_dpo_loss,
    "dpop": dpop_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "sppo_hard": sppo_hard_loss,
    "sppo": sppo_loss,
    "kto": kto_loss,
    "kto_pair": kto_pair_loss,
    "nca_pair": nca_pair_loss,
    "nca": nca_loss,
    "infonca": infonca_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
    "raft": raft_loss,
    "mixture": mixture_loss,
}


def objective_losses(
    answers: Answers, kl: tuple[torch.Tensor, ...], constants: Mapping[str, Any]
) -> torch.Tensor:
    """[G] losses of the objective that `constants` names by its `type` and gives the keys of, or [A] for unpaired KTO. With
    `policy_weighted` each is weighed; a `nll_weight` adds the NLL term. `kl`: the scalars that KTO's variants compare with,
    else nothing."""
    own = {key: value for key, value in constants.items() if key not in _AROUND and value is not None}
    losses = OBJECTIVES[constants["type"]](answers, *kl, **own)
    if constants.get("policy_weighted"):
        losses = pair_weights(answers) * losses
    weight = constants.get("nll_weight", 0.0)
    return losses + weight * chosen_nll(answers) if weight else losses
