"""The preference objectives and their constants. A key that an objective has no use for does not exist.

The maths of each is in the file of the same name under `ultramed_rl.learning.objectives`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ultramed_rl.config.base import Section, key
from ultramed_rl.config.limits import Factor, FactorOrZero, Share

Beside = Literal["none", "mismatched", "cut"]
Beta = Annotated[Factor, Field(description="strength of the pull towards the reference")]
_BALANCED = "null: in preference stages what makes both kinds weigh alike (arXiv 2402.01306, eq. 9), online 1"
Flips = Annotated[Share, Field(lt=0.5, description="share of pairs believed to be the wrong way round")]
NLLWeight = Annotated[
    FactorOrZero, Field(description="weight of the chosen answer's NLL per token (RPO, arXiv 2404.19733)")
]


class _Objective(Section):
    """What every objective tells the rest of the system about itself.

    `listwise` objectives take all answers of a prompt, the others a pair; `unpaired` ones count each answer
    alone; `chosen_only` ones learn a pair's chosen answer, and the other isn't computed. `kl` says what KTO's reference point is estimated on: the batch's own or mismatched answers.
    """

    uses_reference: ClassVar[bool] = True
    listwise: ClassVar[bool] = False
    unpaired: ClassVar[bool] = False
    chosen_only: ClassVar[bool] = False
    kl: ClassVar[Literal["none", "batch", "mismatched"]] = "none"

    @property
    def beside(self) -> Beside:
        """What the reference scores of a group beside its answers."""
        return "mismatched" if self.kl == "mismatched" else "none"


class DPO(_Objective):
    """DPO (arXiv 2305.18290); with `label_smoothing` it is cDPO, with `ld_alpha` LD-DPO, with `policy_weighted` WPO."""

    type: Literal["dpo"] = "dpo"
    beta: Beta = 0.1
    label_smoothing: Flips = 0.0
    length_normalized: bool = key(False, "mean instead of summed log-ratios (Tulu 3, arXiv 2411.15124)")
    ld_alpha: Share = key(
        1.0, "what an answer's tokens beyond the shorter answer's length weigh (LD-DPO, arXiv 2409.06411)"
    )
    policy_weighted: bool = key(
        False, "a pair weighs as much as the policy is likely to write its answers (WPO, arXiv 2406.11827)"
    )
    nll_weight: NLLWeight = 0.0

    @property
    def beside(self) -> Beside:
        return "cut" if self.ld_alpha < 1 else "none"


class RobustDPO(_Objective):
    """DPO that is unbiased under known label noise (arXiv 2403.00409)."""

    type: Literal["robust_dpo"] = "robust_dpo"
    beta: Beta = 0.1
    label_smoothing: Flips = 0.1
    nll_weight: NLLWeight = 0.0


class RDPO(_Objective):
    """Length-regularised DPO (arXiv 2403.19159)."""

    type: Literal["r_dpo"] = "r_dpo"
    beta: Beta = 0.1
    length_weight: Factor = key(0.01, "alpha, of each token that one answer has more than the other")


class DPOP(_Objective):
    """DPO-Positive (arXiv 2402.13228): a chosen answer that becomes less likely costs more."""

    type: Literal["dpop"] = "dpop"
    beta: Beta = 0.1
    penalty: Factor = key(50.0, "lambda, of what the chosen answer lost against the reference")


class IPO(_Objective):
    """IPO (arXiv 2310.12036)."""

    type: Literal["ipo"] = "ipo"
    beta: Beta = 0.1
    length_normalized: bool = key(True, "mean log-ratios, as it experiments; false: sums, as in its eq. 17")
    nll_weight: NLLWeight = 0.0


class Hinge(_Objective):
    """SLiC's hinge on the log-ratios (arXiv 2305.10425, 2309.06657)."""

    type: Literal["hinge"] = "hinge"
    beta: Beta = 0.1
    nll_weight: NLLWeight = 0.0


class APOZero(_Objective):
    """APO-zero (arXiv 2408.06266): chosen answers up, rejected ones down; for answers better than the policy's own."""

    type: Literal["apo_zero"] = "apo_zero"
    beta: Beta = 0.1


class APODown(_Objective):
    """APO-down (arXiv 2408.06266): both down, rejected ones further; for a policy better than the chosen answers."""

    type: Literal["apo_down"] = "apo_down"
    beta: Beta = 0.1


class SPPOHard(_Objective):
    """SPPO on pairs (arXiv 2405.00675): the chosen answer always wins."""

    type: Literal["sppo_hard"] = "sppo_hard"
    beta: Beta = key(0.001, "one over the paper's eta")


class SPPO(_Objective):
    """SPPO over n answers (arXiv 2405.00675), which win as often as their rewards say."""

    listwise: ClassVar[bool] = True
    type: Literal["sppo"] = "sppo"
    beta: Beta = key(0.001, "one over the paper's eta")
    reward_temperature: Factor = key(1.0, "one answer beats another by sigmoid(reward gap / this)")


class KTO(_Objective):
    """Unpaired KTO (arXiv 2402.01306), with the KL of mismatched answers as its reference point."""

    unpaired: ClassVar[bool] = True
    kl: ClassVar[Literal["none", "batch", "mismatched"]] = "mismatched"
    type: Literal["kto"] = "kto"
    beta: Beta = 0.1
    desirable_weight: Factor | None = key(None, f"of chosen answers; {_BALANCED}")
    undesirable_weight: Factor | None = key(None, f"of rejected answers; {_BALANCED}")

    def balanced(self, wanted: int, unwanted: int) -> KTO:
        """With the weights that aren't set chosen so that both kinds weigh alike together: w_D n_D = w_U n_U, where eq. 9
        allows 1 to 1.5 of their ratio. Of two weights the rarer kind's is raised. One kind alone keeps 1."""
        desirable, undesirable = self.desirable_weight, self.undesirable_weight
        if wanted and unwanted:
            ratio = unwanted / wanted
            if desirable is None:
                desirable = max(1.0, ratio) if undesirable is None else undesirable * ratio
            undesirable = desirable / ratio if undesirable is None else undesirable
        weights = {"desirable_weight": desirable or 1.0, "undesirable_weight": undesirable or 1.0}
        return self.model_copy(update=weights)


class KTOPair(_Objective):
    """The paired KTO that UltraMedical trained with (arXiv 2402.01306, both sides of a pair)."""

    kl: ClassVar[Literal["none", "batch", "mismatched"]] = "batch"
    type: Literal["kto_pair"] = "kto_pair"
    beta: Beta = 0.1


class NCAPair(_Objective):
    """NCA for a pair (arXiv 2402.05369)."""

    type: Literal["nca_pair"] = "nca_pair"
    beta: Beta = 0.1
    nll_weight: NLLWeight = 0.0


class NCA(_Objective):
    """NCA over n answers and their rewards (arXiv 2402.05369)."""

    listwise: ClassVar[bool] = True
    type: Literal["nca"] = "nca"
    beta: Beta = 0.1
    reward_temperature: Factor = key(1.0, "alpha of softmax(reward / alpha)")


class InfoNCA(_Objective):
    """InfoNCA over n answers and their rewards (arXiv 2402.05369)."""

    listwise: ClassVar[bool] = True
    type: Literal["infonca"] = "infonca"
    beta: Beta = 0.1
    reward_temperature: Factor = key(1.0, "alpha of softmax(reward / alpha)")


class SimPO(_Objective):
    """SimPO (arXiv 2405.14734): length-normalised, without a reference."""

    uses_reference: ClassVar[bool] = False
    type: Literal["simpo"] = "simpo"
    beta: Beta = 2.0
    gamma: FactorOrZero = key(1.0, "target margin")
    label_smoothing: Flips = 0.0
    nll_weight: NLLWeight = 0.0


class ORPO(_Objective):
    """ORPO (arXiv 2403.07691): NLL of the chosen answer plus an odds-ratio term, without a reference."""

    uses_reference: ClassVar[bool] = False
    type: Literal["orpo"] = "orpo"
    beta: Annotated[Factor, Field(description="the paper's lambda, weight of the odds ratio")] = 0.1


class RAFT(_Objective):
    """Rejection-sampled fine-tuning (arXiv 2304.06767): the NLL of the best answer, per token."""

    uses_reference: ClassVar[bool] = False
    chosen_only: ClassVar[bool] = True
    beta: ClassVar[float] = 1.0  # of the margin that a mixture shows
    type: Literal["raft"] = "raft"


_OfLogratios = DPO | RobustDPO | RDPO | DPOP | IPO | Hinge | APOZero | APODown | SPPOHard
_Summand = _OfLogratios | SPPO | NCAPair | NCA | InfoNCA | SimPO | ORPO | RAFT


class MixturePart(Section):
    """A summand of a mixture."""

    weight: Factor = key(1.0, "of its loss")
    objective: Annotated[_Summand, Field(discriminator="type")] = Field(description="whose loss it is")


class Mixture(Section):
    """A weighted sum of objectives; metrics such as the implicit margin are those of the first."""

    unpaired: ClassVar[bool] = False
    chosen_only: ClassVar[bool] = False
    kl: ClassVar[Literal["none", "batch", "mismatched"]] = "none"
    type: Literal["mixture"] = "mixture"
    parts: list[MixturePart] = Field(min_length=2, max_length=8, description="what is summed")

    @property
    def uses_reference(self) -> bool:
        return any(part.objective.uses_reference for part in self.parts)

    @property
    def listwise(self) -> bool:
        """Whether any of them is; the others then compare the first of n answers with the last."""
        return any(part.objective.listwise for part in self.parts)

    @property
    def beta(self) -> float:
        return self.parts[0].objective.beta

    @property
    def beside(self) -> Beside:
        return "cut" if any(part.objective.beside == "cut" for part in self.parts) else "none"

    @property
    def policy_weighted(self) -> bool:
        return any(getattr(part.objective, "policy_weighted", False) for part in self.parts)

    def problems(self) -> Iterator[str]:
        if self.listwise and self.beside == "cut":
            yield "parts: ld_alpha compares the lengths of two answers, and another part takes all n; use ld_alpha=1"


Objective = Annotated[_Summand | KTO | KTOPair | Mixture, Field(discriminator="type")]
