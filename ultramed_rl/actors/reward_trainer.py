"""The ranks that train a reward model, on the same DeepSpeed worker as the policy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.tasks import RankingTask
from ultramed_rl.actors.trainer import TrainWorker
from ultramed_rl.config.models import Model
from ultramed_rl.config.stages import BradleyTerry, LogExp
from ultramed_rl.learning.checks import check_groups
from ultramed_rl.models.load import RewardModel, load_reward
from ultramed_rl.records import PreferenceGroup


class RewardTrainWorker(TrainWorker):
    """One rank of the reward model's training."""

    def load(
        self,
        model: Model,
        spec: EngineSpec,
        address: tuple[str, int],
        trainable_layers: int | None = None,
    ) -> None:
        """Load a starting model with a one-label head. Collective."""

        def module_of(spec: EngineSpec) -> RewardModel:
            module = load_reward(model.path, spec.precision, trust_remote_code=model.trust_remote_code)
            if trainable_layers is not None:
                freeze_below(module, trainable_layers)
            return module

        self.build(module_of, model, spec, address)

    def learn_ranking(
        self,
        groups: Sequence[PreferenceGroup],
        objective: BradleyTerry | LogExp,
        max_length: int,
        held_out: Sequence[PreferenceGroup] | None = None,
    ) -> None:
        """Set the task: each group's better answers above its worse ones.

        Raises:
            ValueError: groups that cannot be learnt from, with their ids, before anything is computed.
        """

        def task(groups: Sequence[PreferenceGroup]) -> RankingTask:
            check_groups(groups, self.shape.vocab, max_length, paired=True)
            return RankingTask(self.engine, self.shape, groups, objective)

        self.set_task(task(groups), task(held_out) if held_out else None)


def freeze_below(module: RewardModel, layers: int) -> None:
    """Leave only the last `layers` decoder layers, the final norm and the head trainable."""
    decoder = module.lm.get_decoder()
    decoder.requires_grad_(False)
    parts = [*decoder.children()]
    stack = next(place for place, part in enumerate(parts) if isinstance(part, nn.ModuleList))
    for part in (*parts[stack][-layers:], *parts[stack + 1 :]):  # the norm comes after its layers
        part.requires_grad_(True)
