"""What OpenRLHF 0.11.2 cannot do of a stage's config. Nothing that was asked for is left out in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ultramed_rl.config.models import Model
from ultramed_rl.config.objectives import DPO, IPO
from ultramed_rl.config.stages import BradleyTerry, PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.config.training import StageTraining

_NATIVE = "or use engine=native"
# Nobody asked for what stands at its default: OpenRLHF has no such guard, and `adopt_openrlhf` looks at the result.
_SKIPPED_STEPS = StageTraining.model_fields["max_skipped_steps"].default


def openrlhf_problems(config: SftConfig | RewardConfig | PreferenceConfig) -> list[str]:
    """Every value that OpenRLHF cannot honour, as a line with value, rule and cure; none when it can run it."""
    problems = [*_training_problems(config), *_model_problems(config.model), *_cluster_problems(config)]
    if isinstance(config, RewardConfig):
        problems += _reward_problems(config)
    if isinstance(config, PreferenceConfig):
        problems += _preference_problems(config)
    return problems


def _training_problems(config: SftConfig | RewardConfig | PreferenceConfig) -> Iterator[str]:
    training = config.training
    if training.max_steps is not None:
        yield (
            f"training.max_steps={training.max_steps}: OpenRLHF trains whole epochs; set training.epochs and the "
            f"sources' limit, {_NATIVE}"
        )
    if training.patience is not None:
        yield f"training.patience={training.patience}: OpenRLHF does not stop early; remove it, {_NATIVE}"
    if training.keep == "best":
        yield f"training.keep='best': OpenRLHF keeps the last weights; use training.keep=last, {_NATIVE}"
    if training.max_skipped_steps != _SKIPPED_STEPS:
        yield (
            f"training.max_skipped_steps={training.max_skipped_steps}: OpenRLHF counts no skipped steps; remove it, "
            f"{_NATIVE}"
        )
    if config.run.seed >= 2**32:
        yield f"run.seed={config.run.seed}: OpenRLHF seeds numpy, which takes less than {2**32}; lower it, {_NATIVE}"
    ranks = config.cluster.trainer.ranks
    if training.batch_size % ranks:
        yield (
            f"training.batch_size={training.batch_size}: OpenRLHF gives every rank equally many samples of a batch; "
            f"use a multiple of cluster.trainer.ranks={ranks}, {_NATIVE}"
        )


def _model_problems(model: Model) -> Iterator[str]:
    if model.precision == "float32":
        yield f"model.precision='float32': OpenRLHF computes in bfloat16; use model.precision=auto, {_NATIVE}"
    if not model.trust_remote_code and not _has_no_code(model.path):
        yield (
            "model.trust_remote_code=false: OpenRLHF always runs the code that a checkpoint brings; give a local "
            f"copy that has no auto_map as model.path={model.path!r}, set it to true, {_NATIVE}"
        )
    if model.chat_template is not None:
        yield (
            f"model.chat_template={model.chat_template!r}: OpenRLHF takes the tokenizer's own; save it in the "
            f"checkpoint, {_NATIVE}"
        )


def _has_no_code(path: str) -> bool:
    """Whether a model is on this disk, and names no code of its own."""
    folder = Path(path).expanduser()
    files = [folder / name for name in ("config.json", "tokenizer_config.json")]
    return path.startswith(("offline://", "stage://")) or (
        files[0].is_file() and not any("auto_map" in _read(file) for file in files if file.is_file())
    )


def _read(file: Path) -> dict[str, object]:
    try:
        content: dict[str, object] = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"model.path: {file}: not JSON ({error}); mend it") from None
    return content


def _cluster_problems(config: SftConfig | RewardConfig | PreferenceConfig) -> Iterator[str]:
    cluster, trainer = config.cluster, config.cluster.trainer
    if cluster.nodes > 1:
        yield (
            f"cluster.nodes={cluster.nodes}: OpenRLHF's launcher reaches other nodes by ssh, which a Ray job has "
            f"not; use cluster.nodes=1, {_NATIVE}"
        )
    elif trainer.ranks > cluster.devices_per_node:
        yield (
            f"cluster.trainer.ranks={trainer.ranks}: OpenRLHF's ranks share one node; at most "
            f"cluster.devices_per_node={cluster.devices_per_node} fit"
        )
    if config.model.lora is not None and trainer.zero_stage == 3:
        yield (
            "cluster.trainer.zero_stage=3: OpenRLHF then saves LoRA adapters as a pickle, which is never loaded "
            f"here; use zero_stage <= 2, {_NATIVE}"
        )


def _reward_problems(config: RewardConfig) -> Iterator[str]:
    objective = config.objective
    if isinstance(objective, BradleyTerry) and objective.centering:
        yield f"objective.centering={objective.centering:g}: OpenRLHF's loss has no such term; use 0, {_NATIVE}"
    if config.trainable_layers is not None:
        yield (
            f"trainable_layers={config.trainable_layers}: OpenRLHF trains all layers of a reward model; remove it, "
            f"{_NATIVE}"
        )
    if not config.data.held_out and not config.data.evaluation_sources:
        yield (
            "data.held_out=0: OpenRLHF's reward trainer would evaluate on 1 % of its own training data; set "
            f"data.held_out or data.evaluation_sources, {_NATIVE}"
        )
    if _is_classifier(config.model.path):
        yield (
            f"model.path={config.model.path!r}: is a reward model already, and OpenRLHF would draw its head anew; "
            f"start from a causal language model, {_NATIVE}"
        )


def _is_classifier(path: str) -> bool:
    file = Path(path).expanduser() / "config.json"
    return file.is_file() and any("SequenceClassification" in str(a) for a in _architectures(file))


def _architectures(file: Path) -> list[object]:
    found = _read(file).get("architectures")
    return found if isinstance(found, list) else []


def _preference_problems(config: PreferenceConfig) -> Iterator[str]:
    objective = config.objective
    if not isinstance(objective, DPO | IPO):
        yield f"objective.type={objective.type!r}: OpenRLHF has dpo and ipo; use one of them, {_NATIVE}"
    elif objective.length_normalized:
        yield (
            f"objective.length_normalized=true: OpenRLHF's {objective.type} sums log-ratios; set it to false, "
            f"{_NATIVE}"
        )
