"""What OpenRLHF 0.11.2 cannot do of a stage's config. Nothing that was asked for is left out in silence."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from typing import Any

from ultramed_rl.config.rounds import StageTraining
from ultramed_rl.config.stages import StageConfig

# By the key whose value cannot be honoured: why, and what to do instead of engine=native.
_WHY = {
    "training.max_steps": "OpenRLHF trains whole epochs; set training.epochs and the sources' limit",
    "training.patience": "OpenRLHF does not stop early; remove it",
    "training.keep": "OpenRLHF keeps the last weights; use training.keep=last",
    "training.max_skipped_steps": "OpenRLHF counts no skipped steps; remove it",
    "training.batch_size": "OpenRLHF gives every rank equally many samples of a batch; use a multiple of cluster.trainer.ranks={config.cluster.trainer.ranks}",
    "run.seed": "OpenRLHF seeds numpy, which takes less than 4294967296; lower it",
    "model.precision": "OpenRLHF computes in bfloat16; use model.precision=auto",
    "model.trust_remote_code": "OpenRLHF always runs the code that a checkpoint brings; give a local copy that has no auto_map as model.path={config.model.path!r}, set it to true",
    "model.chat_template": "OpenRLHF takes the tokenizer's own; save it in the checkpoint",
    "model.path": "is a reward model already, and OpenRLHF would draw its head anew; start from a causal language model",
    "cluster.nodes": "OpenRLHF's launcher reaches other nodes by ssh, which a Ray job has not; use cluster.nodes=1",
    "cluster.trainer.ranks": "OpenRLHF's ranks share one node; at most cluster.devices_per_node={config.cluster.devices_per_node} fit; lower it",
    "cluster.trainer.zero_stage": "OpenRLHF then saves LoRA adapters as a pickle, which is never loaded here; use zero_stage <= 2",
    "objective.centering": "OpenRLHF's loss has no such term; use 0",
    "objective.type": "OpenRLHF has dpo and ipo; use one of them",
    "objective.length_normalized": "OpenRLHF's {config.objective.type} sums log-ratios; set it to false",
    "trainable_layers": "OpenRLHF trains all layers of a reward model; remove it",
    "data.held_out": "OpenRLHF's reward trainer would evaluate on 1 % of its own training data; set data.held_out or data.evaluation_sources",
}
# Nobody asked for what stands at its default: OpenRLHF has no such guard, and `adopt_openrlhf` looks at the result.
_SKIPPED_STEPS = StageTraining.model_fields["max_skipped_steps"].default


def openrlhf_problems(config: StageConfig) -> list[str]:
    """Every value that OpenRLHF cannot honour, as a line with value, rule and fix; none when it can run it."""
    values = {
        key: reduce(getattr, key.split("."), config) for key, broken in _broken(config).items() if broken
    }
    shown = {key: str(v).lower() if isinstance(v, bool) else repr(v) for key, v in values.items()}
    return [f"{key}={shown[key]}: {_WHY[key].format(config=config)}, or use engine=native" for key in values]


def _broken(config: Any) -> dict[str, bool]:
    """By key, whether its value cannot be honoured."""
    training, model, cluster, data = config.training, config.model, config.cluster, config.data
    ranks, objective = cluster.trainer.ranks, getattr(config, "objective", None)
    ranks_rewards, prefers = config.type == "reward", config.type == "preference"
    classes = _read(Path(model.path).expanduser() / "config.json").get("architectures")
    known = prefers and getattr(objective, "type", "") in ("dpo", "ipo")
    return {
        "training.max_steps": training.max_steps is not None,
        "training.patience": training.patience is not None,
        "training.keep": training.keep == "best",
        "training.max_skipped_steps": training.max_skipped_steps != _SKIPPED_STEPS,
        "training.batch_size": training.batch_size % ranks > 0,
        "run.seed": config.run.seed >= 2**32,
        "model.precision": model.precision == "float32",
        "model.trust_remote_code": not model.trust_remote_code and not _has_no_code(model.path),
        "model.chat_template": model.chat_template is not None,
        "model.path": ranks_rewards and "SequenceClassification" in str(classes),
        "cluster.nodes": cluster.nodes > 1,
        "cluster.trainer.ranks": cluster.nodes == 1 and ranks > cluster.devices_per_node,
        "cluster.trainer.zero_stage": model.lora is not None and cluster.trainer.zero_stage == 3,
        "objective.centering": ranks_rewards and getattr(objective, "centering", 0.0) > 0,
        "objective.type": prefers and not known,
        "objective.length_normalized": known and getattr(objective, "length_normalized", False),
        "trainable_layers": getattr(config, "trainable_layers", None) is not None,
        "data.held_out": ranks_rewards and not data.held_out and not data.evaluation_sources,
    }


def _has_no_code(path: str) -> bool:
    """Whether a model is on this disk, and names no code of its own."""
    files = [Path(path).expanduser() / name for name in ("config.json", "tokenizer_config.json")]
    known = files[0].is_file() and not any("auto_map" in _read(file) for file in files)
    return known or path.startswith(("offline://", "stage://"))


def _read(file: Path) -> dict[str, object]:
    """A model's JSON file; nothing where it isn't on this disk."""
    try:
        content: dict[str, object] = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"model.path: {file}: not JSON ({error}); mend it") from None
    return content
