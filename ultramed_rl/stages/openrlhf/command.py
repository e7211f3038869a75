"""The command line of OpenRLHF 0.11.2 for a stage's config, and the environment of its job."""

from __future__ import annotations

import os
from pathlib import Path

from ultramed_rl.config import ConfigError
from ultramed_rl.config.objectives import DPO, IPO
from ultramed_rl.config.stages import BradleyTerry, RewardConfig, SftConfig, StageConfig
from ultramed_rl.models.offline import resolve_model
from ultramed_rl.stages.openrlhf.limits import openrlhf_problems

Flag = str | int | float | bool | list[str] | None
_MODULES = {"sft": "train_sft", "reward": "train_rm", "preference": "train_dpo"}
# Nothing of the machine or the code is collected.
_NOT_COLLECTED = tuple(
    f"WANDB_{n}" for n in ["DISABLE_CODE", "DISABLE_GIT", "X_DISABLE_META", "X_DISABLE_STATS"]
)
_ALL_SAMPLES = 10**12  # OpenRLHF's default would cut the data after a million
# OpenRLHF wants a key to turn wandb on, but looks into the environment first: the real one stays there.
_KEY_IN_ENVIRONMENT = "in-the-environment-as-WANDB_API_KEY"


def openrlhf_command(
    config: StageConfig, train_path: Path, held_out_path: Path | None, output: Path
) -> list[str]:
    """Trains on files of `write_openrlhf_data`, from states that a killed run left in `states_directory(output)`.

    Raises:
        ConfigError: a value that OpenRLHF cannot honour, or a path that it would misread; a line each.
    """
    problems = openrlhf_problems(config) + [
        f"{path}: OpenRLHF reads ',' and '@' in a path as signs of its own; use a run.directory without them"
        for path in (train_path, held_out_path)
        if set(",@") & set(str(path))
    ]
    if problems:
        raise ConfigError(problems)
    # torchrun takes the GPUs that Ray assigned and a free port; DeepSpeed's launcher fixes the port.
    launcher = f"python -m torch.distributed.run --standalone --nproc_per_node={config.cluster.trainer.ranks}"
    command = [*launcher.split(), "-m", f"openrlhf.cli.{_MODULES[config.type]}"]
    states = states_directory(output)
    flags: dict[str, Flag] = {
        "data.dataset": str(train_path),
        "data.max_samples": _ALL_SAMPLES,
        "eval.dataset": str(held_out_path) if held_out_path else None,
        "eval.split": "train" if held_out_path else None,  # what a file without splits is called
        "data.apply_chat_template": True,
        # Room for the space and the end token that it may append: what fits is neither cut nor dropped.
        "data.max_len": config.model.max_length + 2,
        "ckpt.output_dir": str(output),
        "ckpt.path": str(states),
        "ckpt.save_steps": config.training.save_every,
        "ckpt.max_num": 2,  # the oldest goes before the newest is whole
        "ckpt.load_enable": states.is_dir(),
        **_training_flags(config),
        **_objective_flags(config),
    }
    for name, value in flags.items():
        if value is not None and value is not False:  # true stands alone, a list follows its flag
            values = value if isinstance(value, list) else [str(value)]
            command += [f"--{name}", *([] if value is True else values)]
    return command


def states_directory(output: Path) -> Path:
    """Where OpenRLHF keeps the states from which a killed run goes on. To be removed when all is done."""
    return output.with_name(f"{output.name}.openrlhf-states")


def openrlhf_environment(config: StageConfig, output: Path) -> dict[str, str]:
    """The job's variables. The key of wandb isn't among them: it is in the environment that Ray was started in."""
    tracking, cluster = config.tracking, config.cluster
    auto = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    # Both Ray and torchrun would set it to one, and optimizer offload computes on the CPU.
    threads = (cluster.cpus_per_node or os.cpu_count() or 1) // cluster.devices_per_node
    return {
        "OMP_NUM_THREADS": str(max(1, threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": auto if tracking.wandb == "auto" else tracking.wandb,
        "WANDB_DIR": str(output.parent),
        "WANDB_TAGS": ",".join(tracking.tags),
        **dict.fromkeys(_NOT_COLLECTED, "true"),
        "WANDB_CONSOLE": "off",
    }


def _training_flags(config: StageConfig) -> dict[str, Flag]:
    training, tracking, lora = config.training, config.tracking, config.model.lora
    told, source = tracking.wandb != "disabled", resolve_model(config.model.path)
    # As many samples as fit when each is as long as may be; a pair's two answers are computed apart, each with the prompt.
    fit = training.micro_batch_tokens // (config.model.max_length * (1 if config.type == "sft" else 2))
    share = training.batch_size // config.cluster.trainer.ranks  # DeepSpeed wants whole passes
    micro_batch = max(n for n in range(1, min(max(1, fit), share) + 1) if share % n == 0)
    # The default of OpenRLHF is all-linear, which on the command line would be the name of a layer.
    modules = lora.target_modules if lora and lora.target_modules != "all-linear" else None
    return {
        "model.model_name_or_path": str(Path(source).resolve()) if Path(source).is_dir() else source,
        "model.gradient_checkpointing_enable": training.gradient_checkpointing,
        "ds.param_dtype": "bf16",
        "ds.packing_samples": True,
        "ds.zero_stage": config.cluster.trainer.zero_stage,
        "ds.adam_offload": config.cluster.trainer.offload_optimizer,
        "ds.lora.rank": lora.rank if lora else None,
        "ds.lora.alpha": lora.alpha if lora else None,
        "ds.lora.target_modules": modules,
        "ds.load_in_4bit": bool(lora and lora.quantize),
        "train.batch_size": training.batch_size,
        "train.micro_batch_size": micro_batch,
        "train.max_epochs": training.epochs,
        "train.seed": config.run.seed,
        "adam.lr": training.learning_rate,
        "adam.weight_decay": training.weight_decay,
        # transformers' names
        "lr_scheduler": "constant_with_warmup" if training.schedule == "constant" else training.schedule,
        "lr_warmup_ratio": training.warmup,
        "max_norm": training.max_grad_norm,
        "eval.steps": training.evaluate_every,
        "logger.wandb.key": _KEY_IN_ENVIRONMENT if told else None,
        "logger.wandb.project": tracking.project if told else None,
        "logger.wandb.group": tracking.group if told else None,
        "logger.wandb.run_name": config.run.name if told else None,
    }


def _objective_flags(config: StageConfig) -> dict[str, Flag]:
    """The loss, and the columns that it learns from."""
    if isinstance(config, SftConfig):
        return {"data.input_key": "messages", "data.multiturn": True}
    objective = config.objective
    flags: dict[str, Flag] = {f"data.{name}_key": name for name in ("prompt", "chosen", "rejected")}
    if isinstance(config, RewardConfig):
        return flags | {
            "model.loss_type": "sigmoid" if isinstance(objective, BradleyTerry) else "logexp",
            "model.margin_loss_enable": getattr(objective, "margin", "none") != "none",
            "model.compute_fp32_loss_enable": True,
            "ds.value_head_prefix": "score",
        }
    assert isinstance(objective, DPO | IPO)
    return flags | {
        "model.beta": objective.beta,
        "model.ipo_enable": isinstance(objective, IPO),
        "model.label_smoothing": objective.label_smoothing if isinstance(objective, DPO) else None,
        "model.nll_loss_coef": objective.nll_weight,
    }
