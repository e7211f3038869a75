"""A stage computed by OpenRLHF 0.11.2's own trainers, from the same config, on one node's GPUs of the Ray cluster.

    config --> command line --> torchrun on a node --> OpenRLHF's checkpoint --> one that the rest reads
    records --> JSON lines ------^

What it cannot do is refused, and nothing that was asked for is left out in silence; what it does in a way of its own is
in docs/recipe.md.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ultramed_rl.cluster.command import run_command
from ultramed_rl.config import ConfigError
from ultramed_rl.config.objectives import DPO, IPO
from ultramed_rl.config.stages import BradleyTerry, RewardConfig, SftConfig, StageConfig
from ultramed_rl.data.stage_data import Prepared
from ultramed_rl.models.checkpoint import read_weights
from ultramed_rl.models.checks import check_reward_model
from ultramed_rl.models.files import resolve_model, split_revision
from ultramed_rl.models.load import ADAPTER_FOLDER, load_policy, save_model, set_padding
from ultramed_rl.models.lora import merged_weights
from ultramed_rl.models.reading import READ_AT
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Conversation, RankedAnswers
from ultramed_rl.stages.loop import data_inputs, write_stage_card
from ultramed_rl.store import StageDirectory
from ultramed_rl.store.atomic import remove, write_json, write_whole
from ultramed_rl.tracking import Progress
from ultramed_rl.tracking.wandb_place import WandbPlace

Flag = str | int | float | bool | list[str] | None
_RESTORED = {"use_cache": True, "output_router_logits": False}  # switched for training, and saved so
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
    "cluster.nodes": "OpenRLHF's launcher reaches other nodes by ssh, which a node of Ray has not; use cluster.nodes=1",
    "cluster.trainer.ranks": "OpenRLHF's ranks share one node; at most cluster.devices_per_node={config.cluster.devices_per_node} fit; lower it",
    "cluster.trainer.zero_stage": "OpenRLHF then saves LoRA adapters as a pickle, which is never loaded here; use zero_stage <= 2",
    "cluster.trainer.sequence_parallel": "OpenRLHF's ranks are asked for no part of a row; use 1",
    "objective.centering": "OpenRLHF's loss has no such term; use 0",
    "objective.type": "OpenRLHF has dpo and ipo; use one of them",
    "objective.length_normalized": "OpenRLHF's {config.objective.type} sums log-ratios; set it to false",
    "objective.ld_alpha": "OpenRLHF has no LD-DPO; use 1.0",
    "objective.policy_weighted": "OpenRLHF has no WPO; set it to false",
    "trainable_layers": "OpenRLHF trains all layers of a reward model; remove it",
    "data.held_out": "OpenRLHF's reward trainer would evaluate on 1 % of its own training data; set data.held_out or data.evaluation_sources",
}


def train_by_openrlhf(
    config: StageConfig, prepared: Prepared[Any], store: StageDirectory, progress: Progress
) -> tuple[Path, dict[str, float]]:
    """Write the rows that fit, train on a node, keep the model. A killed stage goes on from its own states."""

    def write(directory: Path) -> dict[str, float]:
        with progress.phase("prepare data", 1, "data sets") as bar:
            training = write_openrlhf_data(directory / "training.jsonl", prepared.training_rows(), config)
            held_out = 0
            if config.data.held_out or config.data.evaluation_sources:
                held_out = write_openrlhf_data(directory / "held_out.jsonl", prepared.held_out_rows(), config)
            bar.advance(1)
        return {"rows_training": training, "rows_held_out": held_out}

    data, counts = store.artifacts.phase_directory("data", write, *data_inputs(config))
    held_out = data / "held_out.jsonl" if counts["rows_held_out"] else None
    output = store.path / "openrlhf"

    def train(directory: Path) -> dict[str, float]:
        submit_openrlhf(config, data / "training.jsonl", held_out, output)
        shutil.copytree(output, directory, dirs_exist_ok=True)
        write_stage_card(config, store, directory, counts)
        return counts

    path, metrics = store.artifacts.phase_directory("model", train)
    remove(output)
    remove(states_directory(output))
    return path, metrics


def submit_openrlhf(config: StageConfig, train_path: Path, held_out_path: Path | None, output: Path) -> None:
    """Train by OpenRLHF on a node of the Ray cluster, its log on stdout, and make its checkpoint one that the rest reads.

    Raises:
        ValueError: a value that OpenRLHF cannot honour, or less data than one batch.
        RuntimeError: it failed (with its last lines and the fix), or its weights aren't finite.
    """
    train_path, output = train_path.resolve(), output.resolve()
    command = openrlhf_command(config, train_path, held_out_path and held_out_path.resolve(), output)
    with train_path.open("rb") as lines:
        rows = sum(1 for _ in lines)
    if rows < config.training.batch_size:
        raise ValueError(
            f"training.batch_size={config.training.batch_size}: OpenRLHF takes whole batches and there are {rows} "
            "samples; lower it or give more data"
        )
    variables = openrlhf_environment(config, output)
    run_command(command, config.cluster, gpus=config.cluster.trainer.ranks, variables=variables)
    adopt_openrlhf(output, config)


def openrlhf_problems(config: Any) -> list[str]:
    """Every value of a stage's config that OpenRLHF cannot honour, as a line with value, rule and fix."""
    training, model, cluster, data = config.training, config.model, config.cluster, config.data
    ranks, objective = cluster.trainer.ranks, getattr(config, "objective", None)
    ranks_rewards, prefers = config.type == "reward", config.type == "preference"
    known = prefers and getattr(objective, "type", "") in ("dpo", "ipo")
    own, tokenizer = (_read_model(model.path, name) for name in ("config.json", "tokenizer_config.json"))
    ours = model.path.startswith(("offline://", "stage://"))
    no_code = ours or bool(own and "auto_map" not in own | tokenizer)
    # Nobody asked for what stands at its default: OpenRLHF has no such guard, `adopt_openrlhf` looks at the result.
    guard = type(training).model_fields["max_skipped_steps"].default
    broken = {
        "training.max_steps": training.max_steps is not None,
        "training.patience": training.patience is not None,
        "training.keep": training.keep == "best",
        "training.max_skipped_steps": training.max_skipped_steps != guard,
        "training.batch_size": training.batch_size % ranks > 0,
        "run.seed": config.run.seed >= 2**32,
        "model.precision": model.precision == "float32",
        "model.trust_remote_code": not (model.trust_remote_code or no_code),
        "model.chat_template": model.chat_template is not None,
        "model.path": ranks_rewards and "SequenceClassification" in str(own.get("architectures")),
        "cluster.nodes": cluster.nodes > 1,
        "cluster.trainer.ranks": cluster.nodes == 1 and ranks > cluster.devices_per_node,
        "cluster.trainer.zero_stage": model.lora is not None and cluster.trainer.zero_stage == 3,
        "cluster.trainer.sequence_parallel": cluster.trainer.sequence_parallel > 1,
        "objective.centering": ranks_rewards and getattr(objective, "centering", 0.0) > 0,
        "objective.type": prefers and not known,
        "objective.length_normalized": known and getattr(objective, "length_normalized", False),
        "objective.ld_alpha": known and getattr(objective, "ld_alpha", 1.0) < 1,
        "objective.policy_weighted": known and getattr(objective, "policy_weighted", False),
        "trainable_layers": getattr(config, "trainable_layers", None) is not None,
        "data.held_out": ranks_rewards and not data.held_out and not data.evaluation_sources,
    }
    values = {key: reduce(getattr, key.split("."), config) for key, is_broken in broken.items() if is_broken}
    shown = {key: str(v).lower() if isinstance(v, bool) else repr(v) for key, v in values.items()}
    found = [f"{key}={shown[key]}: {_WHY[key].format(config=config)}, or use engine=native" for key in values]
    if split_revision(model.path)[1] is not None:
        found.append(
            f"model.path={model.path!r}: OpenRLHF takes no revision; give a folder, or use engine=native"
        )
    return found


def _read_model(path: str, name: str) -> dict[str, object]:
    """A model's JSON file; nothing where it isn't on this disk."""
    file = Path(path).expanduser() / name
    try:
        return dict(json.loads(file.read_bytes())) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"model.path: {file}: not JSON ({error}); mend it") from None


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
    module = {"sft": "train_sft", "reward": "train_rm", "preference": "train_dpo"}[config.type]
    command = [*launcher.split(), "-m", f"openrlhf.cli.{module}"]
    states = states_directory(output)
    flags: dict[str, Flag] = {
        "data.dataset": str(train_path),
        "data.max_samples": 10**12,  # the default would cut the data after a million
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
    """The command's variables. The key of wandb isn't among them: it is in the environment that Ray was started in."""
    tracking, cluster, place = config.tracking, config.cluster, WandbPlace.of(config.tracking)
    # Both Ray and torchrun would set it to one, and optimizer offload computes on the CPU.
    threads = (cluster.cpus_per_node or os.cpu_count() or 1) // cluster.devices_per_node
    return {
        "OMP_NUM_THREADS": str(max(1, threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": place.mode,
        **({"WANDB_ENTITY": place.entity} if place.entity else {}),
        "WANDB_DIR": str(output.parent),
        "WANDB_TAGS": ",".join(tracking.tags),
        # Nothing of the machine or the code is collected.
        **dict.fromkeys(("WANDB_DISABLE_CODE", "WANDB_DISABLE_GIT", "WANDB_X_DISABLE_META"), "true"),
        "WANDB_X_DISABLE_STATS": "false" if tracking.system_metrics else "true",
        "WANDB_CONSOLE": "off",
    }


def _training_flags(config: StageConfig) -> dict[str, Flag]:
    training, tracking, lora = config.training, config.tracking, config.model.lora
    place, source = WandbPlace.of(tracking), resolve_model(config.model.path)
    told = place.mode != "disabled"
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
        # A key turns wandb on, but the environment's comes first: the real one stays there.
        "logger.wandb.key": "in-the-environment-as-WANDB_API_KEY" if told else None,
        "logger.wandb.project": place.project if told else None,
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


def write_openrlhf_data(
    path: Path, records: Iterable[Conversation] | Iterable[RankedAnswers], config: StageConfig
) -> int:
    """Write samples as JSON lines, one at a time, and return their number; the file appears whole.

    A conversation is a row with `messages`. Of ranked answers each pair with different scores is a row with
    `prompt`, `chosen` and `rejected`, all lists of messages, and, if the config's loss wants it, the `margin`.

    Raises:
        ValueError: no row at all; turns that are not to be learnt, all of which OpenRLHF learns; or, with the prompt's id, unpaired feedback, answers that are all tied, and
            answers that were cut off, to which OpenRLHF would add an end.
    """
    loss = getattr(config, "objective", None)
    scale = loss.margin_scale if isinstance(loss, BradleyTerry) and loss.margin != "none" else None

    def write(temporary: Path) -> int:
        with temporary.open("w", encoding="utf-8") as file:
            rows = (row for record in records for row in _rows_of(record, scale))
            count = sum(1 for row in rows if file.write(json.dumps(row, ensure_ascii=False) + "\n"))
        if not count:
            raise ValueError(f"{path}: no sample to write; the sources (or their held-out part) are empty")
        return count

    return int(write_whole(path, write))


def _rows_of(record: Conversation | RankedAnswers, margin_scale: float | None) -> Iterator[dict[str, Any]]:
    if isinstance(record, Conversation):
        if record.unlearnt:
            raise ValueError(
                f"conversation {record.conversation_id!r:.60}: its turns {sorted(record.unlearnt)} are not to be learnt, and "
                "OpenRLHF learns all of the assistant's; leave it out or use engine=native"
            )
        yield {"messages": list(record.messages)}
        return
    ranked = zip(record.answers, record.scores, strict=True)
    pairs = [(a, b) for a, b in combinations(ranked, 2) if a[1] > b[1]]
    if record.cut or not pairs:
        scores, cut = list(record.scores), sorted(record.cut)
        reason = f"answers {cut} were cut off" if cut else f"its scores {scores} make no pair"
        rule = "OpenRLHF takes pairs of whole answers; leave it out or use engine=native"
        raise ValueError(f"prompt {record.prompt_id!r}: {reason}, and {rule}")
    for (better, high), (worse, low) in pairs:
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (better, worse))
        margin = {} if margin_scale is None else {"margin": margin_scale * (high - low)}
        yield {"prompt": list(record.messages), "chosen": chosen, "rejected": rejected, **margin}


def adopt_openrlhf(output: Path, config: StageConfig) -> None:
    """Make what OpenRLHF saved a checkpoint like the native engine's. Doing it again does no harm.

    Adapters are merged into their base model and kept beside it in `adapter/`; a reward model becomes a
    `num_labels=1` classifier.

    Raises:
        RuntimeError: a weight isn't finite: OpenRLHF steps over nothing.
        ValueError: a reward model without a classifier class in transformers.
    """
    if config.model.lora is not None:
        _merge_adapters(output, config)
    changes = _adopt_head(output) if config.type == "reward" else {}
    file = output / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, content | {key: value for key, value in _RESTORED.items() if key in content} | changes)
    if changes:
        check_reward_model(str(output), trained=True)
    for name, tensor in read_weights(sorted(output.glob("model*.safetensors"))):
        if not bool(tensor.isfinite().all()):
            raise RuntimeError(
                f"{output}: weight {name!r} isn't finite, so the training diverged; lower training.learning_rate"
            )


def _adopt_head(path: Path) -> dict[str, Any]:
    """What a reward model's config is to say: OpenRLHF names a class of its own and the labels of its base model."""
    own, tokenizer = AutoConfig.from_pretrained(path), ChatTokenizer(str(path))
    family = AutoModelForSequenceClassification._model_mapping.get(type(own), None)
    if family is None:
        why = f"transformers has no sequence classifier for {own.model_type!r}; start from another model"
        raise ValueError(f"{path}: {why}")
    labels = {"architectures": [family.__name__], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    padding = set_padding(tokenizer.backend, own.vocab_size, tokenizer.end_id)
    tokenizer.backend.save_pretrained(path)
    return {**labels, "pad_token_id": padding, **READ_AT}


def _merge_adapters(output: Path, config: StageConfig) -> None:
    """OpenRLHF saves adapters alone; the base model is read again, quantised as it was in training."""
    model, trust = config.model, config.model.trust_remote_code
    folder = output / ADAPTER_FOLDER
    folder.mkdir(exist_ok=True)
    for file in output.glob("adapter_*"):
        file.replace(folder / file.name)
    place = str(output)
    policy = load_policy(model.path, "bfloat16", lora=model.lora, adapter=place, trust_remote_code=trust)
    state = {n: tensor.cpu().clone() for n, tensor in merged_weights(policy.lm, lambda _: nullcontext())}
    save_model(policy, AutoTokenizer.from_pretrained(place, trust_remote_code=trust), place, state)
